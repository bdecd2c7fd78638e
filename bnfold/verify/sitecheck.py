"""Checks all sites of a pairing, and lets regions grow over names that mean another value in the second model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import RuntimeMissingError
from bnfold.verify import shaping
from bnfold.verify.local import Entering, LocalChecker, LocalResult
from bnfold.verify.report import DIFFERENT, EQUAL
from bnfold.verify.sites import Key, Pairing, Site, pair
from bnfold.verify.source import SHAPE_OF
from bnfold.verify.types import TensorType, tensor_types

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bnfold.report import Folded
    from bnfold.verify.evaluation import Evaluation
    from bnfold.verify.options import Clock
    from bnfold.verify.view import View

__all__ = ["SiteCheck"]

_ROUNDS = 5  # how often a region grows
_LARGEST_REGION = 256  # nodes above which a site is the whole network, which comparing outputs is for


class SiteCheck:
    """See the module's docstring.

    Attributes:
        local: the checker.
        entering: what is known about the tensors that enter sites.
        results: what was found, by site.
        grown: tensors that regions grew over, with what was first found about them.
    """

    def __init__(self, views: tuple[View, View], evaluation: Evaluation, clock: Clock, folds: Sequence[Folded]) -> None:
        self.views, self.evaluation = views, evaluation
        self.local = LocalChecker(evaluation.original, evaluation.folded, evaluation.options, clock)
        self.entering = Entering({}, {})
        self.results: dict[Key, LocalResult] = {}
        self.grown: dict[Key, LocalResult] = {}
        # Where a fold ends the value must be the same; graph outputs cannot be grown over.
        self._fixed = {name for fold in folds for name in fold.tensor} | set(views[0].outputs)
        self._feeds: Mapping[str, Any] = {}
        self._runnable = False

    def run(self, pairing: Pairing, feeds: Mapping[str, Any], *, runnable: bool) -> Pairing:
        """Check all sites and return the last pairing.

        A tool may use the name of a tensor again for one of another value, or move a scale from one layer to the next.
        So where a tensor differs that need not be the same, it no longer counts as common, and what it leads to is
        checked instead, a few steps far.

        Args:
            pairing: the first pairing.
            feeds: inputs that the original accepts, or nothing.
            runnable: whether the original can be run as a whole.
        """
        self._feeds, self._runnable = feeds, runnable and bool(feeds)
        self._check(pairing, {})
        first = dict(self.results)
        for _ in range(_ROUNDS):
            wrong = [
                s.key for s in pairing.sites if self.is_wrong(s) and s.in_main_graph and s.tensor not in self._fixed
            ]
            if not wrong:
                break
            before = {site.key: _signature(site) for site in pairing.sites}
            for key in wrong:
                self.grown.setdefault(key, first.get(key, self.results[key]))
            pairing = pair(*self.views, dropped=self.grown)
            self._check(pairing, before)
        return pairing

    def is_wrong(self, site: Site) -> bool:
        found = self.results.get(site.key)
        return found is not None and found.verdict == DIFFERENT

    def all_equal(self, pairing: Pairing) -> bool:
        found = [self.results.get(site.key) for site in pairing.sites]
        return all(result is not None and result.verdict == EQUAL for result in found)

    def grown_inside(self, site: Site) -> set[Key]:
        """Tensors inside the original's region that were grown over."""
        if not self.grown:
            return set()
        return {(node.view.path, name) for node in site.original.nodes for name in node.outputs} & set(self.grown)

    def _check(self, pairing: Pairing, before: Mapping[Key, Any]) -> None:
        todo = [site for site in pairing.sites if before.get(site.key) != _signature(site)]
        for site in todo:
            self.results.pop(site.key, None)
        large = {s.key for s in todo if max(len(s.original.nodes), len(s.folded.nodes)) > _LARGEST_REGION}
        if large:  # most of the network: that is what the outputs are compared for
            pairing.complete = False
            pairing.open += [name for _, name in large]
            pairing.sites = [site for site in pairing.sites if site.key not in large]
            todo = [site for site in todo if site.key not in large]
        self._learn(todo)
        self.results.update(self.local.check(todo, self.entering))

    def _learn(self, sites: Sequence[Site]) -> None:
        """Find types and shapes of what enters sites, and the values of what steers them."""
        if not sites:
            return
        types = dict(self.entering.types) or tensor_types(self.evaluation.original, self._feeds)
        known = dict(self.entering.known)
        made = self.views[0].producers
        frontier = {key for site in sites for key in (*site.frontier(), site.key) if not key[0]}
        steering = {key for site in sites for key in shaping.steered(site)}
        blank = [key for key in frontier if key[1] in made and _unknown(types.get(key))]
        exact = [key for key in frontier if key not in known and (key in steering or _not_float(types.get(key)))]
        known.update({key: self._feeds[key[1]] for key in exact if key[1] in self._feeds})
        exact = [key for key in exact if key not in known and key[1] in made]
        if self._runnable and (blank or exact):
            self._ask(types, known, blank, exact)
        self.entering = Entering(types, known)

    def _ask(
        self,
        types: dict[Key, TensorType],
        known: dict[Key, NDArray[Any]],
        blank: Sequence[Key],
        exact: Sequence[Key],
    ) -> None:
        """Run the original for what inference could not tell."""
        tensors, shapes = [name for _, name in exact], [name for _, name in blank]
        try:
            session = self.evaluation.open(self.evaluation.original, expose=tensors, shapes=shapes)
            values = session.run(self._feeds, [*tensors, *(SHAPE_OF + name for name in shapes)])
        except RuntimeMissingError:
            return
        for key in exact:
            known[key] = np.asarray(values[key[1]])
        for key in blank:
            shape = tuple(int(d) for d in values[SHAPE_OF + key[1]])
            types[key] = (types.get(key, (1, None))[0], shape)


def _signature(site: Site) -> Any:
    ours, theirs = site.original, site.folded
    return (ours.frontier, theirs.frontier, [id(n) for n in ours.nodes], [id(n) for n in theirs.nodes])


def _unknown(found: TensorType | None) -> bool:
    return found is None or found[1] is None or any(d is None for d in found[1])


def _not_float(found: TensorType | None) -> bool:
    return found is not None and found[0] not in shaping.FLOATS
