"""The index: who makes a tensor and who reads it, built once per scope and never changed.

A *scope* is a graph whose nodes share one space of names: the main graph, the body of an If branch, Loop or Scan, or a
model-local function. A tensor of an outer scope that a body reads is a *capture*; in the outer scope's index it counts
as a read by the node that owns the body, at position ``CAPTURE``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from bnfold.errors import ModelReadError, printable

if TYPE_CHECKING:
    from bnfold.constants import Constants
    from bnfold.files import Model
    from bnfold.shapes import Shapes

CAPTURE = -1
_STANDARD = ("", "ai.onnx")
_INCOMPLETE = "incomplete::"
_TWO_INPUTS = """
    Add CastLike Conv ConvTranspose DequantizeLinear Div Expand Gather Gemm MatMul Mod Mul PRelu Pow QuantizeLinear
    Range Sub Tile com.microsoft::FusedConv com.microsoft::FusedGemm com.microsoft::FusedMatMul
""".split()
_ANY_INPUT = ["BatchNormalization", "Constant", "Loop", "Optional", "RandomNormal", "RandomUniform", "SequenceEmpty"]
_LEAST = {**dict.fromkeys(_TWO_INPUTS, 2), **dict.fromkeys(_ANY_INPUT, 0)}
"""How many inputs the rules rely on: one, but for these (onnx's own schemas take longer to load than most models)."""
_READS_NO_VALUES = ("Shape", "Size", "CastLike")
_WITH_BODIES = ("If", "Loop", "Scan", "SequenceMap")
"""The operators of the standard domain that carry graphs; in other domains every node is looked at."""

__all__ = ["CAPTURE", "Node", "Scope", "Use", "attribute_graphs", "index_model", "label_of"]


class Node:
    """One node of a scope, with its names as plain Python strings.

    ``op`` is the operator type; operators outside the standard domain carry their domain, ``com.microsoft::FusedConv``.
    A node that lacks inputs or outputs which its operator requires is ``incomplete::Conv``: no rule knows that one.
    Norms say themselves what they lack.
    """

    __slots__ = ("_attributes", "index", "inputs", "op", "outputs", "proto", "scope")

    def __init__(self, scope: Scope, index: int, proto: NodeProto) -> None:
        self.scope = scope
        self.index = index
        self.proto = proto
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = list(proto.output)
        domain = proto.domain
        self.op: str = proto.op_type if domain in _STANDARD else f"{domain}::{proto.op_type}"
        least = _LEAST.get(self.op, 1 if domain in _STANDARD else 0)
        if least and not self._has(least):
            self.op = f"{_INCOMPLETE}{self.op}"
        self._attributes: dict[str, AttributeProto] | None = None

    def _has(self, least: int) -> bool:
        """Whether at least so many (one or two) inputs are there, and an output."""
        inputs = self.inputs
        return bool(len(inputs) >= least and inputs[0] and inputs[least - 1] and self.outputs)

    @property
    def attributes(self) -> dict[str, AttributeProto]:
        if self._attributes is None:
            self._attributes = {a.name: a for a in self.proto.attribute}
        return self._attributes

    def integer(self, name: str, default: int) -> int:
        found = self.attributes.get(name)
        return default if found is None else int(found.i)

    def real(self, name: str, default: float) -> float:
        """A float attribute, as the float32 value that the file stores."""
        found = self.attributes.get(name)
        return default if found is None else float(found.f)

    def string(self, name: str, default: str) -> str:
        found = self.attributes.get(name)
        return default if found is None else found.s.decode("utf-8", "replace")

    def integers(self, name: str) -> list[int] | None:
        found = self.attributes.get(name)
        return None if found is None else list(found.ints)

    def input(self, position: int) -> str:
        """The tensor read at ``position``, or an empty string where the optional input is absent."""
        return self.inputs[position] if position < len(self.inputs) else ""

    @property
    def incomplete(self) -> bool:
        """Whether inputs or outputs are missing that the operator requires."""
        return self.op.startswith(_INCOMPLETE)

    @property
    def label(self) -> str:
        """The node's name, or ``operator:output`` when it has none; safe to print."""
        return label_of(self.proto, self.outputs)


def label_of(node: NodeProto, outputs: Iterable[str]) -> str:
    """The node's name, or ``operator:output`` when it has none; safe to print."""
    name = node.name or f"{node.op_type}:{next(filter(None, outputs), '')}"
    return name if name.isprintable() else printable(name)


class Use(NamedTuple):
    """One read of a tensor: the node and the position among its inputs (``CAPTURE`` for a read by its subgraphs)."""

    node: Node
    position: int


class Scope:
    """Index of one graph; see the module's docstring."""

    constants: Constants
    shapes: Shapes

    def __init__(self, model: Model, graph: Any, path: str, parent: Scope | None, opset: int) -> None:
        self.model = model
        self.graph = graph
        self.path = path
        self.parent = parent
        self.opset = opset
        self.is_function = isinstance(graph, FunctionProto)
        self.in_function: bool = self.is_function or (parent is not None and parent.in_function)
        functions = _function_names(model.proto) if parent is None or self.is_function else parent.function_names
        self.function_names: frozenset[tuple[str, str]] = functions
        self.children: list[tuple[Node, Scope]] = []
        self.initializers: dict[str, TensorProto] = (
            {} if self.is_function else {tensor.name: tensor for tensor in graph.initializer}
        )
        self.sparse: set[str] = set() if self.is_function else {s.values.name for s in graph.sparse_initializer}
        self.inputs: dict[str, Any] = (
            dict.fromkeys(graph.input) if self.is_function else {value.name: value for value in graph.input}
        )
        self.outputs: list[str] = list(graph.output) if self.is_function else [value.name for value in graph.output]
        self.output_set = frozenset(self.outputs)
        self.protected = self._protected()
        self.nodes = [Node(self, index, proto) for index, proto in enumerate(graph.node)]
        self.producers: dict[str, Node] = {}
        self._readers: dict[str, list[Use]] = {}
        self._value_readers: dict[str, list[Use]] = {}
        self.captures: set[str] = set()
        self._index()

    def _protected(self) -> frozenset[str]:
        """Initializers that may neither change nor go: callers, training or annotations refer to them by name."""
        if self.is_function:
            return frozenset()
        proto = self.model.proto
        names: set[str] = set()
        if proto.ir_version >= 4:
            names.update(name for name in self.inputs if name in self.initializers)
        for note in self.graph.quantization_annotation:
            names.update(entry.value for entry in note.quant_parameter_tensor_names)
        for training in proto.training_info if self.parent is None else ():
            for entry in (*training.initialization_binding, *training.update_binding):
                names.update((entry.key, entry.value))
        return frozenset(names)

    def _index(self) -> None:
        readers, producers, functions = self._readers, self.producers, self.function_names
        for node in self.nodes:
            called = bool(functions) and (node.proto.domain, node.proto.op_type) in functions
            if called or (self.in_function and _depends_on_call(node)):
                node.op = f"function {node.op}"
            for position, name in enumerate(node.inputs):
                if name:
                    readers.setdefault(name, []).append(Use(node, position))
            for name in node.outputs:
                producers[name] = node
            if "::" not in node.op and node.op not in _WITH_BODIES:
                continue
            for attribute, body in attribute_graphs(node.proto):
                child = Scope(self.model, body, self._child_path(node, attribute), self, self.opset)
                self.children.append((node, child))
                for name in sorted(child.captures):
                    readers.setdefault(name, []).append(Use(node, CAPTURE))
        producers.pop("", None)
        for name, node in producers.items():
            if name in readers and readers[name][0].node.index <= node.index:
                raise ModelReadError(
                    f"{printable(self.model.path or 'the model')}: node '{readers[name][0].node.label}' reads "
                    f"'{printable(name)}' before it is made; sort the nodes topologically first"
                )
        self.captures = {n for n in (*readers, *self.outputs) if n and not self.defines(n)}

    def _child_path(self, node: Node, attribute: str) -> str:
        return f"{self.path}{'/' if self.path else ''}{node.label}.{printable(attribute)}"

    def defines(self, name: str) -> bool:
        """Whether the tensor is made, given or stored in this very scope."""
        return name in self.producers or name in self.initializers or name in self.inputs or name in self.sparse

    def names(self) -> set[str]:
        """Every tensor name that occurs in this scope."""
        return {*self.producers, *self._readers, *self.inputs, *self.outputs, *self.initializers, *self.sparse}

    def readers(self, name: str) -> list[Use]:
        """All reads of a tensor by nodes of this scope and by their subgraphs, in order; graph outputs not included."""
        return self._readers.get(name, [])

    def value_readers(self, name: str) -> list[Use]:
        """The reads that look at values: ``Shape`` and ``Size`` do not, nor does ``CastLike`` at its pattern."""
        found = self._readers.get(name)
        if not found:
            return []
        if len(found) == 1 and found[0].node.op not in _READS_NO_VALUES:
            return found
        if name not in self._value_readers:
            self._value_readers[name] = [
                use
                for use in found
                if use.node.op not in _READS_NO_VALUES or (use.node.op == "CastLike" and use.position == 0)
            ]
        return self._value_readers[name]

    def producer(self, name: str) -> Node | None:
        """The node of this scope that makes the tensor, if there is one."""
        return self.producers.get(name)

    def scopes(self) -> Iterator[Scope]:
        """This scope and every scope below it, outer ones first."""
        stack = [self]
        while stack:
            scope = stack.pop()
            yield scope
            stack.extend(child for _, child in reversed(scope.children))


def _depends_on_call(node: Node) -> bool:
    """Whether an attribute's value comes from the function's call, so that no rule about the operator can be trusted.

    Norms say so themselves, and bodies have to be indexed all the same.
    """
    known = node.op == "BatchNormalization" or node.op in _WITH_BODIES
    return not known and any(attribute.ref_attr_name for attribute in node.proto.attribute)


def attribute_graphs(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """The bodies a node carries, with the names of their attributes."""
    if node.domain in _STANDARD and node.op_type not in _WITH_BODIES:
        return
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            for position, graph in enumerate(attribute.graphs):
                yield f"{attribute.name}[{position}]", graph


def _function_names(proto: ModelProto) -> frozenset[tuple[str, str]]:
    return frozenset((f.domain, f.name) for f in proto.functions)


def _opset(imports: Any) -> int:
    return max((int(entry.version) for entry in imports if entry.domain in _STANDARD), default=1)


def index_model(model: Model) -> list[Scope]:
    """Index a model: the main graph first, then each model-local function. Bodies hang below their scope."""
    from bnfold.constants import Constants
    from bnfold.shapes import Shapes

    proto = model.proto
    default = _opset(proto.opset_import)
    roots = [Scope(model, proto.graph, "", None, default)]
    for function in proto.functions:
        opset = _opset(function.opset_import) if function.opset_import else default
        roots.append(Scope(model, function, f"function:{printable(function.name)}", None, opset))
    for root in roots:
        for scope in root.scopes():
            scope.constants = Constants(scope)
            scope.shapes = Shapes(scope)
    return roots
