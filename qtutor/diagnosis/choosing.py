"""Which layers to keep in floating point where a diagnosis is made and a goal is given."""

from qtutor.diagnosis.recommendation import Goal, fewest_in_float
from qtutor.diagnosis.result import Diagnosis
from qtutor.diagnosis.search import Kept
from qtutor.simulation import Configuration


def choose_float_layers(
    diagnosis: Diagnosis,
    *,
    metric: float | None = None,
    sqnr: float | None = None,
    configuration: Configuration | None = None,
    tries: int = 64,
) -> Kept:
    """Choose the fewest layers to keep in floating point so that the rest may be quantized.

    Args:
        diagnosis: of the model, on the data that judge.
        metric: the accuracy, or what the diagnosis measured, that is to be reached.
        sqnr: the SQNR of the output in dB that is to be reached; either will do, and `Goal` says what else it asks.
        configuration: of what is quantized; by default that of the diagnosis.
        tries: how many sets to measure, each a pass over the data; `smallest_set` says how they are spent.

    Returns:
        Names of layers, the most harmful first; behind them those that were not measured, where they are needed too.

    Raises:
        ValueError: no goal is given, or it is not reached with all layers in floating point.
    """
    if metric is None and sqnr is None:
        raise ValueError("choose_float_layers needs a goal: metric=, such as an accuracy, or sqnr= in dB")
    goal = Goal(metric, sqnr)
    kept = fewest_in_float(diagnosis.experiment, configuration or diagnosis.configuration, goal, diagnosis.table, tries)
    if kept is None:
        raise ValueError(f"choose_float_layers: even in floating point the model does not reach {goal}")
    return kept
