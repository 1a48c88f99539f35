import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import pickle
import re
import subprocess
import sys
from types import SimpleNamespace
from urllib.error import URLError

from qtutor import manifest, samples
from qtutor.affine import choose_qparams, fake_quantize

import numpy as np
import pytest
import torch
from torch import nn

# The recipe is the same in all kernels: in the last batch they wait for a file, if there is a name of one.
RECIPE = """
import time
from pathlib import Path
import torch
from torch import nn
from qtutor import samples

class Patient(samples.Split):
    def __getitem__(self, index):
        if len(index) == 16:  # the last batch
            print("in training", flush=True)
            while awaited and not Path(awaited).exists():
                time.sleep(0.02)
        return super().__getitem__(index)

def data():
    torch.manual_seed(5)
    split = Patient(torch.rand(80, 1, 8, 8), torch.arange(80) % 10)
    return samples.Images(split, split, split)

def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

recipe = samples.Recipe(model, data, epochs=1)
"""

# A kernel of its own; argv[1] names the file.
KERNEL = f"""
import sys
awaited = sys.argv[1]
{RECIPE}
samples.RECIPES["tiny"] = recipe
print(samples.prepare(["tiny"])["tiny"], flush=True)
print(samples.trained("tiny").state_dict()["1.weight"].tolist(), flush=True)
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """So small a network trains no faster on two, and much slower when something else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("QTUTOR_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def tiny(monkeypatch):
    """A recipe that takes an instant; its dropout draws random numbers, which must not be seen outside."""

    def data():
        images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        split = samples.Split(images, torch.arange(40) % 10)
        return samples.Images(split, split, split)

    recipe = samples.Recipe(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)), data, epochs=2)
    monkeypatch.setitem(samples.RECIPES, "tiny", recipe)
    return recipe


@pytest.fixture
def no_training(monkeypatch):
    def train(*_, **__):
        raise AssertionError("trained again")

    return lambda: monkeypatch.setattr(samples.keeping, "train", train)


