"""Shapes of the random activations that a probe gets, and the axis that holds a site's channels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnx import TensorProto

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bnfold.verify.constants import ConstantValues
    from bnfold.verify.sites import Key, Region, Site
    from bnfold.verify.types import TensorType
    from bnfold.verify.view import ViewNode

__all__ = ["FLOATS", "POSITIONS", "channel_axes", "elements", "few_samples", "frontier_shapes", "steered", "terms"]

_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# Operators that treat every position alike, so that a smaller picture tests them as well as a large one.
_ANY_SIZE = frozenset(
    (
        *("Conv", "ConvTranspose", "BatchNormalization", "Identity", "Dropout", "Cast"),
        *("Relu", "LeakyRelu", "PRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh", "Clip"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    )
)
_PER_CHANNEL = frozenset(("Add", "Sub", "Mul", "Div"))
POSITIONS = 6  # pixels along each axis, besides what the kernels reach
_BATCH = 2
_ROWS = 32  # samples for operators on matrices


def terms(region: Region, values: ConstantValues, channels: int, *, shifts: bool) -> float:
    """Products that are summed up in one element of a region's target, estimated from its largest constant.

    For ``shifts`` zeros enter, and what is multiplied with zeros is no term.
    """
    idle = {
        node.inputs[1]
        for node in region.nodes
        if shifts and node.op in _LINEAR and len(node.inputs) > 1 and ("", node.inputs[0]) in region.frontier
    }
    largest = 1.0
    for view, name in region.constants:
        if name not in idle:
            largest = max(largest, values.nbytes(view, name) / 4)
    return max(1.0, largest / max(channels, 1))


def channel_axes(site: Site, rank: int) -> tuple[int, ...]:
    """The axis of a site's channels; both candidates when the operators do not tell."""
    if rank < 2:
        return (0,)
    for region in (site.original, site.folded):
        node = _producer(region)
        if node is None:
            continue
        if node.op in ("BatchNormalization", "Conv", "ConvTranspose", "InstanceNormalization", "Gemm"):
            return (1,)
    return (1,) if rank == 2 else (1, rank - 1)


def _producer(region: Region) -> ViewNode | None:
    return next((node for node in reversed(region.nodes) if region.target[1] in node.outputs), None)


def frontier_shapes(
    sites: Sequence[Site], types: Mapping[Key, TensorType], *, small: bool, positions: int = POSITIONS
) -> dict[Key, tuple[int, ...]] | None:
    """Choose a shape for every tensor that enters some sites; None when one is not known.

    Args:
        sites: the sites.
        types: what is known about the tensors.
        small: let pictures be smaller and batches larger than in the model, where the operators allow it, and nothing
            be empty.
        positions: pixels along each axis of such a picture, besides what kernels reach.
    """
    shapes: dict[Key, tuple[int, ...]] = {}
    fixed: set[Key] = set()
    for site in sites:
        frontier = [key for key in site.frontier() if key not in steered(site)]
        reach = _reach(site, types.get(frontier[0])) if small and len(frontier) == 1 else None
        if reach is None:
            fixed.update(frontier)
        for key in frontier:
            dims = types.get(key, (0, None))[1]
            guess = _guess(site, key) if dims is None or None in dims else None
            if guess is not None:
                dims = guess
            if dims is None or any(d is None for d in dims):
                return None
            shape = tuple(max(int(d or 0), 1 if small else 0) for d in dims)  # no boxes found, say, proves nothing
            wanted = shape if reach is None else _shrunk(site, shape, reach + positions)
            shapes[key] = tuple(map(max, shapes.get(key, wanted), wanted)) if key not in fixed else shape
    return shapes


