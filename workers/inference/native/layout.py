"""How weights are rounded to 8 bits, and in which order they lie.

Each group of 64 numbers along the input of a channel has one scale, a bfloat16 that is not
less than a 127th of the group's largest number:

    w[c, k] = round(W[c, k] / scale[c, k // 64])          |w| <= 127

which is llama.cpp's Q8_0 with groups of 64 instead of 32: 8.25 bits a weight instead of 8.5.

Sixteen channels make a panel, and lie in the order in which `products` uses them:

    weights  (panels, groups, 32 pairs, 16 channels, 2)   int8
    scales   (panels, groups, 16 channels)                bfloat16, as uint16

Channels are padded to whole panels and inputs to whole groups, with zeros.
"""

from __future__ import annotations

GROUP = 64
PANEL = 16

VERSION = 1
"""Of all that is said above: another number, another file."""


def padded(count: int, to: int) -> int:
    """``count``, rounded up to a multiple of ``to``."""
    return -(-count // to) * to


def packed_sizes(channels: int, inputs: int) -> tuple[int, int]:
    """How many weights and scales a matrix of (channels, inputs) has when packed."""
    weights = padded(channels, PANEL) * padded(inputs, GROUP)
    return weights, weights // GROUP
