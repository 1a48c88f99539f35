"""QATExplorer without a browser, against autograd."""

import math

from qtutor.affine import grid, learned_fake_quantize
from qtutor.explorers import QATExplorer
from qtutor.explorers.qat import LANES, RATES, STEPS, train_one_weight

import pytest
import torch
from controls import check_every_control
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples


def test_every_control_changes_state_figure_and_sentence():
    explorer = QATExplorer(step=30)
    changes = {"step": 45, "target": 0.9, "rate": 0.05, "bits": 2}
    check_every_control(explorer, changes)


@settings(max_examples=examples(20))
@given(target=st.floats(-1, 1), rate=st.sampled_from(RATES), bits=st.integers(2, 4), weight=st.floats(-2, 2))
def test_training_is_gradient_descent_by_autograd(target, rate, bits, weight):
    low, high = grid(bits)
    w, s = torch.tensor(weight, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    weights, _, scales = train_one_weight(weight, 0.5, target, rate, bits)
    for step in range(12):
        assert float(weights[2, step]) == pytest.approx(float(w), abs=1e-9)
        assert float(scales[2, step]) == pytest.approx(float(s), abs=1e-9)
        w, s = w.requires_grad_(), s.requires_grad_()
        out = learned_fake_quantize(w, s, quant_min=low, quant_max=high, gradient_scale=1 / math.sqrt(high))
        ((out - target) ** 2 / 2).backward()
        w, s = (w - rate * w.grad).detach(), (s - rate * s.grad).detach().clamp(min=0.02)
        if abs(float(w / s) % 1 - 0.5) < 1e-6:  # a tie, which the last digit decides
            return


def test_the_true_gradient_never_moves_ste_hops_and_the_grid_of_lsq_comes_to_the_weight():
    explorer = QATExplorer(step=STEPS)
    result = explorer.result
    assert len(result.weights[0].unique()) == len(result.scales[0].unique()) == 1
    assert len(result.scales[1].unique()) == 1
    assert result.hops_between("STE", STEPS // 2, STEPS) > 5
    off = (result.quantized[:, -1] - explorer.state.target).abs()
    assert off[2] < off[1] / 5


def test_a_target_on_the_grid_lets_ste_rest():
    result = QATExplorer(step=STEPS, target=1.0).result
    assert result.hops_between("STE", 0, STEPS) == 1
    assert float(result.quantized[1, -1]) == 1.0


def test_lines_end_at_the_step_and_the_sentence_says_what_they_show():
    explorer = QATExplorer(step=7)
    for i, lane in enumerate(LANES):
        _, _, weight, quantized, now = explorer.figure.data[5 * i : 5 * i + 5]
        assert list(weight.x) == list(range(8))
        assert now.y[0] == quantized.y[-1] == float(explorer.result.quantized[i, 7])
        assert f"{lane}: the network sees {now.y[0]:.3f}" in explorer.sentence.text


def test_no_trace_has_many_points():
    explorer = QATExplorer(bits=4, rate=0.3)
    explorer.set(step=STEPS, target=-0.4)
    assert all(len(trace.x) <= 300 for trace in explorer.figure.data)


@pytest.mark.parametrize("weight", [torch.tensor([[-0.2]]), torch.nn.Parameter(torch.tensor(0.1)), 0, -1.5])
def test_any_single_number_opens(weight):
    assert "target" in QATExplorer(weight, torch.tensor(0.25)).sentence.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight": torch.ones(3)}, ValueError, r"weight must be one value, got a tensor of shape \(3,\)"),
        ({"weight": "a"}, TypeError, "QATExplorer: weight must be a number or a tensor of one, got str"),
        ({"weight": float("nan")}, ValueError, "within 8 scales, got nan"),
        ({"weight": 100.0}, ValueError, "within 8 scales"),
        ({"weight": float("inf")}, ValueError, "within 8 scales, got inf"),
        ({"scale": 0.0}, ValueError, "scale must be above"),
        ({"scale": float("nan")}, ValueError, "scale must be above"),
        ({"scale": None}, TypeError, "QATExplorer: scale must be a number or a tensor of one, got NoneType"),
        ({"scale": torch.ones(2, 3)}, ValueError, r"QATExplorer: scale must be one value, .* shape \(2, 3\)"),
        ({"step": -1}, ValueError, "step cannot be -1: it goes from 0 to 60"),
        ({"rate": 0.15}, ValueError, "rate cannot be 0.15"),
        ({"bits": 9}, ValueError, "bits cannot be 9: it goes from 2 to 4"),
    ],
)
def test_bad_input_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        QATExplorer(**arguments)
