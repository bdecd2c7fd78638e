"""Outputs that differ only because a decision fell the other way on equal grounds.

Operators such as ArgMax, NonMaxSuppression or QuantizeLinear jump while what they decide on moves by a rounding error.
Where every site of a model is proven, and what its first decisions are made on agrees within rounding, a different
decision is a tie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bnfold.errors import RuntimeMissingError
from bnfold.verify import metrics
from bnfold.verify.evaluation import perturbed_feeds
from bnfold.verify.noise import epsilon, is_float
from bnfold.verify.view import decides

if TYPE_CHECKING:
    from bnfold.verify.cases import Case
    from bnfold.verify.evaluation import Evaluation
    from bnfold.verify.view import View

__all__ = ["decided_alike", "grounds"]

_FACTOR = 32.0
_ULPS = 8.0


def grounds(original: View, folded: View) -> list[str]:
    """Tensors of both models that the first decisions of the network are made on."""
    after: set[str] = set()
    found: dict[str, None] = {}
    for node in original.nodes:
        reads = list(node.reads())
        if any(name in after for name in reads):
            after.update(node.outputs)
        elif decides(node):
            after.update(node.outputs)
            computed = (n for n in reads if n in original.producers and not original.is_constant(n))
            found.update(dict.fromkeys(computed))
    return [name for name in found if name in folded.producers]


def decided_alike(evaluation: Evaluation, names: list[str], case: Case) -> bool:
    """Whether some tensors agree within rounding when both models run whole."""
    options = evaluation.options
    try:
        original = evaluation.open(evaluation.original, expose=names).run(case.feeds, names)
        folded = evaluation.open(evaluation.folded, expose=names).run(case.feeds, names)
        session = evaluation.perturbed(expose=names) or evaluation.open(evaluation.original, expose=names)
        moved = session.run(perturbed_feeds(case.feeds, options.seed), names)
    except RuntimeMissingError:
        return False
    for name in names:
        a, b, p = (np.asarray(run[name]) for run in (original, folded, moved))
        if a.shape != b.shape:
            return False
        if not is_float(a):
            if np.any(a != b):
                return False
            continue
        noise = metrics.distance(a, p).max(initial=0) if a.shape == p.shape else 0.0
        if metrics.distance(a, b).max(initial=0) > _FACTOR * noise + _ULPS * epsilon(a.dtype) * metrics.size(a):
            return False
    return True
