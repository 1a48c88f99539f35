"""Which layer hurts: any model, quantized layer by layer, with what that does to its output and what helps."""

from qtutor.diagnosis.diagnose import diagnose
from qtutor.diagnosis.experiment import Measured
from qtutor.diagnosis.recommendation import GOOD_ENOUGH
from qtutor.diagnosis.result import Diagnosis
from qtutor.diagnosis.weights_alone import WeightDiagnosis
from qtutor.simulation import Configuration

__all__ = ["GOOD_ENOUGH", "Configuration", "Diagnosis", "Measured", "WeightDiagnosis", "diagnose"]
