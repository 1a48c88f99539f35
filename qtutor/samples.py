"""The data and the models that the lessons use: offline by default, made once, the same every time.

Data come from scikit-learn (real handwritten digits) or from a formula (flowers); the real download
is opt-in. A model is trained on this computer the first time it is asked for, which takes seconds,
and kept by `qtutor.course.storage`. Training draws from its own random numbers and leaves the caller's
alone. On one computer it gives the same weights again; another number of threads or another
processor adds floats in another order, so a few predictions may differ from machine to machine.
"""

import hashlib
import io
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

from qtutor import vision  # noqa: F401  vision makes torchvision importable
from qtutor.course import storage

import torch
from torch import Tensor, nn

PETALS = (3, 4, 5, 6, 8)
FLOWER_NAMES = tuple(f"{count} {shape} petals" for count in PETALS for shape in ("round", "pointed"))


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels; also a map-style dataset, so a `DataLoader` takes it.

    Attributes:
        images: `(N, channels, height, width)` float32 in [0, 1].
        labels: `(N,)` int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | slice) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def batches(self, size: int = 256) -> list[tuple[Tensor, Tensor]]:
        """Cut into `(images, labels)` batches, in order; the last may be smaller. Views: nothing is copied."""
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))


@dataclass(frozen=True)
class Images:
    """One task: train on `train`, choose on `validation`, report `test` once."""

    train: Split
    validation: Split
    test: Split


def digits() -> Images:
    """Return scikit-learn's 1797 real handwritten digits: 1000 to train, 200 to validate, 597 to test.

    Images are `(1, 8, 8)`. Every split holds each digit in the same proportion, always the same images.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.float32).unsqueeze(1) / 16  # (N, 1, 8, 8)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    rest, test = train_test_split(range(len(labels)), test_size=597, stratify=labels, random_state=0)
    train, validation = train_test_split(rest, test_size=200, stratify=labels[rest], random_state=0)
    return Images(*(Split(images[part], labels[part]) for part in (train, validation, test)))


def flowers() -> Images:
    """Draw 8000 flowers by formula: 5000 to train, 1000 to validate, 2000 to test.

    Images are `(3, 32, 32)` with 8-bit values, as a photograph has. A class is a number of petals and
    their shape (`FLOWER_NAMES`), as many of each; colour, place, size, turn, light and noise are
    random, always the same.
    """
    images, labels = _flowers()
    parts = zip(images.split([5000, 1000, 2000]), labels.split([5000, 1000, 2000]), strict=True)
    return Images(*(Split(image / 255, label.clone()) for image, label in parts))


@lru_cache(maxsize=1)
def _flowers() -> tuple[Tensor, Tensor]:
    """All flowers as uint8: a quarter of the memory, and the caller's own floats cannot spoil them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8000) % len(FLOWER_NAMES)
    return torch.cat([_draw_flowers(part, generator) for part in labels.split(500)]), labels


