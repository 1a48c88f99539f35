"""What to do about a layer that quantization hurts.

equalize             move a factor per channel from layer to layer, until ranges are alike; needs no data
correct_bias         give back the mean that rounding the weights takes from each channel
choose_float_layers  the fewest layers to leave in floating point for a wanted quality, by measuring
"""

from qtutor.repair.bias import correct_bias
from qtutor.repair.equalization import equalize
from qtutor.repair.search import choose_float_layers
