"""What to do about a layer that quantization hurts.

equalize      move a factor per channel from layer to layer, until ranges are alike; needs no data
correct_bias  give back the mean that rounding the weights takes from each channel
"""

from qtutor.repair.bias import correct_bias
from qtutor.repair.equalization import equalize
