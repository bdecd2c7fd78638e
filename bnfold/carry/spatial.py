"""Operators that work along spatial axes: pooling, reductions and Resize.

Averages pass scale and shift where their weights sum to one; maxima pass a shift, and a scale that is not negative;
sums pass a scale, and a shift times the number of summed elements; norms such as L2 pass a scale that is not negative.
"""

from __future__ import annotations

from bnfold import symbolic, windows
from bnfold.affine import Affine
from bnfold.carry.step import (
    Backward,
    Forward,
    Step,
    constant_ints,
    may_overflow,
    misplaced,
    needs_no_shift,
    needs_no_sign,
    placed_from_first,
)
from bnfold.dimensions import SAME_AS_FIRST
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["BACKWARD", "FORWARD"]

_NEAR = 8
"""Operators between a Slice, Pad or Split and a reduction that are looked through."""


# -- pooling -----------------------------------------------------------------------------------------------------------


def _pool_refusal(node: Node, affine: Affine) -> Refusal | None:
    if not affine.uniform and affine.axis > 1:
        return misplaced(node, "pools over the axis that the channels are on")
    if any(d != 1 for d in node.integers("dilations") or ()) and windows.pads(
        node, node.integers("kernel_shape") or ()
    ):
        return Refusal("blocked", f"a window of {node.op} '{node.label}' may hold padding alone", node.label)
    if node.op in ("LpPool", "GlobalLpPool"):
        return needs_no_shift(node, affine) or needs_no_sign(node, affine)
    if node.op in ("MaxPool", "GlobalMaxPool"):
        if any(node.scope.readers(name) or name in node.scope.output_set for name in node.outputs[1:] if name):
            return Refusal("blocked", f"the indices of {node.op} '{node.label}' are read", node.label, lasting=True)
        return needs_no_sign(node, affine)
    if node.op == "AveragePool" and affine.shifts and _averages_padding(node):
        return Refusal(
            "shift", f"AveragePool '{node.label}' counts padded zeros, which a shift must not reach", node.label
        )
    return None


def _averages_padding(node: Node) -> bool:
    """Whether padded zeros are part of any average."""
    padded = windows.pads(node, node.integers("kernel_shape") or ())
    if node.scope.opset < 7:
        return padded or bool(node.integer("ceil_mode", 0))
    return bool(node.integer("count_include_pad", 0)) and (padded or bool(node.integer("ceil_mode", 0)))


def pool_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    if output != node.outputs[0]:
        return Refusal("blocked", f"'{output}' holds indices", node.label, lasting=True)
    placed = placed_from_first(node, output, affine)
    if isinstance(placed, Refusal):
        return placed
    return _pool_refusal(node, placed) or [Step(((node.inputs[0], placed),))]


def pool_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    placed = placed_from_first(node, node.inputs[0], affine)
    if isinstance(placed, Refusal):
        return placed
    overflow = may_overflow(node, placed) if node.op in ("LpPool", "GlobalLpPool") else None
    return overflow or _pool_refusal(node, placed) or Step(((node.outputs[0], placed),))


# -- reductions --------------------------------------------------------------------------------------------------------


