"""Names: which tensors keep theirs, which become one, and free names for new tensors.

The rule of the result is: *the same name means the same value*. Tensors joined by a vanished operator become one
tensor; it takes
the name of the one among them whose value it has. A tensor that only exists with a new value gets a new name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfold.graph import Scope, attribute_graphs

if TYPE_CHECKING:
    from onnx import GraphProto

    from bnfold.plan import ScopePlan

__all__ = ["FreeNames", "final_names", "rename_captures"]


class FreeNames:
    """Hands out names that no tensor of the model has, in any scope."""

    def __init__(self, roots: list[Scope]) -> None:
        self._roots = roots
        self._taken: set[str] | None = None

    def take(self, wish: str) -> str:
        """The name itself when free, else with the first free number behind it."""
        if self._taken is None:
            self._taken = set().union(*(scope.names() for root in self._roots for scope in root.scopes()))
        name, number = wish, 1
        while name in self._taken:
            name, number = f"{wish}_{number}", number + 1
        self._taken.add(name)
        return name


def final_names(plan: ScopePlan, free: FreeNames) -> dict[str, str]:
    """New names of this scope's tensors, for those that do not simply keep theirs."""
    roots: dict[str, str] = {}
    classes: dict[str, list[str]] = {}
    for index in sorted(plan.gone):
        member = plan.gone[index]
        root = roots.get(member.data, member.data)
        roots[member.output] = root
        classes.setdefault(root, [root]).append(member.output)
    renamed: dict[str, str] = {}
    outputs = plan.scope.output_set
    for root, members in classes.items():
        same = [name for name in members if name not in plan.changed]
        kept = next((name for name in same if name in outputs), same[0] if same else None)
        final = kept if kept is not None else free.take(f"{root}_folded")
        renamed.update((name, final) for name in members if name != final)
    for tensor in plan.changed:
        if tensor not in roots and tensor not in classes:
            renamed[tensor] = free.take(f"{tensor}_folded")
    inside = {  # of tensors inside a chain that is written anew only the shape can still be read
        member.output: renamed.get(chain.data, chain.data)
        for chain in plan.chains
        if plan.shrinks(chain)
        for member in chain.members[:-1]
    }
    return {name: inside.get(final, final) for name, final in renamed.items()} | inside


def rename_captures(scope: Scope, renamed: dict[str, str]) -> None:
    """Carry new names into the bodies that read these tensors (ONNX forbids bodies to reuse outer names)."""
    for node, child in scope.children:
        if not child.captures.isdisjoint(renamed):
            for _, body in attribute_graphs(node.proto):
                _rename_body(body, renamed)


def _rename_body(graph: GraphProto, renamed: dict[str, str]) -> None:
    stack = [graph]
    while stack:
        body = stack.pop()
        for node in body.node:
            for position, name in enumerate(node.input):
                if name in renamed:
                    node.input[position] = renamed[name]
            stack.extend(inner for _, inner in attribute_graphs(node))
        for value in body.output:
            if value.name in renamed:
                value.name = renamed[value.name]
