"""What the five articles of `claims.SOURCES` print: their claims and their tables, in our words.

Sizes in MB as printed, accuracies top-1 in percent. Nothing here was measured by this course.
"""

from qtutor.claims import Claim

_CLAIMS = (
    Claim("A1a", "the network has 70 million parameters", 70, "M"),
    Claim("A1b", "it takes 294 MB", 294, "MB"),
    Claim("A1c", "INT8 makes it 4 times smaller", 4, "x", nothing=1),
    Claim("A2", "INT8 is 1.7 times faster at batch 32", 1.7, "x", nothing=1),
    Claim("A3a", "fusing makes FP32 faster", 1, "x", "above"),
    Claim("A3b", "fusing makes INT8 faster", 1, "x", "above"),
    Claim("A3c", "fusing hardly changes accuracy", 1, "points", "at most"),
    Claim("A4", "prepare and convert give a working model"),
    Claim("A5", "fuse after converting"),
    Claim("A6", "min-max, MSE or entropy will calibrate", 1, "points", "at most"),
    Claim("A7a", "dynamic quantization suits an LSTM", 1, "points", "at most"),
    Claim("A7b", "static is faster than dynamic", 1, "x", "above"),
    Claim("A7c", "static may need calibrating again"),
    Claim("A8a", "dynamic is more accurate than static", 0, "dB", "above"),
    Claim("A8b", "fusing costs you debuggability"),
    Claim("B1a", "PTQ: 44.7 to 11.2 MB", 44.7 / 11.2, "x", nothing=1),
    Claim("B1b", "PTQ: 12.3 to 6.8 ms", 12.3 / 6.8, "x", nothing=1),
    Claim("B2a", "QAT as printed gives a model that runs"),
    Claim("B2b", "QAT: 44.7 to 11.1 MB", 44.7 / 11.1, "x", nothing=1),
    Claim("B2c", "QAT: 12.3 to 6.4 ms", 12.3 / 6.4, "x", nothing=1),
    Claim("B3", "its table shows the times that its code printed"),
    Claim("B4", "QAT (on random labels) raises accuracy", 0, "points", "above"),
    Claim("B5a", "an INT8 weight takes a quarter of the bytes", 4, "x", nothing=1),
    Claim("B5b", "integer matrix products are faster", 1, "x", "above"),
    Claim("B5c", "INT8 needs less memory to run", 1, "x", "above"),
    Claim("B5d", "INT8 saves energy"),
    Claim("C1", "accuracy is almost unchanged", 1, "points", "at most"),
    Claim("C2", "3.6 times faster at batch 1", 3.6, "x", nothing=1),
    Claim("C3", "the file is 4 times smaller", 4, "x", nothing=1),
    Claim("C4", "to load, convert uncalibrated, then fill in"),
    Claim("C5", "100 calibration images are enough", 1, "dB", "at most"),
    Claim("C6a", "exports to ONNX like any other model"),
    Claim("C6b", "as ONNX it is as accurate", 1, "points", "at most"),
    Claim("C bug 1", "return (endstart)"),
    Claim("C bug 2", "if i == 10: break, for 10 batches"),
    Claim("C bug 3", "ImageNet's mean is 0.485, 0.465, 0.406"),
    Claim("C bug 4", "the first run may be timed like any other", 1.1, "x", "at most"),
    Claim("C bug 5", "no warning is worth reading"),
    Claim("C text", "why quantize activations? they are INT8 anyway"),
    Claim("D1a", "INT8 costs less than 1 point (here)", 1, "points", "at most"),
    Claim("D1b", "INT8 costs less than 1 point (its Table 1)", 1, "points", "at most"),
    Claim("D1c", "INT8 is 4 times smaller (architectures)", 4, "x", nothing=1),
    Claim("D1d", "INT8 is 4 times smaller (its Table 1)"),
    Claim("D2a", "QAT recovers what PTQ loses", 100, "%", nothing=0),
    Claim("D2b", "QAT is within 1 point (its Table 2)", 1, "points", "at most"),
    Claim("D3", "one scale ruins compact nets, many do not"),
    Claim("D4a", "4-bit weights cost 0.7 points", 0.7, "points", "at most"),
    Claim("D4b", "3-bit weights cost 2.3 points", 2.3, "points", "at most"),
    Claim("D5", "folding first leaves less error", 0, "dB", "above"),
    Claim("D6", "100 to 1000 images are enough", 1, "dB", "at most"),
    Claim("D7a", "weights may be symmetric (here)", 1, "dB", "at most"),
    Claim("D7b", "weights may be symmetric (its Tables 2, 3)", 1, "points", "at most"),
    Claim("D7c", "activations should be asymmetric", 0, "dB", "above"),
    Claim("D8", "batch-norm statistics calibrate without data", 3, "dB", "at most"),
    Claim("E1", "fused INT8 saves 20 to 30% of the memory", (20, 30), "%", nothing=0),
    Claim("E2", "unfused INT8 goes through FP32 at each step"),
    Claim("E3", "fuse a model in training mode"),
    Claim("E4", "a converted model returns a quantized tensor"),
    Claim("E5a", "feed it a quantized tensor"),
    Claim("E5b", "zero point 0 suits an unsigned input"),
    Claim("E6", "scale and zero point minimise the loss", 0.1, "dB", "at most"),
    Claim("M1", "integers are faster than floats", 1, "x", "above"),
    Claim("M2", "training on random labels does no harm", 1, "points", "at most"),
    Claim("M3", "QAT learns scale and zero point"),
    Claim("M4", "a prepared model is fast already", 1, "x", "above"),
    Claim("M5", "INT8 activations have 256 codes", 256, "codes"),
    Claim("M6", "a good overall SQNR means that all is well"),
    Claim("M7", "your result depends on your input alone"),
    Claim("M8", "Table 3 of D is about activations"),
)

