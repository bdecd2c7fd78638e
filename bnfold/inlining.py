"""Model-local functions whose norms fold only where they are called.

One body serves all its calls, so a norm in it folds in the body only when its parameters and weights are constants
there.
Where they come from the calls, those functions, and no others, are inlined by onnx's own inliner, provided that more
norms
fold afterwards.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto, checker, inliner

from bnfold.errors import printable
from bnfold.graph import Scope
from bnfold.model import Model
from bnfold.plan import ScopePlan

__all__ = ["inline_where_needed"]

Plans = dict[int, ScopePlan]
Planner = Callable[[Model], tuple[list[Scope], Plans]]

_INLINING_CANNOT_HELP = frozenset(
    ("training-mode", "per-activation", "variance", "not-finite", "excluded", "withdrawn")
)


def inline_where_needed(model: Model, roots: list[Scope], plans: Plans, planner: Planner) -> tuple[list[Scope], Plans]:
    """Return the index and plan to go on with: the given ones, or those of the model with some functions inlined.

    The model's skeleton is changed in the latter case, and a note says which functions are gone.
    """
    wanted = _functions_with_kept_norms(roots, plans)
    if not wanted:
        return roots, plans
    inlined = _inlined(model.proto, wanted)
    if inlined is None:
        return roots, plans
    trial = Model(inlined, model.blobs, model.path, model.notes)
    new_roots, new_plans = planner(trial)
    if _norms_left(new_roots, new_plans) >= _norms_left(roots, plans):
        return roots, plans
    model.proto = trial.proto
    for root in new_roots:
        for scope in root.scopes():
            scope.model = model
    names = ", ".join(sorted(printable(name) for _, name in wanted))
    model.notes.append(
        f"inlined the calls of function {names}: its norms fold only where their parameters are constants"
    )
    return new_roots, new_plans


def _functions_with_kept_norms(roots: list[Scope], plans: Plans) -> list[tuple[str, str]]:
    return [
        (root.graph.domain, root.graph.name)
        for root in roots
        if root.is_function and any(_kept_norms(plans[id(scope)], helpable=True) for scope in root.scopes())
    ]


def _kept_norms(plan: ScopePlan, *, helpable: bool) -> int:
    refused = [r.code for i, r in plan.refused.items() if plan.scope.nodes[i].op == "BatchNormalization"]
    kept = [c.refusal.code if c.refusal else "" for c in plan.chains if c.staying and c.norm is not None]
    return sum(not helpable or code not in _INLINING_CANNOT_HELP for code in (*refused, *kept))


def _norms_left(roots: list[Scope], plans: Plans) -> int:
    """Norms that run when the model does: those in a function count once for each call."""
    bodies = {(root.graph.domain, root.graph.name): root for root in roots if root.is_function}
    counts: dict[int, int] = {}

    def left(root: Scope) -> int:
        if id(root) not in counts:
            counts[id(root)] = 0  # functions cannot call themselves; a malformed model must not hang us
            total = 0
            for scope in root.scopes():
                total += _kept_norms(plans[id(scope)], helpable=False)
                for node in scope.nodes:
                    body = bodies.get((node.proto.domain, node.proto.op_type))
                    total += 0 if body is None else left(body)
            counts[id(root)] = total
        return counts[id(root)]

    return left(roots[0])


def _inlined(proto: ModelProto, functions: list[tuple[str, str]]) -> ModelProto | None:
    """The model with the calls of these functions replaced by their bodies; all that is not graph or function stays.

    None where onnx does not inline them: calls nested more than 100 deep, for one.
    """
    try:
        done = inliner.inline_selected_functions(proto, functions)
    except checker.ValidationError:
        return None
    result = ModelProto()
    result.CopyFrom(proto)
    result.graph.CopyFrom(done.graph)
    del result.functions[:]
    result.functions.extend(done.functions)
    return result
