"""The networks of the lessons, untrained."""

from collections import OrderedDict

from torch import Tensor, nn


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
