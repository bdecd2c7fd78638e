"""Checks sites one by one: the piece alone, in both versions, on random activations.

Everything that enters a site is drawn afresh from N(0, 1), so no channel is dead, no error of another site arrives,
and nothing that comes after can hide an error. Three draws tell scales and shifts apart: zeros (what comes out is the
shift alone), N(0, 1), and N(0, 1)·1024 (next to which any shift vanishes).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import RuntimeMissingError
from bnfold.runtime import Session, open_reference, open_session
from bnfold.verify import shaping
from bnfold.verify.channels import ChannelErrors, compare_channels
from bnfold.verify.constants import ConstantValues
from bnfold.verify.noise import one_ulp_away
from bnfold.verify.probe import Probe, build
from bnfold.verify.view import decides

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bnfold.verify.options import Clock, VerifyOptions
    from bnfold.verify.sites import Key, Site
    from bnfold.verify.source import Source
    from bnfold.verify.types import TensorType

__all__ = ["Entering", "LocalChecker", "LocalResult"]

_CONSTANT_BYTES = 64 << 20  # constants per probe; up to four copies of them are in memory
_ACTIVATION_BYTES = 256 << 20  # tensors that enter and leave the sites of a probe, all copies together
_COPIES = 10  # of a piece in a probe
_SITES = 128
_SHIFT_POSITIONS = 3
_FEW = 16  # samples per channel that are wanted
_BLIND = 0.05  # a tolerance above this fraction of a channel's spread sees nothing


@dataclass(frozen=True, slots=True)
class LocalResult:
    """The worst channel of one site; fields as in :class:`~bnfold.verify.report.SiteResult`."""

    verdict: str
    channel: int = 0
    channels: int = 0
    error: float | None = None
    error_abs: float = 0.0
    tolerance: float = 0.0
    noise: float = 0.0
    spread: float = 0.0
    ratio: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Entering:
    """What is known about the tensors that enter sites.

    Attributes:
        types: element types and shapes.
        known: values of those that are no floats, or that steer an operator.
    """

    types: Mapping[Key, TensorType]
    known: Mapping[Key, NDArray[Any]]


class _Learned:
    """What earlier draws tell about later ones: the noise of shifts, and which channels were seen clearly."""

    def __init__(self) -> None:
        self.noise: dict[tuple[Key, int], NDArray[np.float64]] = {}
        self._seen: dict[tuple[Key, int], NDArray[np.bool_]] = {}

    def see(self, key: Key, axis: int, errors: ChannelErrors) -> None:
        """Note the channels on which a wrong weight would have shown; one without spread has none that matter."""
        clear = (errors.tolerance <= _BLIND * errors.spread) | (errors.spread == 0)
        before = self._seen.get((key, axis))
        self._seen[(key, axis)] = clear if before is None or len(before) != len(clear) else before | clear

    def doubt(self, key: Key, result: LocalResult) -> LocalResult:
        """Turn ``equal`` into ``inconclusive`` where no draw could see anything."""
        views = [clear for (site, _), clear in self._seen.items() if site == key]
        if result.verdict != "equal" or not views or any(clear.any() or not clear.size for clear in views):
            return result
        note = "rounding alone moves the original as much as a wrong fold would"
        return replace(result, verdict="inconclusive", note=note)


class LocalChecker:
    """Checks sites of two models; see the module's docstring."""

    def __init__(self, original: Source, folded: Source, options: VerifyOptions, clock: Clock) -> None:
        self.values = (ConstantValues(original), ConstantValues(folded))
        self.options, self.clock = options, clock
        self.evaluators: set[str] = set()
        self.failures: dict[Key, str] = {}

    def check(self, sites: Sequence[Site], entering: Entering) -> dict[Key, LocalResult]:
        """Check all sites that can be run and for which there is time; the reasons of the rest are in ``failures``."""
        results: dict[Key, LocalResult] = {}
        ours, theirs = (values.source.opsets() for values in self.values)
        if any(ours[domain] != theirs[domain] for domain in ours.keys() & theirs.keys()):
            self.failures.update({site.key: "the models are of different opsets" for site in sites})
            return results
        done = 0
        for batch in self._batches(sites, entering.types):
            if self.clock.over():
                self.failures.update({site.key: "the budget was used up" for site in batch})
                continue
            self.clock.tell("checking sites", done / len(sites))
            done += len(batch)
            for values, side in zip(self.values, ("original", "folded"), strict=True):
                values.prepare([c for site in batch for c in getattr(site, side).constants])
            self._check(batch, entering, results)
            for values in self.values:
                values.forget()
        return results

    def _batches(self, sites: Sequence[Site], types: Mapping[Key, TensorType]) -> Iterator[list[Site]]:
        """Sites that fit into one probe; those that need many draws by themselves, so that others need not wait."""
        few = {site.key for site in sites if shaping.few_samples(types.get(site.key), _FEW)}
        batch: list[Site] = []
        constants = activations = 0
        for site in sorted(sites, key=lambda site: site.key in few):
            weights = sum(self.values[0].source.constant_bytes(view, name) for view, name in site.original.constants)
            values = 4 * _COPIES * shaping.elements(site, types)
            full = constants + weights > _CONSTANT_BYTES or activations + values > _ACTIVATION_BYTES
            if batch and (full or len(batch) >= _SITES or (site.key in few) != (batch[0].key in few)):
                yield batch
                batch, constants, activations = [], 0, 0
            batch.append(site)
            constants += weights
            activations += values
        if batch:
            yield batch

    def _check(self, batch: Sequence[Site], entering: Entering, results: dict[Key, LocalResult]) -> None:
        """Check a batch; when it cannot be run as a whole, its halves."""
        reason = ""
        for small in (True, False):
            try:
                results.update(self._run(batch, entering, small=small))
                return
            except RuntimeMissingError as error:
                reason = str(error)
        if len(batch) > 1:
            middle = len(batch) // 2
            self._check(batch[:middle], entering, results)
            self._check(batch[middle:], entering, results)
            return
        self.failures[batch[0].key] = reason

    def _run(self, batch: Sequence[Site], entering: Entering, *, small: bool) -> dict[Key, LocalResult]:
        worst: dict[Key, LocalResult] = {}
        learned = _Learned()
        for shifts in (True, False):
            positions = _SHIFT_POSITIONS if shifts else shaping.POSITIONS
            shapes = shaping.frontier_shapes(batch, entering.types, small=small, positions=positions)
            if shapes is None:
                raise RuntimeMissingError("the shape of what enters is not known")
            probe = build(batch, self.values, entering.types, seed=self.options.seed, shifts=shifts)
            session = self._open(probe, single=len(batch) == 1)
            self.evaluators.add(session.evaluator)
            for number, factor in enumerate((0.0,) if shifts else (1.0, 1024.0)):
                runs = self._draw(session, probe, entering, shapes, factor=factor, number=number)
                for site, outputs in zip(batch, probe.outputs, strict=True):
                    copies = {letter: _joined([run[name] for run in runs]) for letter, name in outputs.items()}
                    found = self._judge(site, copies, learned, shifts=shifts)
                    worst[site.key] = _worse(worst.get(site.key), found)
        return {key: learned.doubt(key, result) for key, result in worst.items()}

    def _draw(
        self,
        session: Session,
        probe: Probe,
        entering: Entering,
        shapes: Mapping[Key, tuple[int, ...]],
        *,
        factor: float,
        number: int,
    ) -> list[dict[str, NDArray[Any]]]:
        """Run the probe on random activations, oftener where that gives few samples per channel."""
        runs: list[dict[str, NDArray[Any]]] = []
        wanted = 1
        while len(runs) < wanted:
            runs.append(session.run(self._feeds(probe, entering, shapes, factor=factor, draw=2 * len(runs) + number)))
            if len(runs) == 1 and factor:
                counts = [v.size // max(v.shape[1:2] or (1,)) for v in map(np.asarray, runs[0].values()) if v.size]
                wanted = -(-_FEW // max(min(counts, default=_FEW), 1))
        return runs

    def _open(self, probe: Probe, *, single: bool) -> Session:
        try:
            return open_session(
                probe.proto,
                provider=self.options.where(),
                threads=self.options.threads,
                external=probe.external,
            )
        except RuntimeMissingError:
            if not single:
                raise
            return open_reference(probe.inline())

    def _feeds(
        self, probe: Probe, entering: Entering, shapes: Mapping[Key, tuple[int, ...]], *, factor: float, draw: int
    ) -> dict[str, NDArray[Any]]:
        feeds: dict[str, NDArray[Any]] = {}
        for key, name in probe.inputs.items():
            if key in entering.known:
                value = entering.known[key]
                feeds[name] = value.astype(np.float32) if value.dtype.kind == "f" else value
                continue
            if key not in shapes or entering.types.get(key, (1, None))[0] not in shaping.FLOATS:
                raise RuntimeMissingError(f"the values of {key[1]} are not known")
            stream = (self.options.seed, zlib.crc32("/".join(key).encode()), draw)
            random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(stream)))
            normal = random.standard_normal(shapes[key], np.float32) if factor else np.zeros(shapes[key], np.float32)
            feeds[name] = np.asarray(normal * np.float32(factor))
            if key in probe.moved:
                feeds[probe.moved[key]] = one_ulp_away(feeds[name], draw)
        for key, name in probe.moved.items():
            feeds.setdefault(name, feeds[probe.inputs[key]])
        return feeds

    def _judge(
        self,
        site: Site,
        copies: Mapping[str, NDArray[Any]],
        learned: _Learned,
        *,
        shifts: bool,
    ) -> LocalResult:
        a, b = copies["a"], copies["b"]
        if a.shape != b.shape or a.dtype != b.dtype:
            return LocalResult("different", ratio=np.inf, note=f"shape {a.shape} became {b.shape}")
        if not a.size:
            return LocalResult("inconclusive", note="it has no elements")
        if a.dtype.kind != "f":
            wrong = int(np.count_nonzero(a != b))
            return LocalResult(
                "different" if wrong else "equal", ratio=np.inf if wrong else 0.0, error_abs=float(wrong)
            )
        worst: LocalResult | None = None
        for axis in shaping.channel_axes(site, a.ndim):
            amount = shaping.terms(site.original, self.values[0], a.shape[axis] if a.ndim else 1, shifts=shifts)
            errors = compare_channels(
                copies, axis, terms=amount, shift_noise=learned.noise.get((site.key, axis)), jumps=jumps(site)
            )
            if shifts:
                learned.noise[(site.key, axis)] = errors.noise
            else:
                learned.see(site.key, axis, errors)
            worst = _worse(worst, summarise(errors))
        return worst if worst is not None else LocalResult("inconclusive")


