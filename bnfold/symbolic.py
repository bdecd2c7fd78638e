"""Shape arithmetic with names: what a ``Shape``-``Gather``-``Concat`` subgraph computes, as far as it can be proven.

Exporters write ``x.view(x.size(0), -1)`` as a handful of nodes that compute the new shape at run time. Followed with
monomials,
numbers times names, they tell where axes go without knowing a single size.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.dimensions import SAME_AS_FIRST

if TYPE_CHECKING:
    from bnfold.dimensions import Dims
    from bnfold.graph import Node, Scope

__all__ = ["ONE", "Monomial", "Shape", "dimensions", "elements", "factors", "plain", "product", "reshaped", "values"]

_DEPTH = 40
_LONGEST = 16
_NESTED = 3
_NAMELESS = {"", "?", "None"}


@dataclass(frozen=True, slots=True)
class Monomial:
    """``number * name * name * ...``; names sorted, repeated for powers."""

    number: int = 1
    names: tuple[str, ...] = ()

    def __mul__(self, other: Monomial) -> Monomial:
        return Monomial(self.number * other.number, tuple(sorted(self.names + other.names)))

    def over(self, other: Monomial) -> Monomial | None:
        """The exact quotient, or None when it is no monomial."""
        left = Counter(self.names)
        left.subtract(other.names)
        if other.number == 0 or self.number % other.number or min(left.values(), default=0) < 0:
            return None
        return Monomial(self.number // other.number, tuple(sorted(left.elements())))

    @property
    def value(self) -> int | None:
        """The number, when no name is left."""
        return None if self.names else self.number


ONE = Monomial()
Shape = list[Monomial]


def product(dims: Shape) -> Monomial:
    total = ONE
    for d in dims:
        total = total * d
    return total


def dimensions(scope: Scope, tensor: str, dims: Dims | None = None) -> Shape | None:
    """A tensor's dimensions; unknown ones are named after the tensor that first has them, so copies share the name."""
    found = scope.shapes.dims(tensor) if dims is None else dims
    if found is None:
        return None
    origin = _origin(scope, tensor, found)
    twice = {d for d in found if isinstance(d, str) and found.count(d) > 1}  # then it names no size
    named = [d if isinstance(d, int) or d not in twice | _NAMELESS else None for d in found]
    return [Monomial(d) if isinstance(d, int) else Monomial(1, (d or f"?{origin}:{i}",)) for i, d in enumerate(named)]


def _origin(scope: Scope, tensor: str, dims: Dims) -> str:
    """The tensor that first has this shape, as far as the axes that are not numbers are concerned."""
    for _ in range(_DEPTH):
        node = scope.producer(tensor)
        if node is None or not node.inputs or tensor != node.outputs[0]:
            break
        if node.op in SAME_AS_FIRST:
            tensor = node.inputs[0]
            continue
        data = _unstretched(node, dims) if node.op in ("Add", "Sub", "Mul", "Div") and len(node.inputs) == 2 else None
        if data is None:
            break
        tensor = data
    return tensor


def _unstretched(node: Node, dims: Dims) -> str | None:
    """The tensor that meets a constant, when no axis but one of known size can be stretched by it."""
    for data, other in (node.inputs, node.inputs[::-1]):
        constant = node.scope.constants.get(other)
        if constant is None or node.scope.shapes.rank(data) != len(dims):
            continue
        behind = zip(reversed(constant.dims), reversed(dims), strict=False)
        return data if all(size == 1 or isinstance(d, int) for size, d in behind) else None
    return None


def reshaped(node: Node, source: Shape | None) -> Shape | None:
    """The output dimensions of a Reshape: 0 copies, -1 takes what is left; None when that is not known.

    Without a ``source`` of known rank, those two are sizes that nothing is known about.
    """
    listed = node.integers("shape")
    wanted = [Monomial(w) for w in listed] if listed is not None else values(node.scope, node.input(1))
    if wanted is None:
        return None
    copies = not node.integer("allowzero", 0)
    zeros = [i for i, w in enumerate(wanted) if w.value == 0]
    own = [Monomial(1, (f"?{node.outputs[0]}:{i}",)) for i in range(len(wanted))]
    if copies and source is not None and any(i >= len(source) for i in zeros):
        return None
    copied = own if source is None else source
    target = [copied[i] if copies and i in zeros else w for i, w in enumerate(wanted)]
    open_axes = [i for i, w in enumerate(wanted) if w.value == -1]
    if any(w.number < 0 for i, w in enumerate(target) if i not in open_axes) or len(open_axes) > 1:
        return None
    for i in open_axes:
        others = product([d for j, d in enumerate(target) if j != i])
        left = None if source is None else product(source).over(others)
        target[i] = left if left is not None else own[i]
    return target