def elements(site: Site, types: Mapping[Key, TensorType]) -> int:
    """About how many numbers enter and leave a site when it is checked; 0 when that is not known."""
    shapes = frontier_shapes([site], types, small=True)
    if not shapes:
        return 0
    entering = sum(map(math.prod, shapes.values()))
    whole = sum(_size(types.get(key)) for key in shapes)
    return entering + (entering * _size(types.get(site.key)) // whole if whole else 0)


def few_samples(made: TensorType | None, wanted: int) -> bool:
    """Whether one run gives fewer samples per channel than wanted, as behind a global pooling."""
    return (
        made is not None
        and made[1] is not None
        and len(made[1]) > 2
        and math.prod(d or 1 for d in made[1][2:]) * _BATCH < wanted
    )


def _size(found: TensorType | None) -> int:
    return math.prod(d or 1 for d in found[1]) if found is not None and found[1] is not None else 0


def _reach(site: Site, entering: TensorType | None) -> int | None:
    """How many pixels the operators of a site reach, or None when its size must stay as it is."""
    reach = 0
    matrix = entering is not None and entering[1] is not None and len(entering[1]) == 2
    for node in (*site.original.nodes, *site.folded.nodes):
        if node.op in ("Gemm", "MatMul", "Flatten"):
            continue
        if node.op in _PER_CHANNEL:
            if all(_per_channel(node, name, last=matrix) for name in node.inputs):
                continue
            return None
        if node.op not in _ANY_SIZE:
            return None
        attributes = {a.name: list(a.ints) for a in node.proto.attribute}
        kernel = attributes.get("kernel_shape") or _kernel(node)
        dilations = attributes.get("dilations") or [1] * len(kernel)
        reach += max((d * (k - 1) for d, k in zip(dilations, kernel, strict=False)), default=0)
        reach *= max(attributes.get("strides") or [1])
    return reach


def _kernel(node: ViewNode) -> list[int]:
    if node.op not in ("Conv", "ConvTranspose") or len(node.inputs) < 2:
        return []
    home = node.view.home(node.inputs[1])
    tensor = home.stored(node.inputs[1]) if home is not None else None
    return list(tensor.dims)[2:] if tensor is not None else [7]


def _per_channel(node: ViewNode, name: str, *, last: bool) -> bool:
    """Whether an operand is computed, a scalar, or a constant with one value per channel (axis 1, or the last)."""
    home = node.view.home(name)
    if home is None or name not in home.constants:
        return True
    tensor = home.stored(name)
    if tensor is None:
        return False
    dims = list(tensor.dims)
    large = [position - len(dims) for position, d in enumerate(dims) if d != 1]
    return not large or (len(large) == 1 and len(dims) + large[0] <= 1 and (large[0] == -1) == last)


def _shrunk(site: Site, shape: tuple[int, ...], pixels: int) -> tuple[int, ...]:
    if any(node.op in ("Gemm", "MatMul", "Flatten") for node in (*site.original.nodes, *site.folded.nodes)):
        return (max(shape[0], _ROWS), *shape[1:]) if len(shape) == 2 else shape
    if len(shape) < 3:
        return (max(shape[0], _ROWS), *shape[1:]) if len(shape) == 2 else shape
    return (_BATCH, shape[1], *(min(d, pixels) for d in shape[2:]))


def _guess(site: Site, key: Key) -> tuple[int, ...] | None:
    """A shape that the first operator with weights accepts, for tensors whose shape nothing tells."""
    for node in site.original.nodes:
        if node.op not in ("Conv", "ConvTranspose", "Gemm") or node.inputs[0] != key[1] or len(node.inputs) < 2:
            continue
        home = node.view.home(node.inputs[1])
        tensor = home.stored(node.inputs[1]) if home is not None else None
        if tensor is None:
            return None
        attributes = {a.name: a.i for a in node.proto.attribute}
        dims = list(tensor.dims)
        if node.op == "Gemm":
            return (_ROWS, dims[1 if attributes.get("transB") else 0])
        channels = dims[1] * (attributes.get("group") or 1) if node.op == "Conv" else dims[0]
        return (_BATCH, channels, *(2 * POSITIONS for _ in dims[2:]))
    return None


_STEERED = {
    "Expand": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Tile": (1,),
    "Upsample": (1,),
}


def steered(site: Site) -> frozenset[Key]:
    """Tensors that enter a site and keep their values: sizes, scales and positions, and what no input can change."""
    found: set[Key] = set()
    for region in (site.original, site.folded):
        for node in region.nodes:
            for position in _STEERED.get(node.op, ()):
                if position < len(node.inputs) and node.inputs[position]:
                    home = node.view.home(node.inputs[position]) or node.view
                    found.add((home.path, node.inputs[position]))
            for name in node.reads():
                owner = node.view.home(name)
                if owner is not None and name in owner.fixed:
                    found.add((owner.path, name))
    return frozenset(found & set(site.frontier()))
