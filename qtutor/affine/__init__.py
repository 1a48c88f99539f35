"""The affine map between real numbers and integer codes.

    quantize      q = clamp(round(x / s) + z, q_min, q_max)
    dequantize    x_hat = (q - z) * s

`s` is the scale (the width of one step, in the unit of x) and `z` the zero point (the code that
means exactly 0.0). Rounding is half to even, division is by multiplication with the float32
reciprocal, and rounding comes before the zero point is added: the three choices that make every
function here equal PyTorch's own fake-quantize kernels bit for bit.

`qparams` has s and z, and how a range becomes them; `mapping` the two equations, and both in one step with a
gradient for x; `learned_scale` a gradient for s; `error` what the map costs.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", eq. 1.
"""

from qtutor.affine.checks import check_grid
from qtutor.affine.error import QuantizationError, decibels, measure_error, noise_over_signal, sqnr
from qtutor.affine.learned_scale import LearnedFakeQuantizer, learned_fake_quantize
from qtutor.affine.mapping import dequantize, fake_quantize, quantize
from qtutor.affine.qparams import EPS, QParams, choose_qparams, grid, scale_and_zero_point
