import math
from dataclasses import replace

from qtutor.diagnosis import Diagnosis, diagnose
from qtutor.explorers import LayerExplorer

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module", params=["labels", "no labels"])
def diagnosis(request) -> Diagnosis:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 3)
        )
        model[3].weight.data[0, 0] = 50.0
        x = torch.randn(40, 1, 6, 6)
    with torch.no_grad():
        labels = model(x).argmax(dim=1) if request.param == "labels" else None
    return diagnose(model.eval(), [(x, labels)], progress=False)


def test_the_dot_is_what_the_diagnosis_measures(diagnosis):
    explorer = LayerExplorer(diagnosis)
    assert explorer.result.measured == diagnosis.measure(diagnosis.configuration)
    explorer.set(keep_float=("3",), weights="channel")
    expected = diagnosis.measure(replace(diagnosis.configuration, keep_float=("3",), weights="channel"))
    assert explorer.result.measured == expected
    now = explorer.figure.data[3]
    assert now.x[0] == expected.bytes / 1000
    assert now.y[0] == (expected.metric if diagnosis.metric_name else expected.sqnr)


def test_all_in_float_is_the_float_model_in_all_its_bytes(diagnosis):
    explorer = LayerExplorer(diagnosis)
    explorer.set(keep_float=("0", "3", "5"))
    measured = explorer.result.measured
    assert measured.sqnr == math.inf
    assert measured.bytes == 4 * (6 * 9 + 6 + 96 * 12 + 12 + 12 * 3 + 3)


def test_the_frontier_adds_the_most_harmful_layers_one_by_one(diagnosis):
    explorer = LayerExplorer(diagnosis)
    sizes = [m.bytes for m in explorer.result.frontier]
    assert sizes == sorted(sizes)
    assert len(sizes) == 4
    assert explorer.result.frontier[1].sqnr > explorer.result.frontier[0].sqnr


def test_the_order_of_a_choice_does_not_matter(diagnosis):
    explorer = LayerExplorer(diagnosis)
    explorer.set(keep_float=("5", "0"))
    first = explorer.state
    explorer.set(keep_float=("0", "5"))
    assert explorer.state == first


def test_your_best_is_the_smallest_choice_that_reaches_the_goal(diagnosis):
    explorer = LayerExplorer(diagnosis)
    for kept in ((), ("3",), ("0", "3", "5")):
        explorer.set(keep_float=kept)
    best = explorer.best()
    assert best is not None
    assert best.bytes < explorer.result.measured.bytes
    assert explorer.figure.data[2].x[0] == best.bytes / 1000


def test_each_layer_shows_its_own_weights_and_finding(diagnosis):
    explorer = LayerExplorer(diagnosis)
    for name, channels in (("0", 6), ("3", 12), ("5", 3)):
        explorer.set(layer=name)
        assert f"{name}: {diagnosis.table.set_index('layer').loc[name, 'finding']}" in explorer.sentence.text
        assert len(explorer.figure.data[6].x) == channels
        assert sum(v for v in explorer.figure.data[4].y if v == v) == diagnosis.statistics[name].parameters


@pytest.mark.parametrize("given", [None, nn.Linear(2, 2), "diagnosis"])
def test_what_is_no_diagnosis_is_refused(given):
    with pytest.raises(TypeError, match="LayerExplorer needs a Diagnosis"):
        LayerExplorer(given)


def test_unknown_layers_are_refused_and_nothing_changes(diagnosis):
    explorer = LayerExplorer(diagnosis)
    before = explorer.state
    with pytest.raises(ValueError, match="keep_float cannot be"):
        explorer.set(keep_float=("nothing",))
    assert explorer.state == before
