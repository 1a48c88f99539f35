from qtutor.roofline import Peaks, layers, limits, measure_peaks

import pytest
import torch
from torch import nn


def test_operations_and_bytes_are_those_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(6 * 2 * 3, 7))
    table = layers(model, torch.rand(5, 4, 4, 5), seconds=0.01)
    assert table.index.tolist() == ["0", "2"]
    # 5 images of 6 x 2 x 3 outputs, each a sum of 2 x 3 x 3 products.
    assert table["operations"].tolist() == [2 * 5 * 36 * 18, 2 * 5 * 7 * 36]
    assert table["bytes"].tolist() == [4 * (5 * 80 + 5 * 36 + 6 * 18), 4 * (5 * 36 + 5 * 7 + 7 * 36)]
    assert (table["latency_ms"] > 0).all()


def test_a_layer_that_is_called_by_keyword_is_placed_too():
    class ByKeyword(nn.Sequential):
        def forward(self, x):
            return self[0](input=x)

    model, x = ByKeyword(nn.Linear(10, 10)), torch.rand(1, 10)
    columns = ["operations", "bytes"]
    by_place = layers(nn.Sequential(*model), x, seconds=0.01)
    assert layers(model, x, seconds=0.01)[columns].equals(by_place[columns])


def test_limits_bind_by_arithmetic_or_by_memory():
    table = layers(nn.Sequential(nn.Linear(10, 10, bias=False)), torch.rand(1, 10), seconds=0.01)
    bytes_moved = 4 * (10 + 10 + 100)
    by_memory = limits(Peaks(1e3, 1e12, 4e12), table).iloc[0]
    assert by_memory.tolist() == pytest.approx([bytes_moved, bytes_moved / 4])
    by_arithmetic = limits(Peaks(1e12, 1e3, 3e3), table).iloc[0]
    assert by_arithmetic.tolist() == pytest.approx([200, 200 / 3])


def test_peaks_are_positive_and_said_in_a_sentence():
    peaks = measure_peaks(size=128, megabytes=4, seconds=0.02)
    assert min(peaks.bandwidth, peaks.float_rate, peaks.int8_rate) > 0
    assert "GB/s" in str(peaks)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="ReLU calls no convolution and no linear layer"):
        layers(nn.ReLU(), torch.rand(3))