def values(scope: Scope, name: str, depth: int = 0) -> Shape | None:
    """The integers in a small tensor, or None when they cannot be followed."""
    constant = scope.constants.get(name)
    if constant is not None:
        if constant.floating or constant.size > _LONGEST or len(constant.dims) > 1:
            return None
        return [Monomial(int(v)) for v in constant.array().ravel()]
    known = scope.shapes.computed
    if name not in known:
        node = scope.producer(name)
        rule = None if node is None or depth > _DEPTH else _RULES.get(node.op)
        found = None if rule is None or node is None else rule(node, depth + 1)
        short = found is not None and all(len(m.names) <= _LONGEST for m in found) and len(found) <= _LONGEST
        known[name] = found if short else None
    remembered: Shape | None = known[name]
    return remembered


def elements(scope: Scope, name: str, depth: int = 0) -> list[float | None] | None:
    """The numbers in a small vector, None for each that is computed; None when even their count is not known."""
    constant = scope.constants.get(name)
    if constant is not None:
        return [float(v) for v in constant.array().ravel()] if constant.size <= _LONGEST else None
    node = scope.producer(name)
    if node is not None and node.op in ("Identity", "Cast"):
        return elements(scope, node.inputs[0], depth)
    if node is not None and node.op == "Concat" and depth < _NESTED:
        parts = [elements(scope, part, depth + 1) for part in node.inputs]
        return None if None in parts else [v for part in parts if part is not None for v in part]
    followed = values(scope, name)
    if followed is not None:
        return [m.value for m in followed]
    size = scope.shapes.dim(name, 0)
    return [None] * size if isinstance(size, int) and size <= _LONGEST and scope.shapes.rank(name) == 1 else None


def factors(node: Node) -> list[float | None]:
    """By what a Resize or Upsample scales each of the axes that it lists; None for each that is computed."""
    listed = node.attributes.get("scales")
    if listed is not None:
        return [float(scale) for scale in listed.floats]
    name = node.input(1 if node.op == "Upsample" or node.scope.opset < 11 else 2)
    return (elements(node.scope, name) if name else None) or []


def _shape(node: Node, depth: int) -> Shape | None:  # noqa: ARG001 - one signature for all rules
    dims = dimensions(node.scope, node.inputs[0])
    if dims is None:
        return None
    return dims[slice(node.integer("start", 0), node.integer("end", len(dims)))]


def _same(node: Node, depth: int) -> Shape | None:
    return values(node.scope, node.inputs[0], depth)


def _concat(node: Node, depth: int) -> Shape | None:
    parts = [values(node.scope, name, depth) for name in node.inputs]
    return None if any(p is None for p in parts) else [m for part in parts if part is not None for m in part]


def _gather(node: Node, depth: int) -> Shape | None:
    source, picked = values(node.scope, node.inputs[0], depth), values(node.scope, node.inputs[1], depth)
    if source is None or picked is None or node.integer("axis", 0) != 0:
        return None
    indices = [p.value for p in picked]
    if any(i is None or not -len(source) <= i < len(source) for i in indices):
        return None
    return [source[i] for i in indices if i is not None]


def _slice(node: Node, depth: int) -> Shape | None:
    source = values(node.scope, node.inputs[0], depth)
    bounds: list[int] = []
    for position, attribute in ((1, "starts"), (2, "ends")):
        listed = node.integers(attribute)
        found = [Monomial(v) for v in listed] if listed is not None else values(node.scope, node.input(position), depth)
        if found is None or len(found) != 1 or found[0].value is None:
            return None
        bounds.append(found[0].value)
    step = values(node.scope, node.input(4), depth) if node.input(4) else [ONE]
    if source is None or step != [ONE]:
        return None
    return source[bounds[0] : bounds[1]]


def _multiply(node: Node, depth: int) -> Shape | None:
    sides = [values(node.scope, name, depth) for name in node.inputs]
    if sides[0] is None or sides[1] is None or len(sides[0]) != len(sides[1]):
        return None
    if node.op == "Mul":
        return [a * b for a, b in zip(sides[0], sides[1], strict=True)]
    quotients = [a.over(b) for a, b in zip(sides[0], sides[1], strict=True)]
    return None if any(q is None for q in quotients) else [q for q in quotients if q is not None]


def _product(node: Node, depth: int) -> Shape | None:
    source = values(node.scope, node.inputs[0], depth)
    return None if source is None else [product(source)]


_RULES = {
    "Shape": _shape,
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"), _same),
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    **dict.fromkeys(("Mul", "Div"), _multiply),
    "ReduceProd": _product,
}


def plain(shape: Shape | None) -> Dims | None:
    """Monomials as dimensions: numbers and single names; anything else is not known."""
    if shape is None:
        return None
    return tuple(_plain(m) for m in shape)


def _plain(m: Monomial) -> int | str | None:
    if m.value is not None:
        return m.value
    single = m.number == 1 and len(m.names) == 1 and not m.names[0].startswith("?")
    return m.names[0] if single else None