def _reduced_axes(node: Node) -> list[int] | Refusal:
    """Axes that are reduced, counted from the first one."""
    rank = node.scope.shapes.rank(node.inputs[0])
    axes = constant_ints(node, "axes", 1)
    if rank is None or (axes is None and node.input(1)):
        return Refusal("shape-unknown", f"which axes {node.op} '{node.label}' reduces is not known", node.label)
    if not axes:
        return [] if node.integer("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({a + rank if a < 0 else a for a in axes})


def _summed(node: Node, axes: list[int]) -> int | Refusal:
    """How many elements each sum has."""
    count = 1
    for axis in axes:
        size = node.scope.shapes.dim(node.inputs[0], axis)
        if not isinstance(size, int) or size < 1:
            return Refusal("shape-unknown", f"axis {axis} of '{node.inputs[0]}' is not a known number", node.label)
        count *= size
    return count


def _of_nothing(node: Node, axes: list[int]) -> Refusal | None:
    """The mean or maximum of no elements is what it is, whatever they would have been shifted by.

    Sizes that are not known count as none only where a Slice, Pad or Split cuts them: operators in between keep them.
    """
    sizes = {axis: node.scope.shapes.dim(node.inputs[0], axis) for axis in axes}
    if 0 in sizes.values() or _is_cut(node, {axis for axis, size in sizes.items() if not isinstance(size, int)}):
        return Refusal("shift", f"{node.op} '{node.label}' may reduce an axis without elements", node.label)
    return None


def _is_cut(node: Node, axes: set[int]) -> bool:
    """Whether a Slice, Pad or Split, at most a few operators before, may cut these axes of what the node reads."""
    source, moved = node.scope.producer(node.inputs[0]), False
    for _ in range(_NEAR if axes else 0):
        if source is not None and source.op in ("Conv", "ConvTranspose", "Gemm") and not moved:
            axes = axes & {0}  # a window that does not fit is an error; of no images it makes none
        if source is None or not source.inputs or not axes:
            break
        if source.op == "Slice":
            rank, cut = source.scope.shapes.rank(source.inputs[0]), constant_ints(source, "axes", 3)
            if moved or rank is None or cut is None:
                return True
            return not axes.isdisjoint(a + rank if a < 0 else a for a in cut)
        if source.op == "Split" and min(constant_ints(source, "split", 1) or [0 if source.input(1) else 1]) < 1:
            return True
        if source.op == "Pad" and min(constant_ints(source, "pads", 1) or [-1]) < 0:
            return True
        moved = moved or source.op not in SAME_AS_FIRST
        scope = source.scope
        source = scope.producer(next((name for name in source.inputs if scope.constants.get(name) is None), ""))
    return False


def _through_reduction(node: Node, affine: Affine, axes: list[int], *, backwards: bool) -> Affine | Refusal:
    if node.op in ("ReduceL1", "ReduceL2"):
        return needs_no_shift(node, affine) or needs_no_sign(node, affine) or affine
    if node.op in ("ReduceMax", "ReduceMin"):
        return needs_no_sign(node, affine) or _of_nothing(node, axes) or affine
    if not affine.shifts:
        return affine
    if node.op == "ReduceMean":
        return _of_nothing(node, axes) or affine
    count = _summed(node, axes)
    if isinstance(count, Refusal):
        return count
    return Affine(affine.scale, affine.shift / count if backwards else affine.shift * count, affine.axis)


def reduce_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    axes = _reduced_axes(node)
    if isinstance(axes, Refusal):
        return axes
    placed = placed_from_first(node, output, affine)
    if isinstance(placed, Refusal):
        return placed
    if not placed.uniform:
        if node.integer("keepdims", 1):
            axis = placed.axis
        else:
            rank = node.scope.shapes.rank(node.inputs[0]) or 0
            kept = [a for a in range(rank) if a not in axes]
            axis = kept[placed.axis] if placed.axis < len(kept) else -1
        if axis < 0 or axis in axes:
            return misplaced(node, "reduces the axis that the channels are on")
        placed = placed.at(axis)
    moved = _through_reduction(node, placed, axes, backwards=True)
    return moved if isinstance(moved, Refusal) else [Step(((node.inputs[0], moved),))]


def reduce_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:  # pragma: no cover - integers carry no affine
        return misplaced(node, "reads it as axes")
    axes = _reduced_axes(node)
    if isinstance(axes, Refusal):
        return axes
    placed = placed_from_first(node, node.inputs[0], affine)
    assert not isinstance(placed, Refusal), "the axes needed the rank, too"
    if not placed.uniform and placed.axis in axes:
        return misplaced(node, "reduces the axis that the channels are on")
    overflow = may_overflow(node, placed) if node.op in ("ReduceSum", "ReduceL1", "ReduceL2") else None
    if overflow is not None:
        return overflow
    moved = _through_reduction(node, placed, axes, backwards=False)
    if isinstance(moved, Refusal):
        return moved
    if not moved.uniform and not node.integer("keepdims", 1):
        moved = moved.at(moved.axis - sum(a < moved.axis for a in axes))
    return Step(((node.outputs[0], moved),))


# -- Resize, Upsample --------------------------------------------------------------------------------------------------


def _resize_refusal(node: Node, affine: Affine) -> Refusal | None:
    """Interpolation weights sum to one, so both parts pass; extrapolation puts in a constant, so nothing does."""
    if node.string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return Refusal("blocked", f"Resize '{node.label}' may extrapolate with a constant", node.label, lasting=True)
    if affine.uniform or _keeps_axis(node, affine.axis):
        return None
    return misplaced(node, "resizes the axis that the channels are on, or may do so")


def _keeps_axis(node: Node, axis: int) -> bool:
    axes = node.integers("axes")
    place = axis
    if axes is not None:
        rank = node.scope.shapes.rank(node.inputs[0])
        if rank is None:
            return False
        counted = [a + rank if a < 0 else a for a in axes]
        if axis not in counted:
            return True
        place = counted.index(axis)
    scales = symbolic.factors(node)
    if place < len(scales) and scales[place] is not None:
        return scales[place] == 1.0
    sizes = symbolic.values(node.scope, node.input(3)) if node.op == "Resize" else None
    dims = symbolic.dimensions(node.scope, node.inputs[0])
    if sizes is not None and dims is not None and place < len(sizes) and axis < len(dims):
        return sizes[place] == dims[axis]
    before, after = (node.scope.shapes.dim(name, axis) for name in (node.inputs[0], node.outputs[0]))
    return isinstance(before, int) and before == after


def resize_backward(node: Node, output: str, affine: Affine) -> list[Step] | Refusal:
    placed = placed_from_first(node, output, affine)
    if isinstance(placed, Refusal):
        return placed
    return _resize_refusal(node, placed) or [Step(((node.inputs[0], placed),))]


def resize_forward(node: Node, position: int, affine: Affine) -> Step | Refusal:
    if position != 0:
        return misplaced(node, "reads it as sizes")
    placed = placed_from_first(node, node.inputs[0], affine)
    if isinstance(placed, Refusal):
        return placed
    return _resize_refusal(node, placed) or Step(((node.outputs[0], placed),))


_POOLS = ("MaxPool", "GlobalMaxPool", "AveragePool", "GlobalAveragePool", "LpPool", "GlobalLpPool")
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2")
BACKWARD: dict[str, Backward] = {
    **dict.fromkeys(_POOLS, pool_backward),
    **dict.fromkeys(_REDUCTIONS, reduce_backward),
    **dict.fromkeys(("Resize", "Upsample"), resize_backward),
}
FORWARD: dict[str, Forward] = {
    **dict.fromkeys(_POOLS, pool_forward),
    **dict.fromkeys(_REDUCTIONS, reduce_forward),
    **dict.fromkeys(("Resize", "Upsample"), resize_forward),
}
