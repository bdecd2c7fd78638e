"""A machine on which time passes only when a fake model runs."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from bnfold.bench.report import Samples

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeMachine:
    """A clock in nanoseconds and models that move it."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now

    def model(
        self, name: str, seconds: float, *, noise: float = 0.0, slow_start: int = 0, seed: int = 0
    ) -> Callable[[], None]:
        """A model that takes ``seconds``, more or less; ``slow_start`` runs lead down to that from three times it."""
        draw = random.Random(f"{name}{seed}")
        runs = 0

        def run() -> None:
            nonlocal runs
            runs += 1
            factor = 1.0 + 2.0 * max(0, slow_start - runs) / max(slow_start, 1)
            self.now += round(1e9 * seconds * factor * (1 + noise * draw.uniform(-1, 1)))
            self.log.append(name)

        return run


def samples(original: list[float], folded: list[float], sessions: tuple[int, ...] = ()) -> Samples:
    """Samples with an order that does not matter, of one pair of sessions unless said otherwise."""
    return Samples(tuple(original), tuple(folded), (True,) * len(original), 1, sessions or (len(original),))