def _draw_flowers(labels: Tensor, generator: torch.Generator, size: int = 32) -> Tensor:
    """`(N, 3, size, size)` uint8 flowers of the given classes."""

    def pick(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), 1, 1, 1, generator=generator)  # (N, 1, 1, 1)

    def colour(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
        sector = torch.tensor([0.0, 4.0, 2.0]).view(1, 3, 1, 1)
        return value * (1 - saturation * (1 - (((hue * 6 + sector) % 6 - 3).abs() - 1).clamp(0, 1)))  # (N, 3, 1, 1)

    def cover(depth: Tensor) -> Tensor:
        return torch.sigmoid(1.2 * size * depth)  # 1 inside, 0 outside, smooth over about a pixel

    petals = torch.tensor(PETALS)[labels // 2].view(-1, 1, 1, 1)
    pointed = (labels % 2 == 1).view(-1, 1, 1, 1)
    axis = torch.linspace(-1, 1, size)
    x, y = axis.view(1, 1, 1, -1) - pick(-0.22, 0.22), axis.view(1, 1, -1, 1) - pick(-0.22, 0.22)
    turn, tilt = pick(0, 2 * math.pi), pick(0.7, 1)
    x, y = x * turn.cos() + y * turn.sin(), (y * turn.cos() - x * turn.sin()) / tilt
    radius, reach = x.hypot(y), pick(0.55, 0.95)

    # Every pixel turns into the frame of its nearest petal: `along` it from 0 to 1, `across` it from the middle.
    sector = 2 * math.pi / petals
    angle = torch.remainder(torch.atan2(y, x) - pick(0, 2 * math.pi), sector) - sector / 2
    along, across = radius * angle.cos() / reach, (radius * angle.sin() / reach).abs()
    t = along.clamp(0, 1)
    outline = torch.where(pointed, 3.4 * t**0.8 * (1 - t), 2 * (t * (1 - t)).sqrt() * (0.55 + 0.45 * t))
    half_width = (0.62 * (sector / 2).sin()).clamp(max=0.42) * pick(0.85, 1.1)
    depth = torch.minimum(outline * half_width - across, 1 - along)

    hue = pick(0.68, 1.19)  # from violet through red to yellow: never the green of the leaves
    tip = colour(hue, pick(0.1, 0.85), pick(0.8, 1.0))
    base = colour(hue + pick(-0.12, 0.12), pick(0.3, 0.95), pick(0.6, 1.0))
    crease = 1 - 0.25 * torch.exp(-((across / half_width * 5.5) ** 2))
    rim = 0.72 + 0.28 * torch.sigmoid(9 * depth / half_width - 1.5)
    heart = pick(0.13, 0.2) * reach
    pollen = colour(pick(0.08, 0.17), pick(0.7, 1.0), pick(0.45, 1.0)) * (1.15 - 0.45 * (radius / heart).clamp(max=1))

    leaves = 1 + 0.35 * torch.sin(pick(2, 6) * x + pick(0, 6)) * torch.sin(pick(2, 6) * y + pick(0, 6))
    shade = 1 - 0.35 * torch.sigmoid(size / 4 * (0.7 * reach - radius))
    image = colour(pick(0.22, 0.42), pick(0.35, 0.75), pick(0.25, 0.6)) * leaves * shade
    image = image.lerp((base + (tip - base) * t) * crease * rim, cover(depth * reach))
    image = image.lerp(pollen, cover(heart - radius))
    image = image * (1 + pick(0, 0.4) * x) * pick(0.75, 1.15)
    image = image + 0.06 * torch.randn(image.shape, generator=generator)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _conv_bn_relu(inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, groups: int = 1, eps: float = 1e-5):
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs, eps=eps), relu=nn.ReLU()))


class _Classifier(nn.Module):
    """`features`, mean over the image, one linear layer: `(N, channels, H, W)` -> `(N, classes)`."""

    def __init__(self, features: nn.Sequential, width: int, classes: int):
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


class SmallCNN(_Classifier):
    """Four convolutions, each with batch norm and ReLU: the smallest network with all that fusion needs."""

    def __init__(self, width: int = 16, channels: int = 1, classes: int = 10):
        features = nn.Sequential(
            _conv_bn_relu(channels, width),
            nn.MaxPool2d(2),
            _conv_bn_relu(width, 2 * width),
            nn.MaxPool2d(2),
            _conv_bn_relu(2 * width, 4 * width),
            _conv_bn_relu(4 * width, 4 * width),
        )
        super().__init__(features, 4 * width, classes)


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = _conv_bn_relu(inputs, outputs, stride=stride)
        self.second = _conv_bn_relu(outputs, outputs)[:2]  # its ReLU comes after the sum
        self.shortcut = nn.Identity() if stride == 1 else _conv_bn_relu(inputs, outputs, 1, stride=stride)[:2]
        self.relu = nn.ReLU()  # a second one: PT2E cannot quantize a module that is called twice

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.second(self.first(x)) + self.shortcut(x))


class SlimResNet(_Classifier):
    """A ResNet of three stages of two residual blocks: sums join tensors of two scales."""

    def __init__(self, width: int = 16, channels: int = 3, classes: int = 10):
        stages = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        blocks = [block for n, m, s in stages for block in (_Residual(n, m, s), _Residual(m, m, 1))]
        super().__init__(nn.Sequential(_conv_bn_relu(channels, width), *blocks), 4 * width, classes)


class DepthwiseNet(_Classifier):
    """A small MobileNet, with the fault that real ones have: dead channels.

    Each batch norm before a depthwise convolution starts with one channel at beta = -10, which its
    ReLU then never lets through. The variance after the depthwise filter is therefore 0, and folding
    multiplies that filter by gamma / sqrt(eps), about 1000: in floating point nothing changes, but one
    scale for the whole tensor now has to span it.

    Source: Sheng et al. 2018, "A Quantization-Friendly Separable Convolution for MobileNets".
    """

    def __init__(self, width: int = 16, channels: int = 1, classes: int = 10):
        layers = [_conv_bn_relu(channels, width, eps=1e-6)]
        for inputs, outputs, stride in ((1, 2, 2), (2, 4, 1), (4, 4, 2), (4, 4, 1)):  # in widths
            nn.init.constant_(layers[-1].bn.bias[:1], -10.0)
            layers.append(_conv_bn_relu(inputs * width, inputs * width, stride=stride, groups=inputs * width, eps=1e-6))
            layers.append(_conv_bn_relu(inputs * width, outputs * width, 1, eps=1e-6))
        super().__init__(nn.Sequential(*layers), 4 * width, classes)


