"""Names for sites: which norms end there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnfold.report import Folded
    from bnfold.verify.sites import Site
    from bnfold.verify.view import ViewNode

__all__ = ["DECISIONS", "labels"]

#: Operators whose output jumps while their input moves by a rounding error.
DECISIONS = frozenset(
    (
        *("ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero", "Unique", "Hardmax"),
        *("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"),
        *("Round", "Floor", "Ceil", "Sign", "Mod", "QuantizeLinear", "DynamicQuantizeLinear", "Cast", "IsInf", "IsNaN"),
    )
)
_AFFINE = ("Mul", "Add", "Sub", "Div")


def labels(site: Site, folds: Sequence[Folded]) -> tuple[str, ...]:
    """The folds that end at a site; without folds, the norms in the original's region, or what makes the tensor."""
    present = [node.label for node in site.original.nodes]
    bare = {re.sub(r"__\d+$", "", label) for label in present}  # nodes of inlined functions have a counter
    named = [fold.node for fold in folds if fold.node in present or (fold.scope and fold.node in bare)]
    if not named:
        named = [fold.node for fold in folds if site.tensor in fold.tensor]
    if not named:  # a branch that a fold should have left alone
        took = {node.label for node in site.folded.nodes}
        named = [fold.node for fold in folds if took.intersection(fold.into)]
    if named:
        return tuple(dict.fromkeys(named))
    gone = {node.label for node in site.original.nodes} - {node.label for node in site.folded.nodes}
    for wanted in (("BatchNormalization",), _AFFINE):
        found = [n.label for n in site.original.nodes if n.op in wanted and n.label in gone and _stored(n)]
        if found:
            return tuple(found)
    norms = [n.label for n in site.original.nodes if n.op == "BatchNormalization"]
    return tuple(norms or present[-1:])


def _stored(node: ViewNode) -> bool:
    """Whether a node works with a constant."""
    return any(node.view.is_constant(name) for name in node.inputs if name)
