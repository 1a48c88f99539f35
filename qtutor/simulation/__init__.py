"""Any model run as if some of its layers were integers."""

from qtutor.simulation.rounding import Rounding, Simulation
from qtutor.simulation.scheme import Configuration, Scheme
from qtutor.simulation.training import round_in_training
