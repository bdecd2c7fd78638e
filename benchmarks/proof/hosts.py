"""Where folds went: the operators that took them over, with their weights and the norms that were folded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bnfold.report import Folded

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = NDArray[Any]
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Host:
    """An operator that took one fold over, in the folded model."""

    fold: Folded
    node: onnx.NodeProto
    weight: Array
    bias: Array | None
    original_weight: Array | None
    original_bias: Array | None
    norm: dict[str, Array] | None
    norms: list[dict[str, Array]]  # all norms of the model, for gammas of the wrong one
    before: bool

    @property
    def group(self) -> int:
        return int(attribute(self.node, "group", 1))

    @property
    def channels(self) -> int:
        return len(self.bias) if self.bias is not None else int(self.rows(self.weight).shape[0])

    def rows(self, weight: Array) -> Array:
        """The weight as ``[output channels, everything else]``; a view where possible."""
        kind = self.node.op_type
        if kind == "Conv":
            return weight.reshape(weight.shape[0], -1)
        if kind == "ConvTranspose":
            split = weight.reshape(self.group, weight.shape[0] // self.group, *weight.shape[1:])
            return np.moveaxis(split, 2, 1).reshape(self.group * weight.shape[1], -1)
        columns = kind == "MatMul" or not attribute(self.node, "transB", 0)
        return np.moveaxis(weight, -1, 0).reshape(weight.shape[-1], -1) if columns else weight

    def scaled(self, factor: Array, weight: Array | None = None) -> Array:
        """The weight, or another of its shape, times one factor per output channel."""
        kind, weight = self.node.op_type, self.weight if weight is None else weight
        if kind == "Conv":
            return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        if kind == "ConvTranspose":
            grid = factor.reshape(self.group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
            return (weight.reshape(self.group, -1, *weight.shape[1:]) * grid).reshape(weight.shape)
        columns = kind == "MatMul" or not attribute(self.node, "transB", 0)
        return weight * (factor if columns else factor[:, None])

    def swapped(self, i: int, j: int) -> Array | None:
        """The weight with two output channels exchanged; None for layouts where that is no simple exchange."""
        kind, weight = self.node.op_type, self.weight.copy()
        order = np.arange(self.channels)
        order[[i, j]] = order[[j, i]]
        if kind == "Conv":
            return (
                weight[order]
                if self.group in (1, self.channels)
                or i // (self.channels // self.group) == j // (self.channels // self.group)
                else None
            )
        if kind == "ConvTranspose":
            return weight[:, order] if self.group == 1 else None
        columns = kind == "MatMul" or not attribute(self.node, "transB", 0)
        return weight[..., order] if columns else weight[order]


def hosts(original: onnx.ModelProto, folded: onnx.ModelProto, folds: tuple[Folded, ...]) -> Iterator[Host]:
    """The operators that took folds over and whose weights are stored."""
    theirs, ours = constants(folded), constants(original)
    named = {label(node): node for node in folded.graph.node}
    before = {label(node): node for node in original.graph.node}
    readers: dict[str, int] = {}
    for node in folded.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    norms = {label(n): found for n in original.graph.node if (found := norm_of(n, ours)) is not None}
    for fold in folds:
        for name in fold.into:
            node = named.get(name)
            if fold.scope or node is None or node.op_type not in OPERATORS or len(node.input) < 2:
                continue
            weight = theirs.get(node.input[1])
            if weight is None or weight.dtype.kind != "f" or readers.get(node.input[1]) != 1:
                continue
            bias = theirs.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
            was = before.get(name)
            stored = ours.get(was.input[1]) if was is not None and was.op_type == node.op_type else None
            own = ours.get(was.input[2]) if was is not None and len(was.input) > 2 and was.input[2] else None
            direct = fold.route.startswith("after") and "through" not in fold.route
            norm = norms.get(fold.node) if direct and chain_length(fold, folds) == 1 else None
            if bias is not None and bias.ndim != 1:
                bias = None
            before_it = fold.route.startswith("before")
            yield Host(fold, node, weight, bias, stored, own, norm, list(norms.values()), before_it)


def chain_length(fold: Folded, folds: tuple[Folded, ...]) -> int:
    return sum(bool(set(fold.into) & set(other.into)) for other in folds)


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], numpy_helper.to_array(a.t)) for a in node.attribute if a.name == "value")
    return found


def norm_of(node: onnx.NodeProto, values: dict[str, Array]) -> dict[str, Array] | None:
    names = ("gamma", "beta", "mean", "var")
    if node.op_type != "BatchNormalization" or any(name not in values for name in node.input[1:5]):
        return None
    found = {what: values[name] for what, name in zip(names, node.input[1:5], strict=True)}
    return {**found, "epsilon": np.float64(np.float32(attribute(node, "epsilon", 1e-5)))}


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def label(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type}:{next(filter(None, node.output), '')}"


def factor_of(norm: dict[str, Array]) -> Array:
    return norm["gamma"].astype(np.float64) / np.sqrt(norm["var"].astype(np.float64) + norm["epsilon"])


def shift(norm: dict[str, Array]) -> Array:
    return norm["beta"].astype(np.float64) - norm["mean"].astype(np.float64) * factor_of(norm)
