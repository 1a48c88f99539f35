"""Any model run as if some of its layers were integers."""

from qtutor.simulation.rounding import Rounding, Simulation
from qtutor.simulation.scheme import Configuration, Scheme

__all__ = ["Configuration", "Rounding", "Scheme", "Simulation"]
