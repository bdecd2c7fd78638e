"""Names for sites: which norms end there."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bnfold.report import Folded
    from bnfold.verify.sites import Site
    from bnfold.verify.view import ViewNode

__all__ = ["Labels"]

_AFFINE = ("Mul", "Add", "Sub", "Div")


class Labels:
    """Finds the folds that end at a site."""

    def __init__(self, folds: Sequence[Folded]) -> None:
        self._nodes = {fold.node for fold in folds}
        self._scoped = {fold.node for fold in folds if fold.scope}
        self._ending: defaultdict[str, list[str]] = defaultdict(list)
        self._hosted: defaultdict[str, list[str]] = defaultdict(list)
        for fold in folds:
            for tensor in fold.tensor:
                self._ending[tensor].append(fold.node)
            for host in fold.into:
                self._hosted[host].append(fold.node)

    def of(self, site: Site) -> tuple[str, ...]:
        """The folds that end at a site; without folds, the norms in the original's region, or what makes the tensor."""
        return tuple(dict.fromkeys(self._known(site) or _unknown(site)))

    def _known(self, site: Site) -> list[str]:
        present = [node.label for node in site.original.nodes]
        bare = [re.sub(r"__\d+$", "", label) for label in present]  # nodes of inlined functions have a counter
        named = [label for label in present if label in self._nodes]
        named += [label for label in bare if label in self._scoped]
        if named:
            return named
        hosts = (node.label for node in site.folded.nodes)  # a branch that a fold should have left alone
        return self._ending.get(site.tensor) or _flat(self._hosted.get(host, []) for host in hosts)


def _flat(lists: Iterable[list[str]]) -> list[str]:
    return [item for each in lists for item in each]


def _unknown(site: Site) -> list[str]:
    """Norms that are gone, then affine operators that are gone, then norms, then whatever makes the tensor."""
    kept = {node.label for node in site.folded.nodes}
    for wanted in (("BatchNormalization",), _AFFINE):
        found = [n.label for n in site.original.nodes if n.op in wanted and n.label not in kept and _stored(n)]
        if found:
            return found
    norms = [n.label for n in site.original.nodes if n.op == "BatchNormalization"]
    return norms or [node.label for node in site.original.nodes[-1:]]


def _stored(node: ViewNode) -> bool:
    """Whether a node works with a constant."""
    return any(node.view.is_constant(name) for name in node.inputs if name)
