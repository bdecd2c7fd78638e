"""Removing what a fold orphaned, and only that: constants and nodes that were read before and are not any more."""

from __future__ import annotations

from collections.abc import Iterable

from bnfold.graph import Node, Scope

__all__ = ["Orphans"]


class Orphans:
    """Counts the reads of one scope's tensors while nodes go away.

    Attributes:
        nodes: indices of nodes to remove; tensors: names of initializers to remove.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._lost: dict[str, int] = {}
        self._open: list[str] = []
        self.nodes: set[int] = set()
        self.tensors: set[str] = set()

    def lose(self, names: Iterable[str]) -> None:
        """Each of these tensors lost one reader."""
        for name in names:
            if name:
                self._lost[name] = self._lost.get(name, 0) + 1
                self._open.append(name)

    def gain(self, names: Iterable[str]) -> None:
        """Each of these tensors got one more reader."""
        for name in names:
            self._lost[name] = self._lost.get(name, 0) - 1

    def lose_node(self, node: Node, names: Iterable[str]) -> None:
        """A node vanished, or another takes its place, and with it these reads."""
        self.nodes.add(node.index)
        self.lose(names)

    def sweep(self) -> list[str]:
        """Follow the losses to their end; returns captured tensors that this scope no longer reads at all."""
        given_back = []
        initializers, outputs = self._scope.initializers, self._scope.output_set
        kept = self._scope.protected
        while self._open:
            name = self._open.pop()
            if self._lost[name] < len(self._scope.readers(name)) or name in outputs:
                continue
            if name in initializers and name not in kept:
                self.tensors.add(name)
                continue
            node = self._scope.producer(name)
            if node is not None:
                self._orphaned(node)
            elif name in self._scope.captures:
                given_back.append(name)
        return sorted(set(given_back))

    def _orphaned(self, node: Node) -> None:
        if node.index not in self.nodes and not any(self._is_read(name) for name in node.outputs):
            self.remove(node)

    def remove(self, node: Node) -> None:
        """The node goes, and with it all that it reads."""
        self.nodes.add(node.index)
        self.lose(node.inputs)
        for owner, child in self._scope.children:
            if owner is node:
                self.lose(sorted(child.captures))

    def _is_read(self, name: str) -> bool:
        return bool(name) and (
            name in self._scope.output_set or self._lost.get(name, 0) < len(self._scope.readers(name))
        )
