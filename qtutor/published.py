"""What the five articles of `claims.SOURCES` print: their claims and their tables, in our words.

Sizes in MB as printed, accuracies top-1 in percent. Nothing here was measured by this course.
"""

from collections.abc import Iterator

from qtutor.claims import Claim


def _claims() -> Iterator[Claim]:
    """Yield the claims in the order of the articles; each is paraphrased."""

    def about(id: str, says: str, claimed: float | tuple[float, float], unit: str, where: str, compares: str) -> Claim:
        return Claim(id, says, claimed, unit, nothing={"x": 1, "%": 0}[unit], where=where, compares=compares)

    def faster(id: str, says: str, where: str, compares: str) -> Claim:
        return more(id, says, "x", where, compares, than=1)

    def more(id: str, says: str, unit: str, where: str, compares: str, than: float = 0) -> Claim:
        return Claim(id, says, than, unit, "above", where=where, compares=compares)

    def at_most(id: str, says: str, limit: float, unit: str, where: str, compares: str) -> Claim:
        return Claim(id, says, limit, unit, "at most", where=where, compares=compares)

    def true(id: str, says: str, where: str, compares: str = "") -> Claim:
        return Claim(id, says, where=where, compares=compares)

    what, ways, fusing = "What is Quantization?", "Quantization Techniques", "What is Module Fusion?"
    yield Claim("A1a", "the network has 70 million parameters", 70, "M", where="model summary")
    yield Claim("A1b", "it takes 294 MB", 294, "MB", where="model summary", compares="torchsummary's estimate, in MiB")
    yield about("A1c", "INT8 makes it about 4 times smaller", 4, "x", what, "file of FP32, of INT8")
    yield about("A2", "INT8 is 1.7 times faster", 1.7, "x", "results", "FP32, INT8 unfused; batch 32")
    yield faster("A3a", "fusing makes FP32 faster", fusing, "FP32, FP32 fused")
    yield faster("A3b", "fusing makes INT8 faster", fusing, "INT8, INT8 fused")
    yield at_most("A3c", "fusing hardly changes accuracy", 1, "points", fusing, "FP32, FP32 fused")
    yield true("A4", "prepare and convert give a working model", "code", "answers for two images")
    yield true("A5", "fuse after converting", "code")
    yield at_most("A6", "min-max, MSE or entropy calibrate", 1, "points", what, "FP32, the worst of the three")
    yield at_most("A7a", "dynamic quantization suits an LSTM", 1, "points", ways, "FP32, dynamic INT8")
    yield faster("A7b", "static is faster than dynamic", ways, "dynamic, static; three linear layers")
    yield true("A7c", "static may need calibrating again", ways, "SQNR as calibrated, on brighter images")
    yield more("A8a", "dynamic is more accurate than static", "dB", ways, "SQNR of the two; three linear layers")
    yield true("A8b", "fusing costs you debuggability", fusing, "what hooks see")
    yield true("A9", "QAT learns scale and zero point", ways, "parameters before and after prepare_qat")

    results, code = "Results (Sample)", "code"
    yield about("B1a", "PTQ: 44.7 to 11.2 MB", 44.7 / 11.2, "x", results, "file of FP32, of the printed PTQ")
    yield about("B1b", "PTQ: 12.3 to 6.8 ms", 12.3 / 6.8, "x", results, "FP32, the printed PTQ; batch 1")
    yield true("B2a", "QAT gives a model that runs", code)
    yield about("B2b", "QAT: 44.7 to 11.1 MB", 44.7 / 11.1, "x", results, "file of FP32, of a repaired QAT")
    yield about("B2c", "QAT: 12.3 to 6.4 ms", 12.3 / 6.4, "x", results, "FP32, a repaired QAT; batch 1")
    yield more("B4", "QAT beats PTQ at low bit widths", "points", "text", "PTQ, QAT of a compact network")
    yield about("B5a", "an INT8 weight takes a quarter of the bytes", 4, "x", "benefits", "bytes of one number")
    yield faster("B5b", "integer arithmetic is faster", "benefits", "a linear layer in FP32, in INT8")
    yield more("B5c", "INT8 needs less memory to run", "x", "benefits", "peak of a run, FP32 and INT8", than=1)
    yield true("B5d", "INT8 saves energy", "benefits")

    yield at_most("C1", "accuracy is almost unchanged", 1, "points", "results", "FP32, static INT8")
    yield about("C2", "about 3.6 times faster", 3.6, "x", "results", "FP32, static INT8; batch 1, 224 px")
    yield about("C3", "the file is about 4 times smaller", 4, "x", "results", "file of FP32, of static INT8")
    yield true("C4", "to load, convert uncalibrated, then fill in", "loading", "outputs before and after")
    yield at_most("C5", "100 calibration images are enough", 1, "dB", "calibration", "SQNR with 100 images, with 500")
    yield at_most("C6", "as ONNX it loads, and is as accurate", 1, "points", "ONNX", "PyTorch's INT8, ONNX Runtime's")
    yield true("C7", "sums are INT32: hence the INT8 activations", "why activations", "sums of codes against 8 bits")
    yield true("C8a", "return (endstart)", "code, speed test")
    yield true("C8b", "if i == 10: break, for 100 images", "code, calibration", "images that it shows")
    yield true("C8c", "ImageNet's mean is 0.485, 0.465, 0.406", "code, images", "torchvision's constants")

    yield more("D1a", "INT8 mostly costs less than 1 point", "%", "text on Table 1", "rows of Table 1", than=50)
    yield at_most(
        "D1b", "INT8 costs less than 1 point", 1, "points", "text on Table 1", "FP32, INT8 of two networks here"
    )
    yield at_most(
        "D1c", "these are the sizes of the networks", 10, "%", "Table 1", "its FP32 sizes, parameters counted"
    )
    yield more("D2a", "QAT is within 1 point in various networks", "%", "text on Table 2", "rows of Table 2", than=50)
    yield at_most(
        "D2b", "QAT is within 1 point", 1, "points", "text on Table 2", "FP32, QAT at 8 bits, a compact network"
    )
    yield true("D3a", "one scale ruins compact nets, many do not", "Table 3", "weights per tensor, per channel")
    yield true("D3b", "Table 3 is about activations", "text on Table 3", "accuracy with weights alone rounded")
    yield more("D4a", "under 4 bits accuracy falls", "points", "text on Table 4", "its rows, 4 and 3 bits")
    yield more("D4b", "under 4 bits accuracy falls", "points", "text on Table 4", "4-bit, 3-bit weights, not trained")
    yield more("D5", "folding first leaves less error", "dB", "equations", "SQNR, quantized unfused and fused")
    yield at_most("D6", "100 to 1000 images are enough", 1, "dB", "Figure 4", "SQNR with 1000 images, with 100")
    yield at_most("D7a", "weights may be symmetric", 1, "dB", "Figure 3", "SQNR of a weight, both ways")
    yield more("D7b", "activations should be asymmetric", "dB", "Figure 3", "SQNR after a ReLU, both ways")
    yield at_most("D8", "batch-norm statistics calibrate without data", 3, "dB", "text", "SQNR with data, without")

    yield about(
        "E1", "fused INT8 saves 20 to 30% of memory", (20, 30), "%", "memory", "FP32 unfused, INT8 fused; bytes"
    )
    yield true("E2", "unfused INT8 goes through FP32 at each step", "memory", "dtypes inside an unfused model")
    yield true("E3", "prepare and convert a model as it was built", "examples 1 and 2")
    yield true("E4", "a converted model returns a quantized tensor", "examples", "dtype of its output")
    yield true("E5", "feed it a quantized tensor", "example 3")
    yield at_most(
        "E6", "scale and zero point minimise the loss", 0.1, "dB", "precision", "SQNR of min-max, of the best range"
    )


CLAIMS = {claim.id: claim for claim in _claims()}
"""By id. Where a claim names no limit ("almost", "hardly"), the one here is ours."""

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
