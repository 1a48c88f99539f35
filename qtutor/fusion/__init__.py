"""Fold batch norms into the layers before them, find what can run as one operator, count the bytes that saves."""

from qtutor.fusion.folding import fold_batch_norm
from qtutor.fusion.patterns import Fusion, find_fusions, fuse
from qtutor.fusion.traffic import OperatorTraffic, Traffic, traffic
