"""Windows that slide over an axis: whether they reach beyond its ends."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.graph import Node

__all__ = ["pads"]


def pads(node: Node, kernel: Sequence[int]) -> bool:
    """Whether a convolution or pool with this kernel ever reads padding. Unknown counts as yes."""
    mode = node.string("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return any(node.integers("pads") or ())
    if mode == "VALID":
        return False
    # SAME: output size is ceil(input / stride), so padding is max((out - 1) * stride + reach - input, 0) per axis.
    dilations = node.integers("dilations") or [1] * len(kernel)
    strides = node.integers("strides") or [1] * len(kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=False)]
    if all(r == 1 for r in reach):
        return False
    for axis, (r, stride) in enumerate(zip(reach, strides, strict=False)):
        size = node.scope.shapes.dim(node.inputs[0], 2 + axis)
        if not isinstance(size, int) or stride < 1 or (-(-size // stride) - 1) * stride + r > size:
            return True
    return False
