"""diagnose_weights: linear layers rounded alone in groups, ranked by what the output's distribution loses."""

import copy
import html
import itertools
import json
import re

from qtutor.diagnosis import WeightDiagnosis, diagnose_weights, weights_alone
from qtutor.language.llama import Llama, LlamaConfig
from qtutor.lowbit import integers
from qtutor.plots.diagnosis import harms, report

import pytest
import torch
from torch import nn
from torch.nn import functional

SIZES = {"vocabulary": 40, "width": 32, "layers": 2, "heads": 4, "key_value_heads": 2, "hidden": 64}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Llama(LlamaConfig(**SIZES)).eval()
    with torch.no_grad():
        model.blocks[1].feed_forward.up.weight[3, 5] = 3  # it widens the grid of its group
        model.embedding.weight *= 0.3
    return model


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 40, (6, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def found(model, tokens):
    return diagnose_weights(model, [tokens[:4], tokens[4:]], bits=3, group=16, progress=False)


def harm(model, tokens, names):
    """KL in bits of a copy whose layers of these names are rounded."""
    changed = copy.deepcopy(model)
    for name in names:
        weight = changed.get_submodule(name).weight
        weight.data = integers(3, 16).round(weight)
    with torch.no_grad():
        p, q = (m(tokens).double().log_softmax(-1) for m in (model, changed))
    each = functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).flatten() / torch.tensor(2.0).log()
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


def test_the_harm_of_a_layer_is_the_kl_of_a_copy_with_that_layer_rounded(model, tokens, found):
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert isinstance(found, WeightDiagnosis)
    assert sorted(found.table["layer"]) == sorted(linear)
    for row in found.table.itertuples():
        assert (row.harm, row.error) == pytest.approx(harm(model, tokens, [row.layer]), rel=1e-3, abs=1e-7)
    assert found.all_rounded == pytest.approx(harm(model, tokens, linear)[0], rel=1e-3)
    assert found.rows == tokens.numel()


def test_its_page_has_every_number_and_its_picture_every_layer(found):
    page = report(found)
    cells = re.findall("<td>(.*?)</td>", page)
    (drawn,) = harms(found.table, "harm").data
    assert (list(drawn.y), list(drawn.x)) == (list(found.table["layer"]), list(found.table["harm"]))
    assert list(drawn.error_x.array) == (2 * found.table["error"]).tolist()
    for row in found.table.itertuples():
        at = cells.index(row.layer)
        assert cells[at + 1 : at + 4] == [f"{each:.3g}" for each in (row.harm, row.error, row.share)]
    assert html.escape(found.finding) in page
    assert "to 3 bits with a scale for 16 inputs; rows of the output that were compared: 120." in page
    assert json.loads(found.to_json())["layers"][0]["harm"] == pytest.approx(found.table["harm"][0], rel=1e-9)


def test_what_a_model_counts_while_it_runs_is_not_touched():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.linear(x)

    model, batch = Counts(), torch.randn(3, 64)
    diagnose_weights(model, [batch], bits=4, progress=False)
    assert model.calls == 0
    for group in (0, None, 2.0):
        with pytest.raises(ValueError, match="group must be a whole number from 1"):
            diagnose_weights(model, [batch], bits=4, group=group, progress=False)


def test_the_most_harmful_stands_first_and_is_said(found):
    assert found.table["harm"].is_monotonic_decreasing
    assert float(found.table["share"].sum()) == pytest.approx(1)
    assert found.finding.startswith(f"{found.table['layer'][0]} hurts most")
    assert found.finding in str(found)


def test_an_interrupt_keeps_what_was_measured(model, tokens, monkeypatch):
    kl, calls = weights_alone.kl_bits, itertools.count(1)

    def interrupted(exact, other):
        if next(calls) > 3:
            raise KeyboardInterrupt
        return kl(exact, other)

    monkeypatch.setattr(weights_alone, "kl_bits", interrupted)
    part = diagnose_weights(model, iter([tokens[:4], tokens[4:]]), bits=3, group=16, samples=4, progress=False)
    assert part.interrupted
    assert [note.split(":")[0] for note in part.notes] == ["The first 4 samples were used", "Interrupted"]
    assert len(part.table) == 2


def test_the_given_model_is_left_alone(model, tokens, found):
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    diagnose_weights(model, [tokens], bits=2, group=32, progress=False)
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == place and torch.equal(after[name], value) for name, (place, value) in before.items())
    assert [module.training for module in model.modules()] == modes
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_what_groups_do_not_divide_is_left_out_with_the_reason():
    model = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    found = diagnose_weights(model, [torch.randn(5, 10)], bits=4, group=8, progress=False)
    assert [*found.table["layer"]] == ["2"]
    assert [*found.skipped.itertuples(index=False)] == [("0", "Linear", "groups of 8 do not divide its 10 inputs")]


def test_a_weight_that_another_layer_reads_is_rounded_for_this_one_alone(tokens):
    torch.manual_seed(1)
    model = Llama(LlamaConfig(**SIZES, tied=False)).eval()
    model.head.weight = model.embedding.weight
    table = diagnose_weights(model, [tokens], bits=2, group=32, progress=False).table.set_index("layer")
    assert [*table.index[table["tied"]]] == ["head"]
    with torch.no_grad():
        rounded = copy.deepcopy(model)
        rounded.head.weight = nn.Parameter(integers(2, 32).round(model.head.weight))
        p, q = (m(tokens).log_softmax(-1) for m in (model, rounded))
    wanted = float((p.exp() * (p - q)).sum(-1).mean() / torch.tensor(2.0).log())
    assert table["harm"]["head"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()), "no linear layer to round in groups of 4"),
        (nn.Sequential(nn.Linear(36, 4), nn.Linear(4, 1)), r"the model gives no scores \(..., classes\)"),
    ],
)
def test_a_model_without_linear_layers_or_scores_is_refused(model, message):
    x = torch.randn(2, 1, 6, 6) if isinstance(model[0], nn.Conv2d) else torch.randn(2, 36)
    with pytest.raises(ValueError, match=message):
        diagnose_weights(model, [x], group=4, progress=False)


class Unsteady(nn.Module):
    """Gives another output at each call: by chance, or as it counts its calls."""

    def __init__(self, counts):
        super().__init__()
        self.linear, self.counts, self.calls = nn.Linear(64, 4), counts, 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) + self.calls if self.counts else functional.dropout(self.linear(x))


@pytest.mark.parametrize(("counts", "message"), [(False, "functional dropout needs training"), (True, "call to call")])
def test_a_model_that_gives_another_output_each_time_is_refused(counts, message):
    with pytest.raises(ValueError, match=f"Unsteady itself gives another output .*{message}"):
        diagnose_weights(Unsteady(counts), [torch.randn(8, 64)], progress=False)


def test_an_embedding_that_scales_its_rows_down_scales_those_of_a_copy(tokens):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 64, max_norm=1.0), nn.Linear(64, 4)).eval()
    before = model[0].weight.detach().clone()
    diagnose_weights(model, [tokens], progress=False)
    assert torch.equal(model[0].weight, before)
