"""Which layer hurts: any model, quantized layer by layer, with what that does to its output and what helps."""

from qtutor.diagnosis.choosing import choose_float_layers
from qtutor.diagnosis.diagnose import diagnose
from qtutor.diagnosis.experiment import Measured
from qtutor.diagnosis.result import Diagnosis
from qtutor.diagnosis.weights_alone import WeightDiagnosis, diagnose_weights
from qtutor.simulation import Configuration