@pytest.fixture
def undisturbed():
    """The caller's random numbers are the same before and after."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def flowers():
    return samples.flowers()


@pytest.fixture(scope="module")
def depthwise():
    """A depthwise network, trained for about a second, and what to test it on."""
    data, recipe = samples.digits(), samples.RECIPES["digits_depthwise"]
    return samples.train(recipe.untrained(), data.train, epochs=12, max_lr=recipe.max_lr), data.test


def parts(data):
    return data.train, data.validation, data.test


def accuracy(model, split):
    with torch.no_grad():
        return (model(split.images).argmax(1) == split.labels).float().mean().item()


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def kernel(awaited):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KERNEL, str(awaited)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def this_kernel(monkeypatch):
    """The process of the tests as another kernel, which knows the same recipe."""
    found = {"awaited": ""}
    exec(RECIPE, found)
    monkeypatch.setitem(samples.RECIPES, "tiny", found["recipe"])


def test_digits_are_those_of_scikit_learn_in_its_stratified_splits():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    rest, test = train_test_split(range(1797), test_size=597, stratify=bunch.target, random_state=0)
    train, validation = train_test_split(rest, test_size=200, stratify=bunch.target[rest], random_state=0)
    for split, places in zip(parts(samples.digits()), (train, validation, test), strict=True):
        assert np.array_equal(16 * split.images[:, 0].numpy(), bunch.images[places])
        assert np.array_equal(split.labels.numpy(), bunch.target[places])


@pytest.mark.parametrize(("load", "shape"), [(samples.digits, (1, 8, 8)), (samples.flowers, (3, 32, 32))])
def test_data_are_float_images_from_0_to_1_the_same_at_every_call(load, shape, undisturbed):
    first, second = load(), load()
    for one, other in zip(parts(first), parts(second), strict=True):
        assert one.images.shape == (len(one), *shape)
        assert one.images.dtype == torch.float32
        assert one.labels.dtype == torch.int64
        assert one.images.aminmax() == (0, 1)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        one.images.zero_()
        assert other.images.any(), "what one caller does to the images must not reach another"


def test_each_split_of_digits_holds_the_digits_in_proportion():
    data = samples.digits()
    total = sum(torch.bincount(split.labels, minlength=10) for split in parts(data))
    for split in parts(data):
        expected = total * len(split) / 1797
        assert (torch.bincount(split.labels, minlength=10) - expected).abs().max() <= 1.5


def test_flowers_are_balanced_in_every_split(flowers):
    for split, each in zip(parts(flowers), (500, 100, 200), strict=True):
        assert torch.bincount(split.labels).tolist() == [each] * len(samples.FLOWER_NAMES)


def test_flowers_are_8_bit_images_all_different(flowers):
    levels = flowers.test.images * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert len(levels.round().to(torch.uint8).flatten(1).unique(dim=0)) == len(levels)


def test_flowers_have_the_petals_that_their_labels_say(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, 0.5))
    monkeypatch.setattr(torch, "randn", lambda shape, generator: torch.zeros(shape))
    labels = torch.arange(len(samples.FLOWER_NAMES))
    size, angle = 256, torch.linspace(0, 2 * torch.pi, 361)[:-1]
    red, green, _ = samples.data._draw_flowers(labels, None, size).int().unbind(1)
    is_petal = red > green

    def ring(radius):
        column, row = (((1 + radius * wave) / 2 * (size - 1)).round().long() for wave in (angle.cos(), angle.sin()))
        return is_petal[:, row, column]  # (classes, angles)

    petals = (ring(0.5) & ~ring(0.5).roll(1, dims=1)).sum(1)
    assert petals.tolist() == [int(name.split()[0]) for name in samples.FLOWER_NAMES]
    tips = ring(0.62).float().mean(1)
    assert [name.split()[1] for name in samples.FLOWER_NAMES] == ["round", "pointed"] * 5
    assert (tips[::2] > tips[1::2]).all()


def test_batches_cover_the_split_in_order_without_copying(flowers):
    split = flowers.validation
    batches = split.batches(300)
    assert [len(labels) for _, labels in batches] == [300, 300, 300, 100]
    assert torch.equal(torch.cat([images for images, _ in batches]), split.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
    assert batches[0][0].data_ptr() == split.images.data_ptr()


def test_a_data_loader_takes_a_split(flowers):
    images, labels = next(iter(torch.utils.data.DataLoader(flowers.test, batch_size=7)))
    assert torch.equal(images, flowers.test.images[:7])
    assert torch.equal(labels, flowers.test.labels[:7])


@pytest.mark.parametrize("name", samples.RECIPES)
def test_every_network_traces_takes_one_image_and_calls_no_module_twice(name):
    model = samples.RECIPES[name].untrained().eval()
    images = torch.rand(3, 1, 8, 8) if name.startswith("digits") else torch.rand(3, 3, 32, 32)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(traced(images), expected)
        torch.testing.assert_close(model(images[:1]), expected[:1])
    assert expected.shape == (3, 10)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert len(called) == len(set(called))


def test_planted_channels_are_dead_and_folding_blows_their_filters_up(depthwise):
    model, test = depthwise
    layers = list(model.features)
    inputs, planted = test.images, 0
    for before, after in itertools.pairwise(layers):
        with torch.no_grad():
            inputs = before(inputs)
        if after.conv.groups > 1:
            factor = after.bn.weight.double() / (after.bn.running_var.double() + after.bn.eps).sqrt()
            assert not inputs[:, 0].any()
            assert factor[0].abs() > 10 * factor[1:].abs().median()
            planted += 1
    assert planted >= 3


def test_one_scale_per_tensor_ruins_the_depthwise_network_and_one_per_channel_does_not(depthwise):
    model, test = depthwise
    plain = accuracy(model, test)
    result = {}
    for axes in ((0, 1, 2, 3), (1, 2, 3)):
        folded = samples.RECIPES["digits_depthwise"].untrained().eval()
        for block, source in zip(folded.features, model.features, strict=True):
            bn = source.bn
            factor = (bn.weight / (bn.running_var + bn.eps).sqrt()).detach()
            weight = source.conv.weight.detach() * factor.view(-1, 1, 1, 1)
            limit = weight.abs().amax(axes, keepdim=True)
            block.conv = _like(source.conv, fake_quantize(weight, choose_qparams(-limit, limit, symmetric=True)))
            block.conv.bias = nn.Parameter(bn.bias.detach() - bn.running_mean * factor)
            block.bn = nn.Identity()
        folded.classifier.load_state_dict(model.classifier.state_dict())
        result[len(axes)] = accuracy(folded, test)
    assert plain > 0.9
    assert result[4] < 0.3
    assert result[3] > plain - 0.02


def _like(conv, weight):
    """The same convolution with another weight."""
    copy = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, 1, conv.groups)
    copy.weight = nn.Parameter(weight)
    return copy


def test_training_repeats_itself_and_leaves_the_callers_random_numbers_alone(tiny, undisturbed):
    models = [samples.train(tiny.untrained(), tiny.data().train, epochs=2) for _ in range(2)]
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(tiny.untrained()))
    assert not any(module.training for module in models[0].modules())


def test_a_model_can_be_asked_for_where_gradients_are_off(tiny):
    with torch.no_grad():
        assert not torch.equal(weights(samples.trained("tiny")), weights(tiny.untrained()))


def test_a_model_is_trained_once_and_each_call_gives_a_copy(tiny, no_training, undisturbed):
    first = samples.trained("tiny")
    no_training()
    kept = weights(first)
    nn.init.zeros_(first[2].weight)
    second = samples.trained("tiny")
    assert torch.equal(weights(second), kept)
    assert not second.training


def _other_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Linear(12, 10))


@pytest.mark.parametrize("change", [{"epochs": 3}, {"max_lr": 1e-3}, {"version": 2}, {"model": _other_model}])
def test_a_changed_recipe_does_not_load_the_old_weights(tiny, monkeypatch, no_training, change):
    samples.trained("tiny")
    no_training()
    monkeypatch.setitem(samples.RECIPES, "tiny", dataclasses.replace(tiny, **change))
    with pytest.raises(AssertionError, match="trained again"):
        samples.trained("tiny")


def test_a_damaged_copy_is_trained_again_and_said_in_one_line(tiny, home, capsys):
    kept = weights(samples.trained("tiny"))
    (path,) = (home / "cache").glob("*.pt")
    path.write_bytes(path.read_bytes()[:500])
    assert torch.equal(weights(samples.trained("tiny")), kept)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_interrupted_training_leaves_nothing_and_can_be_repeated(tiny, home, monkeypatch):
    def interrupted(self, index):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(samples.Split, "__getitem__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            samples.trained("tiny")
    assert not [path for path in (home / "cache").iterdir() if path.suffix != ".lock"]
    assert samples.prepare(["tiny"]) == {"tiny": "built"}


def test_a_kept_file_cannot_run_code(tiny, home):
    samples.trained("tiny")
    (path,) = (home / "cache").glob("*.pt")
    buffer = io.BytesIO()
    torch.save({"weight": print}, buffer)
    path.write_bytes(hashlib.sha256(buffer.getvalue()).hexdigest().encode() + b"\n" + buffer.getvalue())
    with pytest.raises(pickle.UnpicklingError):
        samples.trained("tiny")


@pytest.mark.parametrize("ask", [samples.trained, lambda name: samples.prepare(["digits_cnn", name])])
def test_an_unknown_name_is_refused_before_any_training_and_the_known_are_listed(ask, no_training):
    no_training()
    with pytest.raises(ValueError, match="'digits_cn': choose one of digits_cnn, "):
        ask("digits_cn")


def test_prepare_builds_what_is_missing_and_finds_the_rest(tiny, monkeypatch):
    monkeypatch.setattr(samples.keeping, "RECIPES", {"tiny": tiny, "other": dataclasses.replace(tiny, epochs=1)})
    monkeypatch.setattr(manifest, "models", lambda: iter(["tiny", "other"]))
    assert samples.prepare(["tiny"]) == {"tiny": "built"}
    assert samples.prepare() == {"tiny": "found", "other": "built"}
    assert samples.prepare("tiny") == {"tiny": "found"}
    assert samples.prepare([]) == {}


def test_where_nothing_can_be_written_models_are_trained_once_a_session(tiny, home, monkeypatch, no_training, capsys):
    (home / "file").write_bytes(b"")
    monkeypatch.setenv("QTUTOR_HOME", str(home / "file"))
    assert samples.prepare(["tiny"]) == {"tiny": "not kept"}
    no_training()
    samples.trained("tiny")
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.slow
def test_a_kernel_killed_in_training_leaves_nothing_and_the_next_prepares(home, this_kernel, capsys):
    with kernel(home / "never") as killed:
        assert killed.stdout.readline() == "in training\n"
        killed.kill()
    assert not list((home / "cache").glob("*.pt"))
    assert samples.prepare(["tiny"]) == {"tiny": "built"}
    assert capsys.readouterr().out == "in training\n"


@pytest.mark.slow
def test_of_two_kernels_at_once_one_trains_and_both_have_the_same_weights(home, this_kernel):
    class Resuming(io.StringIO):
        def write(self, text):
            (home / "resume").touch()
            return super().write(text)

    with kernel(home / "resume") as first:
        assert first.stdout.readline() == "in training\n"
        with contextlib.redirect_stdout(Resuming()) as said:
            assert samples.prepare(["tiny"]) == {"tiny": "found"}
        assert said.getvalue() == "Another kernel is making tiny: waiting for it.\n"
        assert first.stdout.readline() == "built\n"
        weight = first.stdout.readline()
        assert weight.startswith("[[")
        assert f"{samples.trained('tiny').state_dict()['1.weight'].tolist()}\n" == weight


@pytest.fixture
def offline(monkeypatch):
    """No way out, whoever asks."""

    def refuse(*_, **__):
        raise URLError("no way out")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", os.environ["QTUTOR_HOME"])


def test_the_real_flowers_say_how_to_get_them(home):
    with pytest.raises(RuntimeError, match=r"Flowers102 are not in .*download=True.*or use flowers\(\)") as caught:
        samples.flowers102()
    assert str(home) in str(caught.value)


@pytest.mark.parametrize(
    "fetch", [lambda: samples.flowers102(download=True), samples.pretrained_resnet18], ids=["flowers102", "resnet18"]
)
def test_a_download_without_a_network_fails_in_one_sentence(offline, fetch):
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(no way out\): try again while online, or use"):
        fetch()


def test_the_real_flowers_load_from_their_files(home, monkeypatch):
    from PIL import Image
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder = home / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 7):
        Image.new("RGB", (300, 260), (40 * number, 0, 0)).save(folder / "jpg" / f"image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": [11, 12, 13, 14, 15, 16]})
    savemat(folder / "setid.mat", {"trnid": [2, 1], "valid": [3, 4], "tstid": [5, 6]})
    files = {
        key: (file, hashlib.md5((folder / file).read_bytes()).hexdigest() if (folder / file).exists() else None)
        for key, (file, _) in Flowers102._file_dict.items()
    }
    monkeypatch.setattr(Flowers102, "_file_dict", files)
    data = samples.flowers102()
    assert [[label for _, label in part] for part in parts(data)] == [[11, 10], [12, 13], [14, 15]]
    image, _ = data.train[0]
    assert image.shape == (3, 224, 224)
    # Channel 0 is 80 / 255, less ImageNet's mean, over its standard deviation; JPEG is off by a step or two.
    torch.testing.assert_close(image[0].mean().item(), (80 / 255 - 0.485) / 0.229, atol=0.05, rtol=0)


def test_pretrained_weights_load_from_their_file_and_damage_is_said(offline, home):
    from torchvision.models import ResNet18_Weights, resnet18

    file = home / "hub" / "checkpoints" / os.path.basename(ResNet18_Weights.IMAGENET1K_V1.url)
    file.parent.mkdir(parents=True)
    expected = resnet18(weights=None)
    torch.save(expected.state_dict(), file)
    model = samples.pretrained_resnet18()
    assert torch.equal(weights(model), weights(expected))
    assert not model.training
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RuntimeError, match=re.escape(f"are damaged: delete {file} and call again, or use")):
        samples.pretrained_resnet18()


def test_a_real_encoder_is_asked_for_in_one_sentence_and_loads_where_it_is(tmp_path, monkeypatch):
    from qtutor.samples import downloads

    monkeypatch.setattr(downloads, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps Resemblyzer"):
        downloads.speaker_encoder()
    monkeypatch.setattr(downloads, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[tmp_path]))
    made = downloads.SpeakerEncoder()
    weights = {**made.state_dict(), "similarity_bias": torch.zeros(1)}
    torch.save({"step": 1, "model_state": weights}, tmp_path / "pretrained.pt")
    found = downloads.speaker_encoder()
    spectra = torch.rand(2, 5, 40)
    assert torch.equal(found(spectra), made.eval()(spectra))
    assert torch.allclose(found(spectra).norm(dim=1), torch.ones(2))
    (tmp_path / "pretrained.pt").write_bytes(b"no weights")
    with pytest.raises(RuntimeError, match="install Resemblyzer again"):
        downloads.speaker_encoder()
