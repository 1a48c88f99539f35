"""What a number of decibels means: the one table that checks, diagnoses and advice go by.

Each is the SQNR, from which on the sentence holds: of an output, unless it names a weight or a layer.
"""

SAME = 60.0
"""Two models are one in floats: folding and another order of adding give 100 and more."""

HARMLESS = 30.0
"""A layer's own error gives no reason to look further."""

WELL = 25.0
"""The median channel of a weight is rounded well: healthy ones keep 30 to 45 at 8 bits."""

USUAL = 20.0
"""An INT8 model has it, unless a layer cannot bear 8 bits: an error of a tenth of the signal."""

CLEAR = 10.0
"""What varies in an output is still seen; below, nobody should ship it, whatever the labels say."""

LEAST = 5.0
"""It is the same function still; below, nobody's INT8 model."""

BETTER = 0.2
"""Between two numbers of decibels: a repair is kept that gives more than this."""

HALF = 3.0
"""Between two: half of the noise power goes, which is worth a layer in floats, or ranges chosen otherwise."""

TWICE = 6.0
"""Between two: one error is twice the other."""

APART = 10.0
"""Between two: nine tenths of the noise come from elsewhere."""
