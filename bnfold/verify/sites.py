"""Where two models differ, found from their nodes alone.

Two graphs are laid over each other by tensor names. A tensor that the *same* operator makes from the *same* inputs in
both has the same value in both, whenever its inputs have. Where that is not so there is a **site**: a tensor of the
same name that different operators or weights make. Around it lies a *region*, on each side: everything between the
tensor and the nearest tensors that both models have (the *frontier*), constants included.

If, at every site, both regions compute the same function of the frontier, then by induction along the graph every
common tensor has the same value in both models, the outputs among them. That is the proof; ``probe`` checks the sites.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from bnfold.verify.view import View, ViewNode

_ALIGNING_STEPS = 24

__all__ = ["Key", "Pairing", "Region", "Site", "pair"]

Key = tuple[str, str]
"""A tensor: the path of the scope that defines it, and its name."""


@dataclass(frozen=True, slots=True)
class Region:
    """What makes a site's tensor on one side.

    Attributes:
        target: the tensor.
        nodes: operators between the frontier and the tensor, in order; those that only compute constants left out.
        frontier: tensors that both models have, which enter.
        constants: constants that the nodes read, each with the scope that defines it.
    """

    target: Key
    nodes: tuple[ViewNode, ...]
    frontier: tuple[Key, ...]
    constants: tuple[tuple[View, str], ...]


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor that both models have and that different operators or weights make."""

    key: Key
    original: Region
    folded: Region

    @property
    def tensor(self) -> str:
        return self.key[1]

    @property
    def in_main_graph(self) -> bool:
        return not self.key[0]

    def frontier(self) -> tuple[Key, ...]:
        return tuple(dict.fromkeys(self.original.frontier + self.folded.frontier))


@dataclass(slots=True)
class Pairing:
    """The result of laying one graph over the other.

    Attributes:
        sites: in the order of the original.
        identical: number of tensors that come out the same without a proof.
        complete: whether every graph output is covered.
        open: graph outputs that are not.
    """

    sites: list[Site] = field(default_factory=list)
    identical: int = 0
    complete: bool = True
    open: list[str] = field(default_factory=list)


def pair(original: View, folded: View, dropped: Iterable[Key] = ()) -> Pairing:
    """Lay the main graph of the folded model over that of the original.

    Args:
        original, folded: the main graphs.
        dropped: tensors that are not to count as common although both models have them: other tools use a name again
            for a tensor of another value.
    """
    return _Pairer(original, folded, frozenset(dropped)).run()


