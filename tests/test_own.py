"""The notebook for a model of one's own, run with models that it has not seen; and what it says of them."""

import math

from qtutor import cli, shipping, workflows
from qtutor.benchmark import accuracy
from qtutor.course import notebooks, own
from qtutor.diagnosis import diagnose

import nbformat
import pytest
import torch
from nbclient.exceptions import CellExecutionError
from torch import nn

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]

OWN = '''
import torch
from torch import nn


def block(width_in, width_out):
    return nn.Sequential(nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU())


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.pool, self.low = block(3, 8), nn.MaxPool2d(2), block(8, 16)
        self.up, self.high, self.head = nn.ConvTranspose2d(16, 8, 2, 2), block(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        wide = self.down(x)
        return self.head(self.high(torch.cat([wide, self.up(self.low(self.pool(wide)))], 1)))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.memory, self.tags = nn.Embedding(60, 24), nn.GRU(24, 96, batch_first=True), nn.Linear(96, 7)

    def forward(self, words):
        return self.tags(self.memory(self.words(words))[0])


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 32)
        self.layer, self.tags = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True), nn.Linear(32, 5)

    def forward(self, ids, mask):
        return {"logits": self.tags(self.layer(self.words(ids), src_key_padding_mask=~mask).mean(1))}


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x, mask):
        return self.second((self.first(x) + mask).softmax(-1))


def labelled(model, inputs):
    """With the classes that the float model chooses most of the time."""
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return inputs, (output["logits"] if isinstance(output, dict) else output).argmax(-1)


def unet():
    return UNet().eval(), [(torch.rand(4, 3, 16, 16), None) for _ in range(2)]


def tagger():
    """Trained for a moment, so that few of its tags are close to another."""
    model, batches = Tagger(), [(words := torch.randint(60, (16, 12)), words % 7) for _ in range(3)]
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for words, tags in 20 * batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(words).flatten(0, 1), tags.flatten()).backward()
        optimizer.step()
    return model.eval(), batches


def reader():
    model = Reader().eval()
    pairs = [{"ids": torch.randint(40, (16, 9)), "mask": torch.arange(9) < torch.randint(4, 10, (16, 1))}]
    return model, [labelled(model, named) for named in pairs]


def masked():
    mask = torch.zeros(6).masked_fill(torch.arange(6) > 3, -torch.inf)
    return Masked().eval(), [((torch.rand(5, 6), mask), None)]
'''


