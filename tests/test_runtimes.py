"""Every runtime against the float model itself; what is missing, in words."""

import gc
import importlib.util
import os
import re
import sys

from qtutor import runtimes
from qtutor.benchmark import compare, size_bytes
from qtutor.machine import describe
from qtutor.runtimes.exported import Exported, Session
from qtutor.samples import SmallCNN
from qtutor.workflows import Unavailable, quantize_static

import pytest
import torch
from people import ENGINES
from torch import nn
from torch._dynamo.utils import counters

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:builtin type SwigPy:DeprecationWarning"),
]

NEEDS = {
    "ONNX Runtime FP32": ["onnxruntime", "onnx"],
    "ONNX Runtime INT8": ["onnxruntime", "onnx"],
    "OpenVINO FP32": ["openvino", "onnx"],
    "OpenVINO INT8": ["openvino", "nncf", "onnx"],
}


class TwoInputs(nn.Module):
    """Shares one ReLU, adds, and returns a dict."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.relu, self.head = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x, y):
        z = self.relu(self.left(x)) + self.relu(self.right(y))
        z = self.relu(z).mean((2, 3))
        return {"scores": self.head(z), "features": z}


def here(name):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package, reason=f'needs {package} (pip install "qtutor[runtimes]")')
    if name in ("torch.compile", "PT2E INT8") and not describe().can_compile:
        pytest.skip("needs a C++ compiler")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SmallCNN(8, 3).eval()


@pytest.fixture(scope="module")
def batches():
    return list(torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)).split(4))


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_a_runtime_computes_what_the_model_does_at_any_batch_size(name, network, batches):
    here(name)
    entry = runtimes.build(network, batches, [name])[name]
    assert entry.missing == ""
    for images in (batches[0], torch.cat(batches[:2])[:7]):
        with torch.inference_mode():
            expected, found = network(images), entry(images)
        assert found.shape == expected.shape
        assert found.dtype == torch.float32
        tolerance = 1e-5 if "FP32" in name or name in ("channels-last", "torch.compile") else 0.05
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_several_inputs_and_nested_outputs_keep_their_structure(name):
    here(name)
    torch.manual_seed(0)
    model, inputs = TwoInputs().eval(), (torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8))
    entry = runtimes.build(model, [(inputs, None)], [name])[name]
    assert entry.missing == ""
    found, expected = entry(*inputs), model(*inputs)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert (found[key] - value).abs().max() <= 0.08 * value.abs().max()


class AnySize(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x, shift):
        return self.head((self.convolution(x).relu() + shift).mean((2, 3)))


@pytest.mark.parametrize("name", NEEDS)
def test_sizes_that_differ_among_the_batches_are_free_and_others_are_named(name):
    here(name)
    torch.manual_seed(0)
    model, shift = AnySize().eval(), torch.tensor(0.5)
    calls = [(torch.rand(4, 3, *size, requires_grad=True), shift) for size in ((16, 8), (20, 8), (9, 8))]
    entry = runtimes.build(model, [(inputs, None) for inputs in calls], [name])[name]
    assert entry.missing == ""
    for x in (*(x for x, _ in calls), torch.rand(4, 3, 11, 8)):
        expected = model(x, shift)
        assert (entry(x, shift) - expected).abs().max() <= 0.05 * expected.abs().max()
    known = re.escape("takes inputs of shape (any, 3, any, 8) and (), and got ")
    with pytest.raises(ValueError, match=rf"{known}\(4, 3, 16, 9\) and .*: build it with a batch of that shape too"):
        entry(torch.rand(4, 3, 16, 9), shift)
    with pytest.raises(ValueError, match=rf"{known}\(3, 16, 8\) and \(\)$"):
        entry(torch.rand(3, 16, 8), shift)


def test_a_size_of_which_a_trace_keeps_the_number_is_told_of():
    here("ONNX Runtime FP32")

    class Folds(nn.Linear):
        def forward(self, x):
            return super().forward(x.reshape(int(x.shape[0] * x.shape[1]), 8))

    entries = runtimes.build(Folds(8, 4).eval(), [torch.rand(4, n, 8) for n in (5, 7)], ["ONNX Runtime FP32"])
    said = r"the file cannot take \(4, 7, 8\): where the model can, it makes a number of a size"
    assert re.search(said, entries["ONNX Runtime FP32"].missing)


def test_nothing_is_compiled_for_the_shapes_of_later_batches(network, batches):
    here("torch.compile")
    before = counters["stats"]["unique_graphs"]
    runtimes.build(network, [batches[0], batches[1][:3]], ["torch.compile"])
    assert counters["stats"]["unique_graphs"] == before + 1


def test_fx_int8_runs_without_python_and_computes_the_same_codes(network, batches):
    entry = runtimes.build(network, batches, ["FX INT8"])["FX INT8"]
    assert isinstance(entry.run, torch.jit.ScriptModule)
    quantized = quantize_static(network, [(batch, None) for batch in batches])
    for images in (batches[0], batches[1][:3]):
        assert torch.equal(entry(images), quantized(images))


@pytest.mark.parametrize("engine", ENGINES)
def test_fx_int8_computes_the_same_whatever_engine_is_set(engine, network, batches, monkeypatch):
    monkeypatch.setattr(torch.backends.quantized, "engine", engine)
    entry = runtimes.build(network, batches, names=["FX INT8"])["FX INT8"]
    assert torch.equal(entry(batches[0]), quantize_static(network, batches)(batches[0]))


def test_int8_and_bf16_are_smaller_by_their_factors():
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)).eval()
    entries = runtimes.build(model, [torch.rand(8, 512)])
    for name, entry in entries.items():
        if entry.run:
            factor = 4 if "INT8" in name else 2 if name == "BF16" else 1
            assert entry.size_bytes == pytest.approx(size_bytes(model) / factor, rel=0.1), name


def test_a_comparison_of_all_has_a_row_for_each(network, batches):
    table = compare(runtimes.build(network, batches), batches[0], repeats=2).table
    assert tuple(table.index) == runtimes.NAMES
    assert set(table.index[table["error"] != ""]) == set(runtimes.missing())
    assert table.loc[table["error"] == "", "size_mb"].notna().all()


@pytest.mark.parametrize("name", ["torch.compile", "PT2E INT8"])
def test_neither_inference_mode_nor_what_it_made_is_compiled_anew(name, network, batches):
    here(name)
    entry, graphs = runtimes.build(network, batches, [name])[name], counters["stats"]
    before = graphs["unique_graphs"]
    expected = entry(batches[0])
    with torch.inference_mode():
        assert torch.equal(entry(batches[0]), expected)
        assert torch.equal(entry(batches[0].clone()), expected)
    assert graphs["unique_graphs"] == before
    entry(batches[0][:3])
    assert graphs["unique_graphs"] == before + 1


@pytest.mark.parametrize("gone", [{"onnxruntime", "openvino"}, {"onnx"}])
def test_what_is_not_installed_says_how_to_get_it(gone, network, batches, monkeypatch):
    for package in ("onnxruntime", "onnx", "openvino", "nncf"):
        monkeypatch.delitem(sys.modules, package, raising=False)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    entries = runtimes.build(network, batches, ["eager FP32", *NEEDS])
    for name in NEEDS:
        assert 'pip install "qtutor[runtimes]"' in runtimes.missing()[name]
        with pytest.raises(Unavailable, match=r"needs .*\[runtimes\]"):
            entries[name](batches[0])
    table = compare(entries, batches[0], repeats=1).table
    assert (table["error"] != "").tolist() == [False, True, True, True, True]


def test_without_a_compiler_the_compiled_rows_say_so(network, batches, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    entries = runtimes.build(network, batches, ["torch.compile", "PT2E INT8", "FX INT8"])
    assert [name for name, entry in entries.items() if "needs a C++ compiler" in entry.missing] == [
        "torch.compile",
        "PT2E INT8",
    ]
    assert entries["FX INT8"].run


def test_a_model_that_a_runtime_cannot_take_leaves_the_others_alone(batches):
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    entries = runtimes.build(Branches().eval(), batches, ["eager FP32", "FX INT8"])
    assert entries["eager FP32"].run
    assert "FX INT8 cannot take this model" in entries["FX INT8"].missing


class WithNone(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return None, {"scores": self.head(x), "loss": None}


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_none_in_an_output_comes_back(name):
    here(name)
    model, x = WithNone().eval(), torch.randn(4, 8)
    entry = runtimes.build(model, [x], [name])[name]
    assert entry.missing == ""
    first, found = entry(x)
    assert first is None
    assert found["loss"] is None
    assert (found["scores"] - model(x)[1]["scores"]).abs().max() < 0.1


class Branches(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.head, self.by = nn.Linear(8, 4), by

    def forward(self, x):
        return self.head(x) if self.by(x) else -self.head(x)


@pytest.mark.parametrize("name", ["ONNX Runtime FP32", "ONNX Runtime INT8", "OpenVINO FP32"])
@pytest.mark.parametrize(
    ("by", "other"), [(lambda x: x.mean() > 0, -torch.ones(4, 5, 8)), (lambda x: x.shape[1] < 6, torch.ones(4, 7, 8))]
)
def test_a_branch_that_a_trace_lost_is_told_of(name, by, other):
    here(name)
    x = torch.rand(4, 5, 8)
    entry = runtimes.build(Branches(by).eval(), [x, other], [name])[name]
    said = rf"{name} computes another function, .* -?\d+\.\d dB only: .*a trace keeps one branch, and torch.where both"
    assert re.match(said, entry.missing)
    with pytest.raises(Unavailable, match="computes another function"):
        entry(x)


class Output(dict):
    """What PyTorch does not look into."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize("name", NEEDS)
