"""Ranks and dimensions, from what is near: declared shapes, constants, and the operators' own rules.

Where that is not enough, onnx shape inference runs for the whole model (see :mod:`bnfold.infer`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import TypeProto, ValueInfoProto

from bnfold.dimensions import Dim, Dims, derived, merged, sources

if TYPE_CHECKING:
    from bnfold.graph import Scope

MADE_UP = "unk__"
"""How the names begin that onnx shape inference makes up, anew each time."""

__all__ = ["MADE_UP", "Shapes", "lasting"]


class Shapes:
    """Shapes of one scope's tensors; asked lazily and remembered."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._known: dict[str, Dims | None] = {}
        self._declared: dict[str, Any] | None = None
        self._inferred: dict[str, Any] | None = None
        self.computed: dict[str, Any] = {}
        """What ``symbolic.values`` found out about shape tensors."""

    # -- what rules ask ------------------------------------------------------------------------------------------

    def rank(self, name: str) -> int | None:
        """Number of axes, or None when unknown."""
        dims = self.known_dims(name)
        if dims is None:
            dims = self.dims(name)
        return None if dims is None else len(dims)

    def dims(self, name: str) -> Dims | None:
        """Dimensions, after shape inference if need be; None when even the rank is unknown."""
        if self._scope.parent is not None and not self._scope.defines(name):
            return self._scope.parent.shapes.dims(name)
        near = self.known_dims(name)
        if near is not None and None not in near:
            return near
        proven = merged(near, _proto_dims(self._infer().get(name)))
        if proven is not None and None not in lasting(proven):
            return proven
        declared = _proto_dims(self._declarations().get(name))
        declared = None if declared is None else lasting(declared)
        if proven is None or declared is None or len(declared) != len(proven):
            return proven if proven is not None or near is not None else declared
        filled = zip(proven, lasting(proven), declared, strict=True)
        return tuple(b if a is None or (lasts is None and isinstance(b, int)) else a for a, lasts, b in filled)

    def dim(self, name: str, axis: int) -> Dim:
        """One dimension; shape inference runs only if what is near does not tell."""
        near = self.known_dims(name)
        if near is not None and -len(near) <= axis < len(near) and near[axis] is not None:
            return near[axis]
        dims = self.dims(name)
        return dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None

    def axis(self, name: str, axis: int) -> int | None:
        """The same axis counted from the first one, or None when that needs a rank that is not known."""
        if axis >= 0:
            return axis
        rank = self.rank(name)
        return None if rank is None or rank + axis < 0 else rank + axis

    def element_type(self, name: str) -> int | None:
        """``TensorProto.DataType`` of a tensor, or None when unknown."""
        constant = self._scope.initializers.get(name)
        if constant is not None:
            return int(constant.data_type)
        if not self._scope.defines(name) and self._scope.parent is not None:
            return self._scope.parent.shapes.element_type(name)
        for table in (self._given, self._declarations, self._infer):
            value = _type_of(table().get(name))
            if value is not None and value.HasField("tensor_type") and value.tensor_type.elem_type:
                return int(value.tensor_type.elem_type)
        return None

    def known_dims(self, name: str) -> Dims | None:
        """Dimensions from declarations and nearby operators only; never runs shape inference."""
        if name not in self._known:
            self._fill(name)
        return self._known[name]

    # -- how they are found --------------------------------------------------------------------------------------

    def _fill(self, name: str) -> None:
        """Derive a shape from those of its operands, and theirs first; iteratively, as chains can be long.

        All that a shape depends on is asked for, so that an answer does not hinge on what was asked before.
        """
        waiting = [name]
        begun: set[str] = set()
        while waiting:
            current = waiting[-1]
            if current in self._known:
                waiting.pop()
                continue
            declared = self._direct(current)
            whole = declared is not None and None not in declared
            if whole or current in begun:
                self._known[current] = declared if whole else merged(declared, self._by_operator(current))
                waiting.pop()
                continue
            begun.add(current)
            waiting += [
                source for source in sources(self._scope.producers.get(current), current) if source not in begun
            ]

    def _direct(self, name: str) -> Dims | None:
        tensor = self._scope.initializers.get(name)
        if tensor is not None:
            return tuple(tensor.dims)
        if not self._scope.defines(name) and self._scope.parent is not None:
            return self._scope.parent.shapes.known_dims(name)
        return _proto_dims(_type_of(self._given().get(name)))

    def _by_operator(self, name: str) -> Dims | None:
        node = self._scope.producers.get(name)
        if node is None:
            return None
        if node.op == "Constant":
            constant = self._scope.constants.get(name)
            return None if constant is None else constant.dims
        return derived(node, [self._operand(source) for source in sources(node, name)])

    def _operand(self, name: str) -> Dims | None:
        dims = self._known.get(name)
        constant = self._scope.constants.get(name) if dims is None else None
        return dims if constant is None else constant.dims

    def _given(self) -> dict[str, Any]:
        """Types of the graph's inputs: the caller's promise, and the only declarations that are taken as proven."""
        return self._scope.inputs if not self._scope.is_function else {}

    def _declarations(self) -> dict[str, Any]:
        """Types that the exporter wrote down for other tensors. Some are wrong, so they only fill gaps."""
        if self._declared is None:
            graph = self._scope.graph
            values = [*graph.value_info]
            if not self._scope.is_function:
                values += list(graph.output)
            self._declared = {value.name: value.type for value in values}
        return self._declared

    def _infer(self) -> dict[str, Any]:
        """Types of all tensors of this scope as onnx infers them; empty when inference fails."""
        if self._inferred is None:
            self._inferred = {}
            root = self._scope
            while root.parent is not None:
                root = root.parent
            if not root.is_function:
                from bnfold.infer import infer_scopes

                infer_scopes(root)
        return self._inferred

    def remembered(self) -> tuple[dict[str, Dims | None], dict[str, Any]]:
        """A copy of all that was found so far."""
        return dict(self._known), dict(self.computed)

    def recall(self, earlier: tuple[dict[str, Dims | None], dict[str, Any]]) -> None:
        """Forget what was found since."""
        self._known, self.computed = earlier

    def inferred(self, name: str) -> Dims | None:
        """What onnx shape inference says."""
        return _proto_dims(self._infer().get(name))

    def learn(self, graph: Any) -> None:
        """Take the types that inference wrote into ``graph``, this scope's counterpart; without one, none."""
        values = [] if graph is None else [*graph.value_info, *graph.input, *graph.output]
        self._inferred = {value.name: value.type for value in values}


def lasting(dims: Dims) -> Dims:
    """Without the names that one inference made up: another uses the same for something else."""
    return tuple(None if str(d).startswith(MADE_UP) else d for d in dims)


def _type_of(value: Any) -> Any:
    """The type of a declared value, or the type itself."""
    return value.type if isinstance(value, ValueInfoProto) else value


def _proto_dims(type_proto: TypeProto | None) -> Dims | None:
    if type_proto is None or not type_proto.HasField("tensor_type") or not type_proto.tensor_type.HasField("shape"):
        return None
    return tuple(
        int(d.dim_value) if d.HasField("dim_value") else (d.dim_param or None) for d in type_proto.tensor_type.shape.dim
    )
