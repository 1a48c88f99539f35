"""Live widgets: move a control, watch the mathematics answer."""

from qtutor.explorers.affine import AffineExplorer

__all__ = ["AffineExplorer"]
