"""How weights are rounded to 8, 6 or 4 bits, and in which order they lie.

**8 bits.** Each group of 64 numbers along the input of a channel has one scale, a bfloat16 that
is not less than a 127th of the group's largest number:

    W[c, k] = scale[c, k // 64] * w[c, k]          |w| <= 127

which is llama.cpp's Q8_0 with groups of 64 instead of 32: 8.25 bits a weight instead of 8.5.

**4 bits.** Each group of 32 has a scale and a zero point, both of 8 bits; the scale is one in
units of its channel:

    W[c, k] = unit[c] * scale[c, k // 32] * (w[c, k] - zero[c, k // 32] / 16)     0 <= w <= 15

which is 4.5 bits a weight, as in llama.cpp's Q4_K, whose scales and minima have 6 bits each.

**6 bits.** As 8 bits, with 31 for 127, and 32 added to each number: 6.25 bits a weight.

Sixteen channels make a panel, and lie in the order in which `products` uses them:

    8 bits: weights  (panels, groups, 32 pairs, 16 channels, 2)     int8
            scales   (panels, groups, 16 channels)                  bfloat16, as uint16
    4 bits: weights  (panels, groups, 4 blocks, 16 channels, 2)     words of 16 bits, as int8
            scales   (panels, groups, 16 channels)                  uint16: scale + 256 * zero
            units    (panels * 16 channels)                         float32
    6 bits: weights  (panels, small groups, 6 blocks, 16 channels, 2)  words of 16 bits, as int8
            scales   as those of 8 bits

Word [c, e] of block b of 4-bit weights holds those of the inputs 4b + e, 4b + 2 + e, 4b + 16 + e
and 4b + 18 + e of its group for channel c, from the lowest bits up. Of 6-bit weights, the first
four blocks hold the lower four bits like this. Each byte of block 4 + d holds the upper two bits
of the numbers whose lower ones have the same place in block 2d, and then those of block 2d + 1,
from the lowest bits up. Channels are padded to whole
panels and inputs to whole groups of 64, with zeros.
"""

from __future__ import annotations

GROUP = 64
"""Of 8-bit weights, and of activations."""

INT4_GROUP = 32
"""Of 4-bit weights."""

PANEL = 16

LANES = 16
"""Numbers that a kernel takes at a time; the channels of a panel, too."""

VERSION = 2
"""Of all that is said above: another number, another file."""


def padded(count: int, to: int) -> int:
    """``count``, rounded up to a multiple of ``to``."""
    return -(-count // to) * to


def packed_sizes(channels: int, inputs: int, bits: int = 8) -> tuple[int, int]:
    """How many bytes of weights, and scales, a matrix of (channels, inputs) has when packed."""
    weights = padded(channels, PANEL) * padded(inputs, GROUP)
    return weights * bits // 8, weights // (INT4_GROUP if bits == 4 else GROUP)
