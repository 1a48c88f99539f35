"""The terms of the field that the course uses, each in a sentence: lesson 10 prints them.

A lesson explains a term where the course first uses it, and sets it there in bold.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A word of the field.

    Attributes:
        name: as the glossary lists it.
        says: what it means, a phrase.
        forms: how running text writes it, as a regular expression; "" for its name alone. A plural needs none.
    """

    name: str
    says: str
    forms: str = ""

    @property
    def pattern(self) -> str:
        """Matches the term in running text, as a whole word."""
        written = self.forms or self.name.replace(" ", r"\s+")
        return rf"(?<![\w-])(?:{written})(?:s|es)?(?![\w-])"


TERMS = (
    Term("accumulator", "the wide number, INT32, in which a kernel sums products of codes"),
    Term("activation", "a tensor that flows between layers; unlike a weight it differs with each input"),
    Term("affine", "a scaling and a shift: the map between numbers and codes"),
    Term("asymmetric", "with a zero point that lets a grid reach further to one side of zero"),
    Term("AWQ", "activation-aware weight quantization: inputs that are loud get weights that are larger when rounded"),
    Term("bandwidth", "how many bytes a second memory delivers"),
    Term(
        "batch norm", "a layer that scales and shifts each channel by fixed statistics", "batch norm|batch[- ]norms?|BN"
    ),
    Term("bfloat16", "float32 cut to 16 bits: its range, with 8 bits of precision", "bfloat16|BF16"),
    Term("bias correction", "undoing the mean error of a rounded layer by moving its bias"),
    Term("bits per character", "how surprised a language model is by a text: fewer are better"),
    Term("bits per weight", "those of a code, and its share of those of the scale"),
    Term(
        "calibration",
        "choosing activation ranges by running the model on data",
        "calibration|calibrat(?:e|ed|ing|es)",
    ),
    Term("channel", "one of the slices of a tensor that a filter or a unit makes"),
    Term("clipping", "giving the end of the grid to what lies beyond it", "clipping|clip(?:s|ped)?"),
    Term("code", "the small integer that stands for a number", "codes|code (?:of|for|that stands)"),
    Term("confidence interval", "what the true value lies in with a stated probability"),
    Term("dead channel", "a channel that gives the same value for every input"),
    Term("decibel", "ten times the logarithm of a ratio of powers: 6 dB more halve the error", "decibel|dB"),
    Term("depthwise", "a convolution in which each filter reads one channel"),
    Term("dequantize", "turn a code back into the number it stands for", "dequantize|dequantiz(?:ed|ing|ation)"),
    Term("dynamic quantization", "weights are rounded ahead, ranges of activations are found at each call"),
    Term("E2M1", "a float of four bits: a sign, two bits of exponent, one of fraction"),
    Term("eager mode", "PyTorch's oldest flow: you mark by hand where codes begin and end"),
    Term("engine", "the library of integer kernels that PyTorch calls on this processor"),
    Term("entropy", "as an observer: choose the range whose rounded histogram is least surprising"),
    Term(
        "equalization", "moving a factor per channel from one layer to the next", "equalization|equaliz(?:e|ed|es|ing)"
    ),
    Term(
        "fake-quantize",
        "round to the grid and stay in floating point",
        "fake-quantize|fake[- ]quantiz(?:e|ed|es|ing|ation|er)",
    ),
    Term("flow", "a way from a float model to an INT8 one: eager, FX or PT2E"),
    Term("fold", "let a layer absorb the batch norm after it", "fold|folded|folding"),
    Term("fuse", "run several operators as one", "fuse|fused|fusing|fusion"),
    Term("FX", "the flow that traces a model into a graph by running it on stand-ins"),
    Term("GGUF", "a file for language models, whose weights are kept in blocks with scales"),
    Term("GPTQ", "rounds a weight column by column, and lets the columns to come mend each error"),
    Term("granularity", "what shares a scale: a tensor, a channel or a group"),
    Term("group", "some neighbouring weights of a row that share a scale", "group|groups of weights"),
    Term("Hadamard matrix", "entries of one size and orthogonal rows: a rotation that mixes all channels evenly"),
    Term("Hessian", "of a linear layer: which of its inputs are loud, and which go together"),
    Term("histogram", "counts of values by bins, from which some observers choose"),
    Term("INT8", "integers of 8 bits, 256 of them"),
    Term("kernel", "the compiled loop that computes an operator"),
    Term("KL divergence", "how badly one histogram stands in for another, in bits of surprise"),
    Term("KV cache", "the keys and values of all tokens so far, which a language model keeps for the next"),
    Term("latency", "the time from the input to the output of one call"),
    Term("LSQ", "learned step size quantization: training finds the scale", "LSQ|learned step size"),
    Term("massive activation", "one value thousands of times the others, mostly at the first token"),
    Term("McNemar's test", "asks whether what one model loses and gains falls like a fair coin"),
    Term("min-max", "the observer that spans all it has seen"),
    Term("MXFP4", "E2M1 with a power of two as the scale of 32 weights"),
    Term("NF4", "16 values at quantiles of the normal distribution, with a scale for 64 weights"),
    Term("NVFP4", "E2M1 with a float of 8 bits as the scale of 16 weights"),
    Term("observer", "watches values go by and chooses a range from what it saw"),
    Term("outlier", "a value far from the rest that would stretch the range"),
    Term("outlier channel", "a channel that is loud at many tokens"),
    Term("per channel", "one scale for each output channel of a weight"),
    Term("per tensor", "one scale for all of a tensor"),
    Term("per token", "one scale for each row of an activation"),
    Term("percentile", "the observer that leaves out a fixed share of the values at the ends"),
    Term("perplexity", "among how many equally likely tokens a language model seems to choose"),
    Term("PT2E", "the flow that exports a model to a graph of basic operators and compiles it"),
    Term("PTQ", "post-training quantization: no training step", "PTQ|post-training"),
    Term("QAT", "quantization-aware training: training with the rounding in place", "QAT|quantization-aware"),
    Term("qconfig", "PyTorch's pair of observers for a layer, one for activations, one for weights"),
    Term("range", "the least and the largest number that a grid represents"),
    Term(
        "reduce range",
        "using 7 of the 8 bits, so that an older processor's sums do not overflow",
        "reduce range|reduce_range",
    ),
    Term(
        "requantization", "from an INT32 sum to codes of the output's scale", "requantization|requantiz(?:e|ed|es|ing)"
    ),
    Term("roofline", "the highest rate a layer can reach, by its arithmetic for each byte moved"),
    Term("rotation", "an orthogonal matrix between two layers: it spreads outliers and changes no output"),
    Term("rounding error", "what is lost between neighbouring codes: half a step at most"),
    Term("saturate", "stay at the end of the grid", "saturate|saturat(?:es|ed|ing|ion)"),
    Term("scale", "the width of one step of the grid, $s$"),
    Term("sensitivity", "what rounding one layer does to the output"),
    Term("SmoothQuant", "moving the outliers of activations into the weights, channel by channel"),
    Term("SQNR", "signal to quantization noise ratio, in dB: the higher the better"),
    Term("static quantization", "ranges of activations are fixed ahead, by calibration"),
    Term(
        "straight-through estimator",
        "a gradient that passes rounding by as if it were not there",
        "straight-through estimator|STE|straight-through",
    ),
    Term("stub", "marks in a model where numbers become codes, or codes numbers again"),
    Term("symmetric", "with zero in the middle of the grid: the zero point is 0"),
    Term("throughput", "how many inputs a second"),
    Term("ULP", "unit in the last place: the distance to the next float"),
    Term("VNNI", "instructions of x86 processors that multiply and add four pairs of bytes at once"),
    Term("weight-only", "weights are codes, activations stay in floating point"),
    Term("zero point", "the code of zero, $z$"),
)
"""In alphabetical order."""