CLAIMS = {claim.id: claim for claim in _CLAIMS}
"""By id. Where a claim names no limit ("almost", "like any other"), it is ours: 1 point, 1 dB, a tenth of a time."""

TABLE_1 = {
    "AlexNet": (233, 58, 54.8, 54.68),
    "VGG16": (527.8, 132.0, 72.38, 72.32),
    "InceptionV1": (27, 10, 67.23, 67.24),
    "GoogLeNet": (27, 7, 67.78, 67.73),
    "ResNet50": (97.8, 24.6, 74.97, 74.77),
    "DenseNet": (32, 9, 60.96, 60.2),
    "SqueezeNet": (5, 2, 56.85, 56.48),
    "MobileNetV2": (13.3, 3.5, 69.48, 68.3),
    "ShuffleNetV2": (8.79, 2.28, 66.35, 66.15),
    "EfficientNet": (51.9, 13.0, 80.4, 77.56),
}
"""Of D: MB in FP32 and INT8, accuracy in FP32 and INT8. The rows are those of the ONNX Model Zoo."""

TABLE_2 = {
    "MobileNet-v1": (70.9, 59.1, 70.7),
    "MobileNet-v2": (71.9, 69.8, 71.1),
    "NASNet-Mobile": (74, 72.1, 73),
    "MobileNet-v2-1.4": (74.9, 74, 74.5),
    "Inception-v3": (78, 78, 78),
    "ResNet-v1-50": (75.2, 75.1, 75),
    "ResNet-v2-50": (75.6, 75, 75),
    "ResNet-v1-152": (76.8, 76.2, 76.2),
    "ResNet-v2-152": (77.8, 76, 76),
}
"""Of D, from Krishnamoorthi 2018 (arXiv 1806.08342): accuracy in float, after PTQ and after QAT; weights
symmetric per channel."""

TABLE_3 = {
    "MobileNet-v1": (70.9, 0.1, 70.4),
    "MobileNet-v2": (71.9, 0.1, 69.8),
    "NASNet-Mobile": (74, 72.2, 74),
    "MobileNet-v2-1.4": (74.9, 0.4, 74),
    "Inception-v3": (78, 78, 78),
    "ResNet-v1-50": (75.2, 75, 75.2),
    "ResNet-v2-50": (75.6, 75, 75),
    "ResNet-v1-152": (76.8, 76.6, 76.2),
    "ResNet-v2-152": (77.8, 76.1, 77),
}
"""Of D, from the same source: accuracy in float, with asymmetric weights per tensor and per channel."""

TABLE_4 = {
    "AlexNet": {32: 56.5, 8: 54.68, 4: 55.8, 3: 54.2},
    "VGG16": {32: 71.6, 8: 72.32, 4: 71.4, 3: 70.8},
    "ResNet18": {32: 69.8, 8: 69.4, 4: 69.2, 3: 68.9},
    "ResNet50": {32: 76.1, 8: 74.77, 4: 75.9, 3: 74.8},
}
"""Of D: accuracy by bits."""
