"""Every figure: opens on what lessons give it, in one look, for every name that a lesson uses."""

import json
import math
import re
import subprocess
import sys

from qtutor import plots
from qtutor.affine import choose_qparams, dequantize, fake_quantize, measure_error
from qtutor.plots import look
from qtutor.roofline import Peaks

import nbformat
import pandas as pd
import pytest
import torch
from lab import COURSE

X = torch.randn(500, generator=torch.Generator().manual_seed(0))
QPARAMS = choose_qparams(-1.0, 2.75, quant_min=0, quant_max=15)
LAYERS = pd.DataFrame(
    {"operations": [1e6, 1e8], "bytes": [1e5, 1e6], "intensity": [10.0, 100.0], "latency_ms": [1.0, 2.0]},
    index=["first", "second"],
)
DRAWN = {
    "images": lambda: plots.images(torch.rand(13, 1, 8, 8), [str(i) for i in range(13)]),
    "distributions": lambda: plots.distributions({"weights": X, "outputs": X.relu()}, "title"),
    "number_line": lambda: plots.number_line(X[:4], QPARAMS),
    "clip_sweep": lambda: plots.clip_sweep(torch.tensor([1.0, 2.0, 4.0]), [measure_error(X, QPARAMS)] * 3, "title"),
    "bits_rule": lambda: plots.bits_rule([2, 3, 4], {"one": [9, 15, 21], "other": [8, 14, 20]}),
    "straight_through": lambda: plots.straight_through(X, X.round(), torch.ones_like(X)),
    "channel_ranges": lambda: plots.channel_ranges({"before": X[:9].abs(), "after": X[9:18].abs()}, "title"),
    "chosen_ranges": lambda: plots.chosen_ranges(X.relu(), {"min-max": 3.0, "percentile": 2.0}, "title"),
    "calibration_size": lambda: plots.calibration_size([8, 64], torch.rand(2, 5), "title", claimed=(10, 100)),
    "ratios": lambda: plots.ratios({"smaller": 3.9, "faster": 0.7}, "title"),
    "dots": lambda: plots.dots({"row": {"one": 0.1, "other": 0.4}}, "title", "share", share=True),
    "lines": lambda: plots.lines([1, 2], {name: [1.0, 2.0] for name in "abcde"}, "title", "x", "y"),
    "levels": lambda: plots.levels({"INT4": torch.arange(-8.0, 8.0), "E2M1": torch.tensor([0.0, -6.0, 4.0])}, "title"),
    "frontier": lambda: plots.frontier({name: [(4.5, 0.01), (2.5, 1.0)] for name in "abcde"}, "title"),
    "datapath": lambda: plots.datapath({"path": [("", "FP32", 400), ("conv", "INT8", 100)]}, "title"),
    "roofline": lambda: plots.roofline(Peaks(1e10, 1e11, 4e11), LAYERS, "title"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_figure_has_the_look_and_can_be_shown(name):
    drawn = DRAWN[name]()
    assert drawn.layout.template.layout.plot_bgcolor == "white"
    written = json.loads(drawn.to_json())
    assert written["data"] or written["layout"]["shapes"]


def test_every_name_that_a_lesson_uses_is_there():
    used = set()
    for path in (COURSE / "lessons").glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            used |= set(re.findall(r"\bplots\.(\w+)", cell.source))
    assert len(used) > 15
    assert [name for name in used if not hasattr(plots, name)] == []


def test_series_differ_in_colour_dash_and_marker():
    for part in ("colour", "dash", "symbol"):
        assert len({getattr(own, part) for own in look.LOOKS}) == len(look.LOOKS)


def test_values_land_on_the_grid_that_is_drawn():
    drawn = plots.number_line(X[:4], QPARAMS)
    *joins, values, grid = drawn.data
    assert list(values.x) == X[:4].tolist()
    assert list(grid.x) == dequantize(torch.arange(16), QPARAMS).tolist()
    assert [join.x[1] for join in joins] == fake_quantize(X[:4], QPARAMS).tolist()


def test_better_and_worse_stand_on_their_sides_of_one():
    by_name = {trace.y[0]: trace for trace in plots.ratios({"smaller": 3.9, "faster": 0.7}, "title").data}
    assert (by_name["smaller"].text[1].strip(), by_name["smaller"].textposition) == ("3.90x better", "middle right")
    assert (by_name["faster"].text[1].strip(), by_name["faster"].textposition) == ("0.70x worse", "middle left")


def test_a_histogram_counts_every_value_but_zero():
    drawn = plots.distributions({"outputs": X.relu()}, "title")
    assert float(sum(drawn.data[0].y)) == pytest.approx(float((X > 0).float().mean()))


def test_intervals_reach_from_the_lowest_to_the_highest_draw():
    decibels = torch.tensor([[1.0, 2.0, 5.0], [3.0, 4.0, 4.5]])
    (trace,) = plots.calibration_size([8, 64], decibels, "title", claimed=(10, 100)).data
    assert list(trace.y) == [2, 4]
    assert list(trace.error_y.array) == [3, 0.5]
    assert list(trace.error_y.arrayminus) == [1, 1]


def test_the_roof_bends_where_arithmetic_begins_to_bind_and_int8_moves_a_quarter():
    drawn = {trace.name: trace for trace in plots.roofline(Peaks(1e10, 1e12, 8e12), LAYERS, "title").data}
    assert drawn["FP32 roof"].x[1] == pytest.approx(100)
    assert drawn["INT8 roof"].x[1] == pytest.approx(200)
    assert drawn["INT8 roof"].y[0] == pytest.approx(4 * drawn["FP32 roof"].y[0])
    assert list(drawn["a layer in FP32"].y) == [1, 50]


def test_layers_without_error_stand_at_the_right_edge_and_those_not_measured_nowhere():
    table = pd.DataFrame({"layer": ["a" * 50, "b"], "alone_sqnr": [20.0, math.inf], "all_but_sqnr": [math.nan, 30.0]})
    alone, all_but = plots.sensitivity(table, "title").data
    assert list(alone.x) == [20, 36]
    assert list(all_but.x) == [None, 30]
    assert [len(name) for name in alone.y] == [34, 1]


@pytest.mark.parametrize("name", ["explorers", "course.own", "course.notebooks"])
def test_a_process_imports_nbformat_without_a_grammar_that_no_notebook_asks_for(name):
    code = f"import sys, qtutor.{name}; print('nbformat' in sys.modules, 'rfc3987_syntax' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout == "True False\n", finished.stderr


def test_this_process_does_too():
    assert "jsonschema" in sys.modules
    assert "rfc3987_syntax" not in sys.modules
