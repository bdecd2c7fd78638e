"""The operators that let an affine pass, one file per family, each with tables ``BACKWARD`` and ``FORWARD``."""

from __future__ import annotations

from bnfold.carry import branches, channels, elementwise, layout, reshape, spatial
from bnfold.carry.step import Backward, Edit, Forward, Step

_FAMILIES = (elementwise, layout, reshape, channels, spatial, branches)

BACKWARD: dict[str, Backward] = {op: rule for family in _FAMILIES for op, rule in family.BACKWARD.items()}
FORWARD: dict[str, Forward] = {op: rule for family in _FAMILIES for op, rule in family.FORWARD.items()}

__all__ = ["BACKWARD", "FORWARD", "Edit", "Step"]