class _Pairer:
    def __init__(self, original: View, folded: View, dropped: frozenset[Key]) -> None:
        self.original, self.folded, self.dropped = original, folded, dropped
        self.opsets = original.source.opsets(), folded.source.opsets()
        self.common: dict[str, set[str]] = {}
        self.constants: dict[tuple[Key, Key], bool] = {}
        self.result = Pairing()

    def run(self) -> Pairing:
        self._pair(self.original, self.folded)
        return self.result

    def _pair(self, a: View, b: View) -> bool:
        """Pair one scope; false when an output of it is not covered."""
        self.common[a.path] = self._common(a, b)
        for node in a.nodes:
            for position, name in enumerate(node.outputs):
                if name in self.common[a.path] and name in b.producers:
                    self._tensor(node, position, name, b)
        return self._outputs(a, b)

    def _common(self, a: View, b: View) -> set[str]:
        live_a, live_b = a.live(), b.live()
        found = {n for n in a.fed if n in b.fed}
        found |= {n for n in a.producers if n in b.producers and n in live_a and n in live_b}
        return {n for n in found if n not in a.constants and n not in b.constants and (a.path, n) not in self.dropped}

    def _tensor(self, node: ViewNode, position: int, name: str, b: View) -> None:
        other = b.producers[name]
        if other.outputs.index(name) == position and self._same(node, other):
            self.result.identical += 1
        else:
            self._site(node.view, b, name)

    def _outputs(self, a: View, b: View) -> bool:
        covered = len(a.outputs) == len(b.outputs)
        for name, other in zip(a.outputs, b.outputs, strict=False):
            if name == other and name in self.common[a.path]:
                continue
            if a.is_constant(name) and b.is_constant(other) and self._same_constant(a, name, b, other):
                continue
            if a.parent is None and name == other and name in a.producers and name in b.producers:
                self._site(a, b, name)  # constant on one side only, or of two different values
                continue
            if a.parent is not None and name == other and self._is_common(a, name, b, other):
                continue  # a body that hands a captured tensor through
            covered = False
            self._miss(a, name)
        return covered

    def _miss(self, view: View, name: str) -> None:
        self.result.complete = False
        self.result.open.append(f"{view.label}: {name}" if view.path else name)

    def _site(self, a: View, b: View, name: str) -> None:
        original, folded = self._region(a, name), self._region(b, name)
        if original is None or folded is None:
            self._miss(a, name)
            return
        original, folded = self._aligned(a, b, name, (original, folded))
        self.result.sites.append(Site((a.path, name), original, folded))

    def _aligned(self, a: View, b: View, name: str, first: tuple[Region, Region]) -> tuple[Region, Region]:
        """Give both regions the same frontier, where a few steps back do that.

        Tensors of a frontier get values of their own, so none may be made from another: where one side starts from a
        quantized tensor and the other from the same tensor dequantized, both have to start from the former.
        """
        regions, through = first, set[Key]()
        for _ in range(_ALIGNING_STEPS):
            sides = [set(region.frontier) for region in regions]
            odd = [key for key in sides[0] ^ sides[1] if key[0] == a.path and key[1] in a.producers]
            if not odd:
                return regions if sides[0] == sides[1] else first
            through.add(max(odd, key=lambda key: a.producers[key[1]].index))
            original, folded = self._region(a, name, through), self._region(b, name, through)
            if original is None or folded is None:
                return first
            regions = original, folded
        return first

    def _region(self, view: View, target: str, through: AbstractSet[Key] = frozenset()) -> Region | None:
        """Walk back from the target to the frontier, and ``through`` some of the tensors that would be in it.

        None when the way runs into an input that only one model has.
        """
        nodes: dict[tuple[str, int], ViewNode] = {}
        frontier: dict[Key, None] = {}
        constants: dict[Key, tuple[View, str]] = {}
        stack: list[tuple[View, str]] = [(view, target)]
        seen: set[Key] = set()
        while stack:
            here, name = stack.pop()
            home = here.home(name)
            if home is None:
                return None
            key = (home.path, name)
            if key in seen:
                continue
            seen.add(key)
            if name in home.constants:
                constants[key] = (home, name)
            elif key != (view.path, target) and key not in through and name in self.common.get(home.path, ()):
                frontier[key] = None
            elif name in home.producers:
                node = home.producers[name]
                nodes[(home.path, node.index)] = node
                stack.extend((home, read) for read in node.reads())
            else:
                return None
        ordered = sorted(nodes.values(), key=lambda n: (_depth(n.view), n.index))
        return Region((view.path, target), tuple(ordered), tuple(frontier), tuple(constants.values()))

    def _same(self, x: ViewNode, y: ViewNode) -> bool:
        """Whether two nodes make the same of the same: operator, attributes, inputs; bodies are paired on their own."""
        if x.op != y.op or len(x.inputs) != len(y.inputs):
            return False
        domain = "" if x.proto.domain == "ai.onnx" else x.proto.domain
        if self.opsets[0].get(domain) != self.opsets[1].get(domain):
            return False
        if len(x.bodies) != len(y.bodies) or attributes(x) != attributes(y):
            return False
        if len(list(filter(None, x.outputs))) != len(list(filter(None, y.outputs))):
            return False  # old norms and dropouts mean training by having more outputs
        for ours, theirs in zip(x.inputs, y.inputs, strict=True):
            if not self._same_input(x.view, ours, y.view, theirs):
                return False
        for body, other in zip(x.bodies, y.bodies, strict=True):
            if body.inputs != other.inputs or len(body.outputs) != len(other.outputs):
                return False
        if not x.bodies:
            return True
        kept = len(self.result.sites), len(self.result.open), self.result.complete, self.result.identical
        covered = [self._pair(body, other) for body, other in zip(x.bodies, y.bodies, strict=True)]
        if all(covered):
            return True
        sites, missed, self.result.complete, self.result.identical = kept  # the node as a whole is the site then
        del self.result.sites[sites:], self.result.open[missed:]
        return False

    def _same_input(self, a: View, x: str, b: View, y: str) -> bool:
        if not x or not y:
            return x == y
        if a.is_constant(x) and b.is_constant(y):
            return self._same_constant(a, x, b, y)
        return self._is_common(a, x, b, y)

    def _is_common(self, a: View, x: str, b: View, y: str) -> bool:
        home, other = a.home(x), b.home(y)
        if home is None or other is None or x != y or home.path != other.path:
            return False
        return x in self.common.get(home.path, ())

    def _same_constant(self, a: View, x: str, b: View, y: str) -> bool:
        home, other = a.home(x), b.home(y)
        assert home is not None, "only constants are compared, and these have a scope"
        assert other is not None
        pairs = ((home.path, x), (other.path, y))
        if pairs not in self.constants:
            self.constants[pairs] = False
            self.constants[pairs] = self._compare_constants(home, x, other, y)
        return self.constants[pairs]

    def _compare_constants(self, a: View, x: str, b: View, y: str) -> bool:
        if x in a.initializers and y in b.initializers:
            return a.source.same(a.initializers[x], b.source, b.initializers[y])
        made, other = a.producers.get(x), b.producers.get(y)
        if made is None or other is None or made.op != other.op or made.outputs.index(x) != other.outputs.index(y):
            return False
        tensors = [next((p.t for p in n.proto.attribute if p.name == "value"), None) for n in (made, other)]
        if made.op == "Constant" and tensors[0] is not None and tensors[1] is not None:
            return a.source.same(tensors[0], b.source, tensors[1])
        return self._same(made, other)


def attributes(node: ViewNode) -> tuple[tuple[str, bytes], ...]:
    """A node's attributes but for bodies and comments, in a form that can be compared."""
    found = []
    for attribute in node.proto.attribute:
        if attribute.HasField("g") or attribute.graphs:
            continue
        plain: Any = attribute
        if attribute.HasField("doc_string") or attribute.HasField("t"):
            plain = type(attribute)()
            plain.CopyFrom(attribute)
            plain.ClearField("doc_string")
            if plain.HasField("t"):
                plain.t.ClearField("name")
                plain.t.ClearField("doc_string")
        found.append((attribute.name, plain.SerializeToString(deterministic=True)))
    return tuple(sorted(found))


def _depth(view: View) -> int:
    depth = 0
    while view.parent is not None:
        view, depth = view.parent, depth + 1
    return depth
