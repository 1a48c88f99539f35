"""Live widgets: move a control, watch the mathematics answer."""

from qtutor.explorers.affine import AffineExplorer
from qtutor.explorers.granularity import GranularityExplorer
from qtutor.explorers.observer import ObserverExplorer
from qtutor.explorers.qat import QATExplorer
from qtutor.explorers.training import LiveTraining

__all__ = ["AffineExplorer", "GranularityExplorer", "LiveTraining", "ObserverExplorer", "QATExplorer"]