def jumps(site: Site) -> bool:
    """Whether a site's operators make decisions, so that single elements may jump where both sides are right."""
    return any(decides(node) for node in (*site.original.nodes, *site.folded.nodes))


def summarise(errors: ChannelErrors) -> LocalResult:
    """Reduce the channels of one draw to the worst one."""
    worst = int(np.argmax(errors.ratio))
    spread = float(errors.spread[worst])
    return LocalResult(
        verdict="different" if errors.ratio[worst] > 1 else "equal",
        channel=worst,
        channels=len(errors.ratio),
        error=float(errors.error[worst]) / spread if spread > 0 else None,
        error_abs=float(errors.error[worst]),
        tolerance=float(errors.tolerance[worst]),
        noise=float(errors.noise[worst]),
        spread=spread,
        ratio=float(errors.ratio[worst]),
    )


_ORDER = {"equal": 0, "inconclusive": 1, "different": 2}


def _worse(first: LocalResult | None, second: LocalResult) -> LocalResult:
    if first is None:
        return second
    return max(first, second, key=lambda r: (_ORDER[r.verdict], r.ratio))


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The results of several draws as one batch."""
    if len(arrays) == 1 or np.ndim(arrays[0]) < 2:
        return np.asarray(arrays[0])
    return np.concatenate(arrays)
