"""A result in, a plotly figure out: pure functions, one look, a file a subject. A `title` says what a picture shows."""

from qtutor import quick  # before plotly
from qtutor.plots.affine import bits_rule, clip_sweep, number_line, straight_through
from qtutor.plots.comparison import dots, lines, pareto, ratios
from qtutor.plots.data import calibration_size, channel_ranges, chosen_ranges, distributions, images
from qtutor.plots.diagnosis import repairs, report, sensitivity
from qtutor.plots.hardware import datapath, roofline
from qtutor.plots.look import BLUE, GREEN, GREY, INK, PURPLE, TEMPLATE, VERMILLION, figure
from qtutor.plots.low_bits import frontier, levels
from qtutor.plots.verdicts import claims
