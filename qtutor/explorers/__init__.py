"""Live widgets: move a control, watch the mathematics answer."""

from qtutor.explorers.affine import AffineExplorer
from qtutor.explorers.granularity import GranularityExplorer
from qtutor.explorers.observer import ObserverExplorer
from qtutor.explorers.qat import QATExplorer

__all__ = ["AffineExplorer", "GranularityExplorer", "ObserverExplorer", "QATExplorer"]
