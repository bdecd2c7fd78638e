"""Windows that slide over an axis: whether they reach beyond its ends."""

from __future__ import annotations

from collections.abc import Sequence

from bnfold.graph import Node

__all__ = ["pads"]


def pads(node: Node, kernel: Sequence[int]) -> bool:
    """Whether a convolution or pool with this kernel ever reads padding. Unknown counts as yes."""
    mode = node.string("auto_pad", "NOTSET")
    dilations = node.integers("dilations") or [1] * len(kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=False)]
    if mode == "VALID":
        return _too_long(node, reach)
    if mode in ("NOTSET", ""):
        return _reads_added(node, reach, node.integers("pads") or [])
    # SAME: output size is ceil(input / stride), so padding is max((out - 1) * stride + reach - input, 0) per axis.
    return any(
        r > 1 and (size is None or (-(-size // stride) - 1) * stride + r > size)
        for r, size, stride in _axes(node, reach)
    )


def _reads_added(node: Node, reach: list[int], added: list[int]) -> bool:
    """Whether pads in front, or those behind of which the last window takes something: strides may leave a rest."""
    if not any(added):
        return _too_long(node, reach)
    front, behind = added[: len(reach)], added[len(reach) :]
    if any(front) or min(behind, default=-1) < 0 or node.integer("ceil_mode", 0):
        return True
    return any(
        pad and (size is None or (size + pad - r) // stride * stride + r > size)
        for pad, (r, size, stride) in zip(behind, _axes(node, reach), strict=False)
    )


def _too_long(node: Node, reach: list[int]) -> bool:
    """Whether a window is known to be longer than its axis, of which onnxruntime may make one all the same."""
    return any(size is not None and r > size for r, size, _ in _axes(node, reach))


def _axes(node: Node, reach: list[int]) -> list[tuple[int, int | None, int]]:
    """Of each axis that windows slide over: how far one reaches, the size, where known, and the stride."""
    strides = node.integers("strides") or [1] * len(reach)
    sizes = [node.scope.shapes.dim(node.inputs[0], 2 + axis) for axis in range(len(reach))]
    return [
        (r, size if isinstance(size, int) and stride > 0 else None, max(stride, 1))
        for r, size, stride in zip(reach, sizes, strides, strict=False)
    ]
