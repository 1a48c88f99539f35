"""Live widgets: move a control, watch the mathematics answer."""

from qtutor.explorers.affine import AffineExplorer
from qtutor.explorers.benchmark import BenchmarkExplorer
from qtutor.explorers.dynamic_range import DynamicRangeExplorer
from qtutor.explorers.four_bit import FourBitExplorer
from qtutor.explorers.fusion import FusionExplorer
from qtutor.explorers.granularity import GranularityExplorer
from qtutor.explorers.integer import IntegerExplorer
from qtutor.explorers.layer import LayerExplorer
from qtutor.explorers.observer import ObserverExplorer
from qtutor.explorers.outlier import OutlierExplorer
from qtutor.explorers.qat import QATExplorer
from qtutor.explorers.training import LiveTraining
