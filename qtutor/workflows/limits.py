"""What a number of decibels means: the one table that checks, diagnoses and advice go by, and what follows below it.

Each is the SQNR, from which on the sentence holds: of an output, unless it names a weight or a layer.
"""

SAME = 60.0
"""Two models are one in floats: folding and another order of adding give 100 and more.

Below, a flow refuses its own copy, a diagnosis a model that is to repeat itself, and `runtimes.build` leaves out a
runtime that computes in floats.
"""

HARMLESS = 30.0
"""A layer's own error gives no reason to look further; below, a diagnosis names the reason and advises."""

WELL = 25.0
"""The median channel of a weight is rounded well: healthy ones keep 30 to 45 at 8 bits.

Below, `quantize_dynamic` warns of the layer; from here on, a diagnosis may put a bad output down to the input.
"""

USUAL = 20.0
"""An INT8 model has it, unless a layer cannot bear 8 bits: an error of a tenth of the signal.

Below, flows take the eighth bit where PyTorch leaves it out for older processors, then warn and say what hurts. A
diagnosis without a metric misses its goal, and what no one scale holds so well is computed in floats.
"""

CLEAR = 10.0
"""What varies in an output is still seen; below, nobody should ship it, whatever the labels say.

Below, a diagnosis with a metric misses its goal. Flows warn where a constant hides it, refuse where the layers do not
explain it (`APART`), and `quantize_weights` warns where most weights of many groups are kept less well.
"""

LEAST = 5.0
"""It is the same function still; below, it is nobody's INT8 model: flows refuse, and `runtimes.build` leaves it out."""

BETTER = 0.2
"""Between two numbers of decibels: a repair is kept that gives more than this, and dropped below."""

HALF = 3.0
"""Between two: half of the noise power goes, which is worth a layer in floats, or ranges chosen otherwise.

Below, neither is advised. Where a model that is not as `USUAL` loses so much more than its layers explain, FX computes
what stands between them in floats.
"""

TWICE = 6.0
"""Between two: one error is twice the other; so far below what its simulation promised, `Diagnosis.apply` warns."""

APART = 10.0
"""Between two: nine tenths of the noise come from elsewhere.

Where so much more is lost than the layers explain, what stands between them is said to hurt, or the model is refused.
"""
