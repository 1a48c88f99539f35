"""A result in, a plotly figure out: pure functions, one look, one file a subject."""

from qtutor.plots import quick  # noqa: F401  before plotly
from qtutor.plots.affine import bits_rule, clip_sweep, number_line, straight_through
from qtutor.plots.comparison import dots, lines, pareto, ratios
from qtutor.plots.data import distributions, images
from qtutor.plots.diagnosis import repairs, report, sensitivity
from qtutor.plots.hardware import datapath, roofline
from qtutor.plots.look import (
    BLUE,
    GREEN,
    GREY,
    INK,
    LOOKS,
    ONE_TWO_FIVE,
    PALE,
    PURPLE,
    SILVER,
    SKY,
    TEMPLATE,
    VERMILLION,
    figure,
    interval,
    panels,
    ticks,
)
from qtutor.plots.ranges import calibration_size, channel_ranges, chosen_ranges
from qtutor.plots.verdicts import claims

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "LOOKS",
    "ONE_TWO_FIVE",
    "PALE",
    "PURPLE",
    "SILVER",
    "SKY",
    "TEMPLATE",
    "VERMILLION",
    "bits_rule",
    "calibration_size",
    "channel_ranges",
    "chosen_ranges",
    "claims",
    "clip_sweep",
    "datapath",
    "distributions",
    "dots",
    "figure",
    "images",
    "interval",
    "lines",
    "number_line",
    "panels",
    "pareto",
    "ratios",
    "repairs",
    "report",
    "roofline",
    "sensitivity",
    "straight_through",
    "ticks",
]
