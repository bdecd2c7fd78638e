"""Past affines that stay: along different axes two of them are no single affine, but they may change places.

With ``B(x) = a * x + b`` in the way of ``A(x) = s * x + t``, each along its own axis: two scales commute, and so do two
shifts. Else ``A(B(x)) = a * (s * x) + (s * b + t)``: the scale goes on, and the shift of ``B`` gets both axes; or ``B``
takes all of it in, ``(s * a) * x + (s * b + t)``. Along one axis ``a * x + t = a * (x + t / a)``, and towards the
consumers ``B(A(x)) = s * (x + (b + t) / s)``. None of it needs an operator that is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bnfold import dtypes
from bnfold.affine import Affine, Vector
from bnfold.carry.step import Edit, Step
from bnfold.chain import SCALE, SHIFT, Chain, compose
from bnfold.graph import Node

if TYPE_CHECKING:
    from bnfold.plan import ScopePlan

__all__ = ["backward", "forward", "undone", "widen"]


def backward(plan: ScopePlan, node: Node, affine: Affine, *, widen: bool) -> list[Step]:
    """The ways of an affine behind the last operator of a chain, towards its front.

    Args:
        widen: constants may get a second axis; the chain is no affine per channel from then on.
    """
    chain = plan.chain_of[node.index]
    if chain.norm is not None or node is not chain.members[-1].node:
        return []
    own = chain.affine
    past = [Step(((chain.data, affine),))] if _commute(plan, chain, affine) else []
    placed = _placed(plan, chain, affine) if widen else None
    if placed is None:
        return past
    ways = []
    shift = (Edit(node, SHIFT, placed),) if own.shifts else ()
    scale = (Edit(node, SCALE, placed.only_scale()),) if placed.scales else ()
    if own.shifts and placed.scales:
        ways.append(Step(((chain.data, affine.only_scale()),), shift))
    if (own.scales or not placed.scales) and (own.shifts or not placed.shifts):
        ways.append(Step((), scale + shift))
    both = None if chain.widened else compose(plan.scope, chain.output, own, affine)
    if both is not None and both.shifts and not own.shifts and not affine.scales and both.scale.all():
        past.append(Step(((chain.data, Affine.of(1.0, both.shift / both.scale, both.axis)),)))
    return [way for way in ways if _expressible(plan, chain, way.edits)] + past


def forward(plan: ScopePlan, node: Node, affine: Affine, *, widen: bool) -> Step | None:
    """The way of an affine in front of the first operator of a chain, towards its end."""
    chain = plan.chain_of[node.index]
    if chain.norm is not None or node is not chain.members[0].node:
        return None
    own = chain.affine
    if _commute(plan, chain, affine):
        return Step(((chain.output, affine),))
    placed = _placed(plan, chain, affine) if widen and own.shifts and not (own.scales and affine.shifts) else None
    if placed is None or not _may_follow(chain, placed):
        return None
    ahead = Affine(1.0 / placed.scale, placed.shift / placed.scale, placed.axis)  # s * (a * x + (b + t) / s)
    last = chain.members[-1].node
    edits = (Edit(last, SHIFT, ahead),)
    if not ahead.finite or not _expressible(plan, chain, edits):
        return None
    return Step(((chain.output, affine.only_scale()),), edits)


def undone(plan: ScopePlan, chain: Chain, scale: Affine) -> tuple[Edit, ...] | None:
    """What the chain's shift takes so that its own scale can go behind it, ``a * x + b = a * (x + b / a)``; None when
    that cannot be."""
    placed = _placed(plan, chain, scale)
    if placed is None or not _may_follow(chain, placed):
        return None
    edit = Edit(chain.members[-1].node, SHIFT, Affine(1.0 / placed.scale, placed.shift, placed.axis))
    return (edit,) if edit.affine.finite and _expressible(plan, chain, (edit,)) else None


def widen(chain: Chain, edit: Edit) -> None:
    """Let a constant of the chain pass through an affine; along its own axis the chain stays an affine per channel."""
    own = chain.affine.simplest()
    last = edit.slot == SCALE or all(earlier.slot != edit.slot for earlier in chain.widened)  # scales commute
    both = compose(edit.node.scope, chain.output, own, edit.affine.simplest()) if last else None
    chain.rewritten = True
    if both is None:
        chain.widened += (edit,)
    elif edit.slot == SCALE:
        chain.affine = Affine.of(both.scale, own.shift, both.axis)
    else:
        chain.affine = Affine.of(own.scale, both.shift, both.axis)


def _may_follow(chain: Chain, scale: Affine) -> bool:
    """Whether a sum can do without the scale in front of it, which in float16 often keeps it from overflowing."""
    half = chain.members[0].node.scope.shapes.element_type(chain.output) == dtypes.FLOAT16
    return bool(scale.scale.all()) and not (half and bool((np.abs(scale.scale) < 1.0).any()))


def _commute(plan: ScopePlan, chain: Chain, affine: Affine) -> bool:
    """Whether both are scales or both are shifts, and not along one axis, where they merge."""
    own = chain.affine
    alike = not (affine.shifts or own.shifts) or not (affine.scales or own.scales)
    return alike and compose(plan.scope, chain.output, own, affine) is None


def _placed(plan: ScopePlan, chain: Chain, affine: Affine) -> Affine | None:
    """The affine with its axis counted from the last one; None where the chain's constants may not get a second one."""
    old = plan.scope.opset < 7  # a constant broadcasts along neighbouring axes only
    nothing = not affine.scale.any()  # constants that are the same all along an axis are none along that axis
    if (
        old
        or nothing
        or not plan.may_change(chain)
        or int(chain.affine.scales) + int(chain.affine.shifts) > len(chain.members)
    ):
        return None
    if affine.uniform:
        return affine
    shapes = plan.scope.shapes
    rank = shapes.rank(chain.output)
    axis = affine.axis if affine.axis < 0 or rank is None else affine.axis - rank
    return affine.at(axis) if axis < 0 and shapes.dim(chain.output, axis) == affine.scale.size else None


def _expressible(plan: ScopePlan, chain: Chain, edits: tuple[Edit, ...]) -> bool:
    """Whether the chain's constants hold what becomes of them, as far as their largest and smallest values tell."""
    scale, shift = _range(chain.affine.scale), _range(chain.affine.shift)[1:]
    for edit in (*chain.widened, *edits):
        factor = _range(edit.affine.scale)
        if edit.slot == SCALE:
            scale = scale * factor
        else:
            shift = shift * factor[1] + _range(edit.affine.shift)[1]
    return plan.expressible(chain, Affine(scale, shift))


def _range(values: Vector) -> Vector:
    size = np.abs(values)
    return np.array([size.min(), size.max()])
