"""The operators that let an affine pass, one file per family, each with tables ``BACKWARD`` and ``FORWARD``.

Pad alone depends on what is decided already: a value that changed with one affine is what the next one meets.
"""

from __future__ import annotations

from functools import partial

from bnfold.carry import branches, elementwise, layout, matrices, pad, parts, reshape, selection, spatial, weave
from bnfold.carry.branches import aside
from bnfold.carry.parts import split_alone
from bnfold.carry.selection import PICKS, reads_elsewhere
from bnfold.carry.step import Backward, Edit, Edited, Edits, Forward, Step, onto_constants
from bnfold.carry.together import together

_FAMILIES = (elementwise, layout, reshape, parts, selection, weave, spatial, branches, matrices)

_BACKWARD: dict[str, Backward] = {op: rule for family in _FAMILIES for op, rule in family.BACKWARD.items()}
_FORWARD: dict[str, Forward] = {op: rule for family in _FAMILIES for op, rule in family.FORWARD.items()}

SPREAD = frozenset((*elementwise.BACKWARD, *reshape.BACKWARD, *layout.SPREAD))
"""Operators that let an affine pass whose channels stand on several axes."""

__all__ = [
    "PICKS",
    "SPREAD",
    "Edit",
    "Edited",
    "Edits",
    "Step",
    "aside",
    "backward_rules",
    "forward_rules",
    "onto_constants",
    "reads_elsewhere",
    "split_alone",
    "together",
]


def backward_rules(edits: Edits) -> dict[str, Backward]:
    """The rules towards producers, by operator; ``edits`` may grow while the rules are in use."""
    return {**_BACKWARD, "Pad": partial(pad.backward, edits=edits)}


def forward_rules(edits: Edits) -> dict[str, Forward]:
    """The rules towards consumers, by operator; ``edits`` may grow while the rules are in use."""
    return {**_FORWARD, "Pad": partial(pad.forward, edits=edits)}