class RowReader(nn.Module):
    """An LSTM, or a GRU, that reads an image row by row: `(N, 1, H, W)` -> `(N, classes)`."""

    def __init__(
        self, columns: int = 8, hidden: int = 64, classes: int = 10, kind: type[nn.LSTM] | type[nn.GRU] = nn.LSTM
    ):
        super().__init__()
        self.reader = kind(columns, hidden, batch_first=True)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.reader(x.squeeze(1))  # (N, H, hidden)
        return self.classifier(states[:, -1])


class MLP(nn.Sequential):
    """Three linear layers: `(N, 1, H, W)` -> `(N, classes)`."""

    def __init__(self, pixels: int = 64, hidden: int = 256, classes: int = 10):
        layers = nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        super().__init__(nn.Flatten(), *layers)


class ArticleNet(nn.Module):
    """The network of "How Quantization and Fusion Accelerate CNN Inference on Edge Devices", untrained.

    Two convolutions and two linear layers, the first of which holds nearly all the weights: 70 million
    at 224 pixels, 15.6 million at 112. `quant` and `dequant` stand where the article has its stubs; here
    they do nothing, and eager mode wants `QuantStub` and `DeQuantStub` of torch.ao in their place.

    Args:
        size: height and width of the images, `(N, 3, size, size)`.
        classes: `(N, classes)` probabilities come out.
    """

    def __init__(self, size: int = 224, classes: int = 10):
        super().__init__()
        side = ((size - 4) // 2 - 4) // 2
        self.quant = nn.Identity()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(3, 20, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)
        self.fc1, self.relu3 = nn.Linear(50 * side * side, 500), nn.ReLU()
        self.fc2 = nn.Linear(500, classes)
        self.dequant = nn.Identity()
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(self.quant(x))))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.fc2(self.relu3(self.fc1(x.flatten(1))))
        return self.softmax(self.dequant(x))


@contextmanager
def _fixed_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):  # the CPU's only, so seed no other, as torch.manual_seed does
        torch.default_generator.manual_seed(0)
        yield


def train(
    model: nn.Module,
    data: Split,
    *,
    epochs: int,
    max_lr: float = 8e-3,
    batch_size: int = 64,
    threads: int = 1,
    name: str = "the model",
) -> nn.Module:
    """Train `model` in place (AdamW, one cycle) with a progress bar, and return it in eval mode.

    Deterministic, and the caller's random numbers and number of threads stay untouched. Can be
    interrupted at any batch. On images this small a second thread gains nothing, and on a busy
    computer the two wait for each other.
    """
    from tqdm.auto import tqdm

    order = torch.Generator().manual_seed(0)
    steps = epochs * math.ceil(len(data) / batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=max_lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=steps)
    model.train()
    bar = tqdm(total=steps, desc=f"Training {name}", unit="batch")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with _fixed_random_numbers(), torch.enable_grad(), bar:
            for _ in range(epochs):
                for index in torch.randperm(len(data), generator=order).split(batch_size):
                    images, labels = data[index]
                    loss = nn.functional.cross_entropy(model(images), labels)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    bar.update()
    finally:
        torch.set_num_threads(before)
    return model.eval()


