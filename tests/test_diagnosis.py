import contextlib
import copy
import json
import math
import multiprocessing
import os
import re
from itertools import pairwise
from types import SimpleNamespace

from qtutor.affine import sqnr
from qtutor.diagnosis import Configuration, choose_float_layers, diagnose, trials
from qtutor.diagnosis.experiment import Measured
from qtutor.diagnosis.recommendation import Goal, fewest_in_float
from qtutor.diagnosis.statistics import ChannelSums
from qtutor.fusion import fuse
from qtutor.plots import report
from qtutor.samples import SlimResNet
from qtutor.simulation import Simulation
from qtutor.words import in_bytes
from qtutor.workflows.telling import QuantizationWarning

import joblib
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from thoroughness import examples
from torch import nn


class Chain(nn.Module):
    """Linear layers with a functional ReLU between."""

    def __init__(self, width: int = 32, depth: int = 5):
        super().__init__()
        widths = [16, *[width] * (depth - 1), 10]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class Texts(nn.Module):
    """Two inputs, a dictionary for an output, attention, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.shared = nn.Linear(16, 16)
        self.recurrent = nn.LSTM(16, 12, batch_first=True)
        self.head = nn.Linear(12, 4)
        self.unused = nn.Linear(3, 3)

    def forward(self, words, scale):
        if words.shape[1] < 2:  # torch.fx cannot trace this
            raise ValueError("too short")
        states = self.shared(self.shared(self.encoder(self.embed(words)) * scale))
        states, _ = self.recurrent(states)
        return {"logits": self.head(states[:, -1]), "states": states, "length": words.shape[1]}


def quiet(model, data, **options):
    return diagnose(model, data, progress=False, **options)


@pytest.fixture(autouse=True)
def seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def chain():
    return Chain().eval()


@pytest.fixture
def inputs():
    return [torch.randn(32, 16) for _ in range(2)]


def convolutional() -> nn.Sequential:
    blocks = [
        part
        for a, b in ((3, 16), (16, 16), (16, 16))
        for part in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
    ]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    for _ in range(30):
        model(torch.randn(16, 3, 8, 8))
    return model.eval()


@torch.no_grad()
def plant(model, kind, first, second):
    """Make `first` the bad layer, and let `second` undo it where that is possible."""
    if kind == "channel":
        first.weight[2] *= 300
        first.bias[2] *= 300
        second.weight[:, 2] /= 300
    elif kind == "one weight":
        first.weight[0, 0] = 60 * first.weight.abs().max()
    elif kind == "wide channel":
        first.weight[1] *= 100
    elif kind == "heavy tails":
        noise = torch.randn_like(first.weight)
        first.weight.copy_(noise.sign() * noise.abs() ** 5 * first.weight.std())
    elif kind == "bias":
        first.bias[2] += 200
        second.bias -= 200 * second.weight[:, 2]


@pytest.mark.parametrize("kind", ["channel", "one weight", "wide channel", "heavy tails", "bias"])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_planted_bad_layer_stands_first(chain, inputs, kind, place):
    plant(chain, kind, chain.layers[place], chain.layers[place + 1])
    diagnosis = quiet(chain, inputs)
    assert diagnosis.table["layer"][0] == f"layers.{place}"
    assert diagnosis.table["finding"][0] != "healthy"


@pytest.mark.parametrize("place", [0, 1])
def test_a_dead_channel_before_a_batch_norm_is_found(place):
    model = convolutional()
    norm = model[3 * place + 1]
    with torch.no_grad():
        model[3 * place].weight[2] *= 1e-4
        norm.running_mean[2] = 0
        norm.running_var[2] = 0
        norm.eps = 1e-6
        model[3 * place].weight[2] = 1e-2  # folded: a thousand times as wide; its input decides what it gives
        model[3 * place + 3].weight[:, 2] = 0
    diagnosis = quiet(model, [torch.randn(32, 3, 8, 8)])
    assert diagnosis.table["layer"][0] == str(3 * place)


def test_an_outlier_activation_is_named(inputs):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 10)
            self.second.weight.data[:, 5] /= 500

        def forward(self, x):
            x = torch.tanh(self.first(x))
            x = torch.cat([x[:, :5], 500 * x[:, 5:6], x[:, 6:]], dim=1)
            return self.third(torch.tanh(self.second(x)))

    diagnosis = quiet(Scaled().eval(), inputs)
    assert diagnosis.table["layer"][0] == "second"
    assert "outlier activation: channel 5 of its input" in diagnosis.table["finding"][0]


def test_a_batch_norm_counts_as_folded():
    """Per tensor, rounding a folded weight and dividing the factor out again equals rounding the folded layer."""
    model, images = convolutional(), torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        model[4].weight.mul_(torch.linspace(0.1, 30, 16))
    before, after = (quiet(m, [images]) for m in (model, fuse(model)))
    before, after = (diagnosis.table.set_index("layer").sort_index() for diagnosis in (before, after))
    assert list(before.index) == list(after.index)
    for column in ("alone_sqnr", "all_but_sqnr", "weight_sqnr", "weight_worst", "activation_sqnr"):
        assert before[column].tolist() == pytest.approx(after[column].tolist(), abs=0.3)


def test_sqnr_is_that_of_the_output_with_one_layer_rounded_by_torch(chain):
    x = torch.randn(64, 16)
    diagnosis = quiet(chain, [x])
    rounded = copy.deepcopy(chain)

    def fake(t, low, high, symmetric):
        if symmetric:
            return torch.fake_quantize_per_tensor_affine(t, float(t.abs().max()) / 127.5, 0, low, high)
        scale = float(t.max() - t.min()) / 255
        return torch.fake_quantize_per_tensor_affine(t, scale, round(-float(t.min()) / scale), low, high)

    with torch.no_grad():
        rounded.layers[4].weight.copy_(fake(rounded.layers[4].weight, -128, 127, True))
        rounded.layers[4].register_forward_hook(lambda m, i, y: fake(y, 0, 255, False))
        expected = sqnr(chain(x), rounded(x))
    row = diagnosis.table.set_index("layer").loc["layers.4"]
    assert row["alone_sqnr"] == pytest.approx(expected, abs=0.05)


def test_dictionaries_several_inputs_shared_modules_and_recurrence_work():
    data = [((torch.randint(30, (8, 6)), torch.ones(1)), None) for _ in range(2)]
    diagnosis = quiet(Texts().eval(), data)
    names = set(diagnosis.table["layer"])
    assert {"embed", "shared", "recurrent", "head", "encoder.layers.0.self_attn", "encoder.layers.1.linear2"} <= names
    skipped = diagnosis.skipped.set_index("layer")
    assert "does not use it" in skipped.loc["unused", "reason"]
    assert diagnosis.metric_name == ""
    assert diagnosis.recommended is not None


def test_named_inputs_and_labels_work():
    data = [({"words": torch.randint(30, (8, 6)), "scale": torch.ones(1)}, torch.randint(4, (8,))) for _ in range(2)]
    diagnosis = quiet(Texts().eval(), data)
    assert diagnosis.metric_name == "accuracy"
    assert {"alone_accuracy", "all_but_accuracy"} <= {*diagnosis.table.columns}


def test_a_planted_layer_of_a_transformer_stands_first():
    model = Texts().eval()
    model.encoder.layers[1].linear1.weight.data[0, 0] = 20.0
    data = [((torch.randint(30, (16, 6)), torch.ones(1)), None)]
    assert quiet(model, data).table["layer"][0] == "encoder.layers.1.linear1"


def fingerprint(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [m.training for m in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
    )


def same(a, b):
    return a[1:] == b[1:] and all(torch.equal(a[0][name], b[0][name]) for name in a[0])


@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_is_left_as_it_was(training):
    model = SlimResNet(8, classes=4).train(training)
    data = [(torch.rand(8, 3, 16, 16), torch.randint(4, (8,)))]
    before = fingerprint(model)
    diagnosis = quiet(model, data)
    _ = diagnosis.recommended
    assert same(before, fingerprint(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_given_model_and_data_are_left_as_they_were_when_it_raises(error):
    class Fragile(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            Fragile.calls += 1
            if Fragile.calls > 5:
                raise error("enough")
            return self.layer(x.relu_())

    model, x = Fragile(), torch.randn(8, 4)
    before, given = fingerprint(model), x.clone()
    with contextlib.suppress(ValueError, KeyboardInterrupt):
        quiet(model, [x, x, x, x, x, x, x])
    assert Fragile.calls > 5
    assert same(before, fingerprint(model))
    assert torch.equal(x, given)
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_interrupt_keeps_what_was_measured(chain, inputs, monkeypatch):
    calls, add = [], trials.Score.add

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        add(self, *args)

    monkeypatch.setattr(trials.Score, "add", interrupted)
    diagnosis = quiet(chain, inputs)
    assert 1 <= len(diagnosis.table) < 5
    assert diagnosis.interrupted
    assert "Interrupted" in diagnosis.notes[-1]
    names = [f"layers.{i}" for i in range(5)]
    assert list(diagnosis.skipped["layer"]) == [name for name in names if name not in set(diagnosis.table["layer"])]
    assert len(choose_float_layers(diagnosis, sqnr=300.0)) == 5  # those that were not measured too


def test_a_batch_on_which_the_model_raises_is_left_out_with_a_note():
    data = [((torch.randint(30, (4, n)), torch.ones(1)), None) for n in (6, 1, 6)]
    diagnosis = quiet(Texts().eval(), data)
    assert "Batch 1 is left out, the model raised ValueError: too short" in diagnosis.notes
    assert len(diagnosis.table)


def test_what_was_measured_before_the_model_raises_is_kept():
    class Tired(nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            Tired.calls += 1
            if Tired.calls > 12:
                raise RuntimeError("tired")
            return self.layer(x)

    diagnosis = quiet(Tired(), [torch.randn(8, 4) for _ in range(3)])
    assert list(diagnosis.table["layer"]) == ["layer"]
    assert "left out" in diagnosis.notes[-1]


def test_an_unknown_kind_of_layer_is_skipped_with_the_reason():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return x @ self.matrix

    diagnosis = quiet(nn.Sequential(nn.Linear(4, 4), Own(), nn.LayerNorm(4)).eval(), [torch.randn(8, 4)])
    assert list(diagnosis.skipped["layer"]) == ["1"]
    assert "not what Own does with its matrix" in diagnosis.skipped["reason"][0]


def test_a_weight_that_is_not_finite_is_skipped_and_a_parametrized_one_is_not():
    from torch.nn.utils.parametrizations import weight_norm

    model = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)).eval()
    diagnosis = quiet(model, [torch.randn(8, 4)])
    assert set(diagnosis.table["layer"]) == {"0", "1"}
    assert hasattr(model[0], "parametrizations")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "holds no batch"),
        (iter([]), ValueError, "make a new generator if this one is used up"),
        (torch.ones(3, 16), TypeError, "put it in a list"),
        (4, TypeError, "iterable of batches"),
        ([(1, 2, 3)], TypeError, "3 parts"),
        ([torch.ones(0, 16)], ValueError, "empty"),
        ([torch.full((2, 16), math.nan)], ValueError, "NaN or infinity on batch 0"),
        ([torch.ones(2, 7)], ValueError, "raised on every batch: RuntimeError"),
    ],
)
def test_bad_data_are_refused_with_a_reason(chain, data, error, message):
    with pytest.raises(error, match=message):
        quiet(chain, data)


def test_other_bad_input_is_refused_with_a_reason(chain, inputs):
    with pytest.raises(TypeError, match=r"needs a torch\.nn\.Module, got int"):
        quiet(3, inputs)
    with pytest.raises(ValueError, match="no layer to quantize"):
        quiet(nn.Sequential(nn.ReLU()), inputs)
    with pytest.raises(ValueError, match="bits must be"):
        quiet(chain, inputs, bits=1)
    with pytest.raises(ValueError, match="weights must be"):
        quiet(chain, inputs, weights="row")
    with pytest.raises(ValueError, match=r"for groups: diagnose_weights\(model, data, group=64\)"):
        quiet(chain, inputs, weights="group")
    with pytest.raises(ValueError, match="keep_float: what is rounded has no layer"):
        quiet(chain, inputs).measure(Configuration(keep_float=("nothing",)))


def test_a_layer_that_gets_no_values_is_not_said_to_raise():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 4)

        def forward(self, x):
            return torch.vmap(self.layer)(x)

    with pytest.raises(ValueError, match=r"the model runs, .* watched at .*test_diagnosis.py:\d+: `return torch.vmap"):
        quiet(Mapped().eval(), [torch.randn(4, 16)])


def test_a_layer_that_gives_nan_names_itself():
    class Root(nn.Module):
        def forward(self, x):
            return (x - 1e9).sqrt()

    model = nn.Sequential(nn.Linear(4, 4), Root(), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=r"first in 1, Root"):
        quiet(model, [torch.ones(2, 4)])


def test_at_most_two_passes_for_each_layer_and_a_few_more(inputs):
    class Counted(Chain):
        runs = 0

        def forward(self, x):
            Counted.runs += 1
            return super().forward(x)

    quiet(Counted(depth=9).eval(), inputs)
    assert Counted.runs <= (2 * 9 + 8) * len(inputs)


def test_a_metric_of_ones_own_is_measured(chain, inputs):
    data = [(x, x.sum(dim=1)) for x in inputs]
    diagnosis = quiet(chain, data, metric=lambda output, labels: -float((output[:, 0] - labels).square().mean()))
    assert diagnosis.metric_name == "metric"
    with torch.no_grad():
        exact = sum(float((chain(x)[:, 0] - y).square().mean()) for x, y in data) / 2
    assert -diagnosis.float_metric == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            lambda out, y: (out.argmax(1) == y).float().mean(),
            "AttributeError: .* on batch 0, .* type dict and .* Tensor",
        ),
        (lambda out, y: out["logits"].argmax(1) == y, "[A-Z].*Error: .* on batch 0, .* type dict and .* Tensor"),
        (lambda out, y: (out["logits"][:, 0] - y.float()).mean(), "AttributeError: .* on batch 1, .* type NoneType"),
    ],
)
def test_a_metric_that_raises_says_on_what(metric, message):
    class Named(Chain):
        def forward(self, x):
            return {"logits": super().forward(x)}

    data = [(torch.randn(4, 16), torch.arange(4)), torch.randn(4, 16)]
    with pytest.raises(ValueError, match=rf"metric\(output, labels\) raised {message}"):
        quiet(Named().eval(), data, metric=metric)


def test_a_metric_that_raises_on_what_is_rounded_only_is_told_of(inputs):
    chain, calls = Chain().eval(), []

    def metric(output, labels):
        calls.append(output)
        if len(calls) > 2:
            raise ArithmeticError("no such value")
        return 1.0

    with pytest.raises(ValueError, match="rounded the model raises ArithmeticError: no such value"):
        quiet(chain, inputs, metric=metric)


def test_no_more_samples_than_asked_for_are_read(chain):
    def stream():
        for number in range(100):
            assert number < 5
            yield torch.randn(8, 16)

    diagnosis = quiet(chain, stream(), samples=32)
    assert "first 32 samples" in diagnosis.notes[0]


@pytest.fixture(scope="module")
def cluster():
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    with dask.config.set({"distributed.worker.multiprocessing-method": method}):
        distributed.utils.get_mp_context().set_forkserver_preload(["distributed", "qtutor.diagnosis"])  # once for both
        cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0")
        with cluster, distributed.Client(cluster) as client:
            yield client


@pytest.mark.parametrize("kind", [pytest.param(convolutional, marks=pytest.mark.system), Texts])
def test_two_processes_of_a_dask_cluster_give_the_same_table_to_the_last_bit(kind, cluster):
    data = {
        convolutional: [(torch.randn(16, 3, 8, 8), torch.arange(16) % 10) for _ in range(2)],
        Texts: [((torch.randint(30, (8, 6)), torch.ones(1)), None) for _ in range(2)],
    }[kind]
    model = kind().eval()
    alone = quiet(model, data)
    with joblib.parallel_config(backend="dask"):
        spread = quiet(model, data)
    assert spread.notes == alone.notes
    pd.testing.assert_frame_equal(alone.table, spread.table, check_exact=True)
    assert spread.measure(spread.recommended) == alone.measure(alone.recommended)
    assert len({os.getpid(), *cluster.run(os.getpid).values()}) == 3


def test_what_workers_need_is_sent_once_to_each(cluster, monkeypatch):
    sent = []
    reduce = trials._Share.__reduce__
    monkeypatch.setattr(trials._Share, "__reduce__", lambda share: sent.append(1) or reduce(share))
    with joblib.parallel_config(backend="dask"):
        quiet(Chain().eval(), [torch.randn(64, 16)])
    assert len(sent) <= 2


def test_a_class_that_workers_cannot_import_is_said_to_be_missing(cluster, inputs, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("from torch import nn\nclass Net(nn.Sequential): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import cloudpickle
    import only_here

    model = only_here.Net(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with joblib.parallel_config(backend="dask"):
        with pytest.raises(ValueError, match=r"nothing could be measured.*only_here"):
            quiet(model, inputs)
        cloudpickle.register_pickle_by_value(only_here)
        try:
            spread = quiet(model, inputs)
        finally:
            cloudpickle.unregister_pickle_by_value(only_here)
    pd.testing.assert_frame_equal(quiet(model, inputs).table, spread.table, check_exact=True)


def test_threads_give_the_same_table_of_a_transformer():
    model, data = Texts().eval(), [((torch.randint(30, (8, 6)), torch.ones(1)), None) for _ in range(2)]
    with joblib.parallel_config(backend="threading", n_jobs=3):
        spread = quiet(model, data)
    pd.testing.assert_frame_equal(quiet(model, data).table, spread.table, check_exact=True)
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_recommended_configuration_reaches_the_goal_and_is_applied_with_one_call(chain, inputs):
    plant(chain, "wide channel", chain.layers[1], chain.layers[2])
    data = [(x, chain(x).argmax(dim=1)) for x in inputs]
    diagnosis = quiet(chain, data)
    assert diagnosis.measure(diagnosis.recommended).metric >= diagnosis.float_metric - 0.01
    int8 = diagnosis.apply()
    agree = [(int8(x).argmax(dim=1) == y).float().mean() for x, y in data]
    assert min(agree) > 0.9
    assert int8(inputs[0]).shape == (32, 10)


@pytest.mark.parametrize("flow", ["fx", "pt2e"])
def test_weights_that_a_flow_leaves_in_floats_are_counted_as_such(flow):
    model = nn.Sequential(nn.Embedding(500, 32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    diagnosis = quiet(model, [torch.randint(500, (16, 4))])
    embedding = 500 * 32
    assert diagnosis.measure(diagnosis.recommended).bytes < 2 * embedding
    with pytest.warns(QuantizationWarning) as told:
        diagnosis.apply(flow)
    linear = 32 * 64 + 64 * 10 + 2 * 4 + (64 + 10) * 4  # codes, scales and biases
    made, promised = in_bytes(4 * embedding + linear), in_bytes(embedding + 4 + linear)
    said = f"take {made} where .* promised {promised}, for flow={flow!r}"
    assert [re.search(said, str(each.message)) is not None for each in told] == [False, True]


@pytest.mark.parametrize("repair", ["equalized", "bias_corrected"])
def test_a_repair_is_measured_against_the_given_model(chain, repair):
    chain.layers[1].weight.data *= torch.logspace(-1, 1, 32)[:, None]
    diagnosis = quiet(chain, [torch.rand(32, 16) for _ in range(2)], bits=4)
    repaired = Configuration(bits=4, **{repair: True})
    measured = diagnosis.measure(repaired).sqnr
    assert measured == pytest.approx(diagnosis.experiment.agreement(diagnosis.simulate(repaired)))
    assert measured > diagnosis.all_rounded.sqnr + 0.2


def test_what_no_flow_takes_is_simulated():
    data = [((torch.randint(30, (8, 6)), torch.ones(1)), None)]
    diagnosis = quiet(Texts().eval(), data)
    with pytest.raises(ValueError, match="flow='simulate'"):
        diagnosis.apply()
    rounded = diagnosis.apply(flow="simulate")
    given = diagnosis.measure(diagnosis.recommended).sqnr
    assert isinstance(rounded.model, Texts)
    assert set(rounded(*data[0][0])) == {"logits", "states", "length"}
    assert given > 10


def test_json_holds_all_layers_and_no_nan(chain, inputs, tmp_path):
    diagnosis = quiet(chain, inputs)
    diagnosis.to_json(tmp_path / "d.json")
    found = json.loads((tmp_path / "d.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert [row["layer"] for row in found["layers"]] == list(diagnosis.table["layer"])
    assert found["recommended"]["bits"] == 8


def test_the_report_is_one_page_that_asks_for_nothing(chain, inputs):
    page = report(quiet(chain, inputs))
    head = page.split("<script", 1)[0] + page.rsplit("</script>", 1)[1]
    assert "http" not in head
    for name in ("layers.0", "layers.4", "Recommended"):
        assert name in page


@settings(max_examples=examples(6))
@given(seed=st.integers(0, 1000), bits=st.integers(2, 8))
def test_fewer_bits_never_give_a_better_output(seed, bits):
    torch.manual_seed(seed)
    chain, x = Chain(depth=3).eval(), torch.randn(64, 16)
    coarse, fine = (quiet(chain, [x], bits=n).all_rounded.sqnr for n in (bits, bits + 2))
    assert coarse < fine


@pytest.mark.parametrize("hooked", [(), (nn.Conv2d,), (nn.BatchNorm2d,)])
def test_repeating_what_earlier_layers_gave_changes_nothing(hooked, monkeypatch):
    model, data = SlimResNet(8, classes=4).eval(), [torch.rand(8, 3, 16, 16) for _ in range(2)]
    for layer in model.modules():
        if isinstance(layer, hooked):
            layer.register_forward_hook(lambda layer, given, output: 1.5 * output)
    quick = quiet(model, data)
    monkeypatch.setattr(Simulation, "known", lambda *_: {})
    pd.testing.assert_frame_equal(quick.table, quiet(model, data).table)


def test_a_layer_that_reads_a_vector_is_measured_as_others_are():
    class PerRow(nn.Sequential):
        def forward(self, x):
            return torch.stack([super(PerRow, self).forward(row) for row in x])

    vectors, x = PerRow(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(16, 8)
    matrix = nn.Sequential(*vectors)
    columns = ["layer", "weight_worst", "activation_sqnr", "activation_worst", "bias_shift"]
    got, want = (quiet(model, [x]).table[columns] for model in (vectors, matrix))
    pd.testing.assert_frame_equal(got, want)


def test_a_channel_that_is_constant_but_for_round_off_does_not_count():
    constant, varies = torch.full((997,), 0.1), torch.randn(997)
    sums = ChannelSums()
    for _ in range(3):
        sums.add(torch.stack([constant, varies]), torch.stack([constant + 0.01, varies + 0.01]))
    assert sums.std[0] == 0
    assert sums.blur < 1e-3


def test_one_logit_for_each_label_is_no_class():
    rows = torch.randn(8, 16)
    notes = diagnose(nn.Linear(16, 1), [(rows, torch.ones(8).long())], progress=False).notes
    assert any("not one class for each row" in note for note in notes)


def test_a_set_of_layers_with_which_the_model_fails_reaches_nothing():
    def measure(configuration):
        if configuration.keep_float == ("odd",):
            raise ValueError("the model fails where all others are rounded")
        return Measured(30.0 if "even" in configuration.keep_float else 10.0, math.nan, 1)

    experiment = SimpleNamespace(layers=("odd", "even"), measure=measure)
    table = pd.DataFrame({"layer": ["even"], "harm": [-1.0]})
    assert fewest_in_float(experiment, Configuration(), Goal(), table, 8) == ("even",)