@pytest.fixture
def models(tmp_path, monkeypatch):
    """What is brought, by name."""
    (tmp_path / "brought.py").write_text(OWN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found: dict = {}
    exec(OWN, found)
    return found


def brings(name):
    """The cells after the first two, bringing another model, and with a short measurement."""
    cells = own.notebook().cells[3:]
    for cell in cells:
        cell.id = f"{name}-{cell.id}"
        if cell.id == f"{name}-{own.BRING}":
            cell.source = f"from brought import {name}\n\nmodel, batches = {name}()\nunseen = batches[:1]"
        cell.source = cell.source.replace("int8}, inputs)", "int8}, inputs, repeats=5)")
    return cells


def said(cells):
    texts = []
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        shown = output.get("data", {})
        texts.append(output.get("text") or shown.get("text/markdown") or shown.get("text/plain", ""))
    return "\n".join(texts)


@pytest.mark.slow
def test_it_runs_on_models_that_it_has_not_seen_and_stops_in_a_sentence_where_it_must(models, tmp_path):
    parts = {name: brings(name) for name in ("unet", "tagger", "reader", "masked")}
    first = own.notebook().cells[:2]
    notebook = nbformat.v4.new_notebook(cells=[*first, *(cell for cells in parts.values() for cell in cells)])
    nbformat.validate(notebook)
    with pytest.raises(CellExecutionError, match="Stopped here"):  # as a run of all cells stops
        notebooks.run(notebook, tmp_path)
    errors = {
        name: [out for cell in cells for out in cell.get("outputs", []) if out.output_type == "error"]
        for name, cells in parts.items()
    }
    assert [errors[name] for name in ("unet", "tagger", "reader")] == [[], [], []]
    (stopped,) = errors["masked"]
    assert stopped.traceback == [f"Stopped here. {stopped.evalue}"]
    assert "No way to integers takes this model. (1) static (FX): " in stopped.evalue
    assert "a mask of -inf has no scale" in stopped.evalue

    told = {name: said(cells) for name, cells in parts.items()}
    assert "no labels that are classes, so the SQNR of the output judges" in told["unet"]
    assert "Chosen: static (FX), the smallest that reaches the goal." in told["unet"]
    assert "Labels are classes, so accuracy judges: " in told["tagger"]
    assert (
        "flow='fx' leaves in floating point: words (Embedding); memory (GRU): quantize_dynamic takes it."
        in told["tagger"]
    )
    assert "Chosen: dynamic, the " in told["tagger"]
    assert "McNemar" in told["reader"]
    for name in ("unet", "tagger", "reader"):
        assert "Loaded again, it gives the same to the last bit." in told[name]
        assert "- **Time.** INT8 is " in told[name]
    outcome = (tmp_path / "shipped" / "outcome.md").read_text(encoding="utf-8")
    assert outcome.startswith("- **Layer.** ")
    shown = parts["reader"][-2].outputs[0].data
    assert shown["text/markdown"] == shown["text/plain"] == outcome
    assert {path.name for path in (tmp_path / "shipped").iterdir()} == {"model.qt", "outcome.md", "report.html"}


def test_the_notebook_is_valid_and_one_cell_is_its_owners():
    notebook = own.notebook()
    nbformat.validate(notebook)
    assert [cell.cell_type for cell in notebook.cells[:4]] == ["markdown", "code", "markdown", "code"]
    (bring,) = (cell for cell in notebook.cells if cell.id == own.BRING)
    assert {"model", "batches", "unseen"} == {line.split(" = ")[0] for line in bring.source.splitlines()}
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (compile(cell.source, cell.id, "exec") and "assert" not in cell.source)


def test_the_command_writes_it_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["own", "mine"]) == 0
    assert "Written: mine.ipynb" in capsys.readouterr().out
    assert nbformat.read("mine.ipynb", 4).cells == own.notebook().cells
    (tmp_path / "mine.ipynb").write_text("my work")
    assert cli.main(["own", "mine.ipynb"]) == 1
    assert "is there already, and stays as it is" in capsys.readouterr().err
    assert (tmp_path / "mine.ipynb").read_text() == "my work"
    assert cli.main(["own", "nowhere/mine.ipynb"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_the_smallest_way_that_reaches_the_goal_is_chosen(models):
    model, batches = models["reader"]()
    found = shipping.ways(diagnose(model, batches, progress=False))
    assert found.chosen in found.good
    assert all(found.measured[found.chosen].bytes <= found.measured[name].bytes for name in found.good)
    assert f"{found.measured[found.chosen].bytes:,} bytes" in found.sentence
    assert set(found.table().index) == set(found.said)


def test_a_metric_of_ones_own_judges_the_ways(models):
    model, batches = models["reader"]()
    calls = []

    def agreeing(output, labels):
        calls.append(output["logits"])
        return 40.0 + 2 * (output["logits"].argmax(1) == labels).double().mean()

    diagnosis = diagnose(model, batches, metric=agreeing, progress=False)
    assert shipping.brought(diagnosis).endswith("The metric that was given judges: 42 in float.")
    calls.clear()
    found = shipping.ways(diagnosis)
    assert len(calls) == len(batches) * len(found.measured)
    assert found.good
    assert set(found.table()["metric"]) <= {"", *(f"{got.metric:.4g}" for got in found.measured.values())}
    assert "misses the goal" not in found.sentence


def test_where_nothing_is_saved_that_is_said():
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    found = shipping.ways(diagnose(model, [torch.rand(9, 4)], progress=False))
    assert found.measured[found.chosen].bytes > 0.9 * found.float_bytes
    assert "saves little or nothing, so keep the float model." in found.sentence


def test_a_judgement_says_whose_data_it_is(models):
    model, batches = models["tagger"]()
    diagnosis = diagnose(model, batches, progress=False)
    with pytest.warns(UserWarning, match=r"leaves in floating point: words \(Embedding\)$"):
        int8 = workflows.quantize_dynamic(model)
    assert "On unseen data: " in shipping.judge(diagnosis, int8, batches[:1])
    assert "192 predictions" in shipping.judge(diagnosis, int8, batches[:1])
    flattered = shipping.judge(diagnosis, int8)
    assert "576 predictions" in flattered
    assert "keep some back as `unseen`" in flattered
    assert "without error" in shipping.judge(diagnosis, model)
    with pytest.raises(TypeError, match="unseen is an iterable of batches"):
        shipping.judge(diagnosis, int8, batches[0])


def test_a_model_that_answers_by_chance_is_refused():
    class Random(nn.Linear):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x))

    with pytest.raises(shipping.Stopped, match="another output each time"), shipping.in_a_sentence():
        diagnose(Random(4, 3), [torch.rand(8, 4)], progress=False)


def test_accuracy_takes_several_inputs_and_named_ones(models):
    model, batches = models["reader"]()
    assert accuracy(model, batches) == 1
    assert accuracy(model, [((*named.values(),), labels) for named, labels in batches]) == 1
    with pytest.raises(TypeError, match="got NoneType for labels"):
        accuracy(model, [(batches[0][0], None)])


def test_models_that_agree_say_so():
    linear = nn.Linear(3, 2)
    other = nn.Linear(3, 2)
    inputs = (torch.rand(2, 3),)
    assert shipping.same(linear, linear, inputs) == "the same to the last bit"
    assert shipping.same(linear, other, inputs).startswith("something else")
    assert math.isfinite(float(shipping.same(linear, other, inputs).split()[-2]))