@dataclass(frozen=True)
class Recipe:
    """How to make a trained model.

    Other layers, epochs or learning rate make the kept copy obsolete by themselves; after any other
    change (of the data, the first weights, the training) raise `version`.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Images]
    epochs: int
    max_lr: float = 8e-3
    threads: int = 1
    version: int = 1

    def untrained(self) -> nn.Module:
        """Build the model with the weights that training starts from."""
        with _fixed_random_numbers():
            return self.model()


RECIPES = {
    "digits_cnn": Recipe(SmallCNN, digits, epochs=15),
    "digits_depthwise": Recipe(DepthwiseNet, digits, epochs=20),
    "digits_lstm": Recipe(RowReader, digits, epochs=30),
    "digits_gru": Recipe(lambda: RowReader(kind=nn.GRU), digits, epochs=30),
    "digits_mlp": Recipe(MLP, digits, epochs=15, max_lr=4e-3),
    "flowers_cnn": Recipe(lambda: SmallCNN(24, 3), flowers, epochs=6, threads=2),
    "flowers_resnet": Recipe(SlimResNet, flowers, epochs=4, threads=2),
    "flowers_depthwise": Recipe(lambda: DepthwiseNet(32, 3), flowers, epochs=6, max_lr=1.5e-2, threads=2),
}


def trained(name: str) -> nn.Module:
    """Return a trained model of `RECIPES`, in eval mode; each call gives a new copy.

    The first call trains it, with a progress bar; later calls, in any kernel, load it.

    Raises:
        ValueError: there is no recipe of that name.
    """
    return _trained(name)[0]


def prepare(names: Iterable[str] | None = None) -> dict[str, str]:
    """Train ahead what the lessons will ask for; run it again at any time, it only does what is missing.

    Args:
        names: of `RECIPES`; all of them if None.

    Returns:
        For each name "built", "found", or "not kept" where it could not be written.

    Raises:
        ValueError: there is no recipe of some name.
    """
    names = [names] if isinstance(names, str) else list(RECIPES if names is None else names)
    for name in names:
        _recipe(name)
    return {name: _trained(name)[1] for name in names}


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"there is no trained model {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def _trained(name: str) -> tuple[nn.Module, str]:
    recipe = _recipe(name)
    model, outcome = recipe.untrained(), "found"

    def make() -> bytes:
        nonlocal outcome
        outcome = "built"
        buffer = io.BytesIO()
        built, data = recipe.untrained(), recipe.data().train
        train(built, data, epochs=recipe.epochs, max_lr=recipe.max_lr, threads=recipe.threads, name=name)
        torch.save(built.state_dict(), buffer)
        return buffer.getvalue()

    key = hashlib.sha256(f"{recipe.version} {recipe.epochs} {recipe.max_lr} {model}".encode()).hexdigest()[:8]
    path = storage.cache_dir() / f"{name}-{key}.pt"
    state = torch.load(io.BytesIO(storage.once(path, make, name)), weights_only=True)
    model.load_state_dict(state)
    return model.eval(), outcome if os.path.exists(path) else "not kept"


def flowers102(root: Path | str | None = None, download: bool = False) -> Images:
    """Load the real flowers: 8189 photographs of 102 kinds (Nilsback and Zisserman 2008), 1020 to train.

    Images become `(3, 224, 224)` tensors, normalised as torchvision's ImageNet weights expect; a
    `DataLoader` batches them. `flowers()` is the stand-in that needs no network.

    Args:
        root: the folder that holds `flowers-102`; by default where qtutor keeps its data.
        download: fetch the 345 MB first, if they are not there.

    Raises:
        ConnectionError: the download failed.
        RuntimeError: the data are not there, or damaged.
    """
    from torchvision.datasets import Flowers102
    from torchvision.models import ResNet18_Weights

    root = storage.data_dir() if root is None else Path(root)
    transform = ResNet18_Weights.IMAGENET1K_V1.transforms()
    fix = f"are not in {root}, or are damaged: call flowers102(download=True) once while online (345 MB)"
    with _in_one_sentence("The photographs of Flowers102", fix, "use flowers(), which needs no network"):
        return Images(*(Flowers102(root, part, transform, download=download) for part in ("train", "val", "test")))


def pretrained_resnet18() -> nn.Module:
    """Return torchvision's ResNet-18 with its ImageNet weights, in eval mode; fetches 45 MB the first time.

    Raises:
        ConnectionError: the weights are not on this computer, and the download failed.
        RuntimeError: the weights on this computer are damaged.
    """
    from torchvision.models import ResNet18_Weights, resnet18

    weights = ResNet18_Weights.IMAGENET1K_V1
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    fix, instead = f"are damaged: delete {file} and call again", 'use trained("flowers_resnet"), which needs no network'
    with _in_one_sentence("The weights of ResNet-18", fix, instead):
        return resnet18(weights=weights).eval()


@contextmanager
def _in_one_sentence(what: str, fix: str, instead: str) -> Iterator[None]:
    """Replace torchvision's chains of errors."""
    try:
        yield
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(f"{what} cannot be downloaded ({reason}): try again while online, or {instead}") from None
    except (RuntimeError, EOFError, UnpicklingError):
        raise RuntimeError(f"{what} {fix}, or {instead}") from None
