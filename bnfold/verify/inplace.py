"""Compares sites where they stand: the tensors exposed, both models run whole on the same inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.verify import shaping
from bnfold.verify.channels import compare_channels
from bnfold.verify.noise import epsilon, is_float, widened

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bnfold.verify.sites import Key, Site
    from bnfold.verify.types import TensorType

__all__ = ["Group", "InPlace", "batches", "compare_site"]

_EXPOSED_BYTES = 64 << 20  # per model; three are held at a time
_UNKNOWN_BYTES = 4 << 20
_SEES = 1e-3  # a tolerance below this part of a channel's spread sees a weight that is wrong by a tenth of a percent


@dataclass(frozen=True, slots=True)
class InPlace:
    """The worst channel of a site on real activations.

    Attributes:
        ratio: error over tolerance; above one is more than rounding.
        error: error over spread, None where that channel has no spread.
        error_abs, tolerance, noise, spread, channel, channels: as in :class:`~bnfold.verify.report.SiteResult`.
        still: channels that are constant on these inputs: nothing is learned about them here.
        sees: whether a wrong channel would have been seen, on every channel.
    """

    ratio: float
    error: float | None
    error_abs: float
    tolerance: float
    noise: float
    spread: float
    channel: int
    channels: int
    still: int
    sees: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Sites whose tensors fit into memory together, with the bytes that these take."""

    sites: tuple[Site, ...] = ()
    nbytes: int = 0

    @property
    def names(self) -> list[str]:
        return [site.tensor for site in self.sites]


def batches(sites: Sequence[Site], types: Mapping[Key, TensorType]) -> list[Group]:
    """All sites of the main graph in groups; at least one, which may be empty."""
    groups: list[Group] = []
    group: list[Site] = []
    total = 0
    for site in sites:
        if not site.in_main_graph:
            continue
        dims = types.get(site.key, (1, None))[1]
        size = 4 * math.prod(d or 1 for d in dims) if dims is not None else _UNKNOWN_BYTES
        if group and total + size > _EXPOSED_BYTES:
            groups.append(Group(tuple(group), total))
            group, total = [], 0
        group.append(site)
        total += size
    return [*groups, Group(tuple(group), total)]


def compare_site(site: Site, original: NDArray[Any], folded: NDArray[Any], perturbed: NDArray[Any]) -> InPlace | None:
    """Compare a site's tensor; None when it is not of floats, or has no elements."""
    if not is_float(original) or not original.size or original.shape != folded.shape:
        return None
    copies = {"a": widened(original), "b": widened(folded), "p": widened(perturbed)}
    worst: InPlace | None = None
    for axis in shaping.channel_axes(site, original.ndim):
        errors = compare_channels(copies, axis, terms=1.0, epsilon=epsilon(original.dtype))
        at = int(np.argmax(errors.ratio))
        spread = float(errors.spread[at])
        found = InPlace(
            ratio=float(errors.ratio[at]),
            error=float(errors.error[at]) / spread if spread > 0 else None,
            error_abs=float(errors.error[at]),
            tolerance=float(errors.tolerance[at]),
            noise=float(errors.noise[at]),
            spread=spread,
            channel=at,
            channels=len(errors.ratio),
            still=int(np.count_nonzero(errors.spread == 0)),
            sees=bool(np.all(errors.tolerance <= _SEES * errors.spread)),
        )
        if worst is None or found.ratio > worst.ratio:
            worst = found
    return worst