@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (lambda x, y: [Output(y=y)], "forward returns tensors in a class of its own, Output: return a tuple or a dict"),
        (lambda x, y: (y, x.shape[1]), "forward returns 5 for one batch and 7 for another"),
    ],
)
def test_what_would_stay_as_it_was_for_the_first_batch_is_refused(name, gives, message):
    here(name)

    class Gives(nn.Linear):
        def forward(self, x):
            return gives(x, super().forward(x))

    entry = runtimes.build(Gives(8, 4).eval(), [torch.rand(4, 5, 8), torch.rand(4, 7, 8)], [name])[name]
    assert re.search(message, entry.missing)


def test_the_given_model_stays_as_it_was(batches):
    model = SmallCNN(8, 3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runtimes.build(model, batches, ["eager FP32", "channels-last", "BF16", "FX INT8"])
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.is_contiguous()


def test_sessions_follow_pytorchs_number_of_threads(network, batches, tmp_path):
    here("ONNX Runtime FP32")
    runtimes.export_onnx(network, (batches[0],), tmp_path / "net.onnx")
    run, before = runtimes.onnx_session(tmp_path / "net.onnx"), torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            assert (run(batches[0])[0] - network(batches[0])).abs().max() < 1e-5
    finally:
        torch.set_num_threads(before)


def test_a_session_that_cannot_start_says_why_each_time():
    def start(threads):
        raise ValueError("no memory")

    session = Session(start, 0)
    for _ in range(2):
        with pytest.raises(ValueError, match="no memory"):
            session(torch.ones(1))


def test_a_file_that_was_not_written_to_its_end_is_written_anew(network, batches, monkeypatch):
    def breaks(model, inputs, path, batches):
        path.write_bytes(b"a part")
        raise OSError("no space left on device")

    shared = Exported(network, [(x,) for x in batches])
    with monkeypatch.context() as patched:
        patched.setattr("qtutor.runtimes.exported.export_onnx", breaks)
        with pytest.raises(OSError, match="no space"):
            _ = shared.onnx
    assert shared.onnx.read_bytes() != b"a part"


def test_unsigned_activations_leave_no_convolution_in_float(network, batches, tmp_path):
    here("ONNX Runtime INT8")
    runtimes.export_onnx(network, (batches[0],), tmp_path / "float.onnx")
    given = [(x,) for x in batches]
    runtimes.quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", given, unsigned=True)
    counts = runtimes.onnx_operators(tmp_path / "int8.onnx")
    assert counts["QLinearConv"] == 4
    assert "Conv" not in counts
    assert runtimes.onnx_operators(tmp_path / "float.onnx")["Conv"] == 4


@pytest.mark.parametrize("name", runtimes.RECORDED)
def test_a_record_is_a_comparison_that_says_where_and_when(name):
    comparison = runtimes.recorded(name)
    assert re.match(r"RECORDED on \d{4}-\d\d-\d\d, on .+, and not measured here", str(comparison))
    assert comparison._repr_html_().startswith("<p>RECORDED")
    assert comparison.confidence == 0.99
    assert not comparison.table["error"].any()
    for entry in comparison.times:
        assert comparison.finding(entry).endswith(", as recorded.")


def test_the_records_hold_what_the_lesson_shows():
    assert tuple(runtimes.recorded("every runtime").table.index) == runtimes.NAMES
    assert runtimes.recorded("every runtime").table["accuracy"].between(0.9, 1).all()
    operators = runtimes.recorded_operators()
    assert operators.columns.tolist() == runtimes.recorded("ONNX Runtime").table.index.tolist()
    assert operators["unsigned"].get("Conv", 0) == 0
    with pytest.raises(ValueError, match="there is no record 'another'"):
        runtimes.recorded("another")


def test_the_files_go_when_the_entries_do(network, batches, tmp_path, monkeypatch):
    here("ONNX Runtime FP32")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    entries = runtimes.build(network, batches, ["ONNX Runtime FP32"])
    assert os.listdir(tmp_path)
    entries["ONNX Runtime FP32"](batches[0])
    del entries
    gc.collect()
    assert os.listdir(tmp_path) == []


def test_nothing_is_reported_over_the_network(network, batches):
    here("OpenVINO INT8")
    runtimes.build(network, batches, ["OpenVINO INT8"])
    from nncf.telemetry.wrapper import telemetry

    assert type(telemetry).__name__ == "MagicMock"
    assert "NNCF_CI" not in os.environ


@pytest.mark.parametrize(
    ("model", "data", "names", "error", "message"),
    [
        (torch.abs, [torch.rand(2, 3)], None, TypeError, r"needs a torch\.nn\.Module, got builtin"),
        (nn.Linear(3, 2), [], None, ValueError, "calibration_data holds no batch"),
        (nn.Linear(3, 2), torch.rand(2, 3), None, TypeError, "an iterable of batches, got one batch"),
        (nn.Linear(3, 2), [torch.rand(2, 3)], ["eager"], ValueError, "no runtime 'eager': choose from eager FP32"),
    ],
)
def test_bad_input_is_refused_in_words(model, data, names, error, message):
    with pytest.raises(error, match=message):
        runtimes.build(model, data, names)
