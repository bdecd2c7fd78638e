"""Runs the two models, whole: with tensors exposed, perturbed, and on whatever evaluator can."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import ProviderError, RuntimeMissingError
from bnfold.runtime import Session, onnxruntime
from bnfold.verify.noise import is_float, one_ulp_away

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from bnfold.verify.options import VerifyOptions
    from bnfold.verify.source import Source

__all__ = ["Evaluation", "perturbed_feeds"]

_PERTURB_BYTES = 128 << 20  # weights that are moved for the noise floor; the first layers' noise runs through all


class Evaluation:
    """Opens and keeps the sessions of one comparison.

    Attributes:
        reference: whether the onnx reference evaluator stands in for onnxruntime.
        evaluators: names of what was used.
        reasons: why the reference evaluator stands in.
    """

    def __init__(self, original: Source, folded: Source, options: VerifyOptions) -> None:
        self.original, self.folded, self.options = original, folded, options
        self.reference = False
        self.evaluators: dict[str, None] = {}
        self.reasons: list[str] = []
        self.providers: tuple[str, ...] = ()
        self.foreign_nodes: int | None = None

    def open(self, source: Source, *, expose: Sequence[str] = (), shapes: Sequence[str] = ()) -> Session:
        """Open a model on the provider asked for, or on the reference evaluator where onnxruntime cannot.

        Raises:
            ProviderError: the provider is not there.
            RuntimeMissingError: neither can open it.
        """
        onnxruntime()
        if not self.reference:
            try:
                session = source.session(
                    expose=expose, shapes=shapes, provider=self.options.where(), threads=self.options.threads
                )
            except ProviderError:
                raise
            except RuntimeMissingError as error:
                if self.evaluators:  # the other model could be opened: no reason to change horses
                    raise
                self.use_reference(str(error))
            else:
                self.evaluators[session.evaluator] = None
                self.providers, self.foreign_nodes = session.providers, session.foreign_nodes
                return session
        session = source.reference(expose=expose, shapes=shapes)
        self.evaluators[session.evaluator] = None
        self.providers = session.providers
        return session

    def use_reference(self, reason: str) -> None:
        """Let the reference evaluator stand in from here on, for both models."""
        self.reference = True
        self.evaluators.clear()
        self.reasons.append(f"the onnx reference evaluator was used: {reason}")

    def perturbed(self, *, expose: Sequence[str] = ()) -> Session | None:
        """The original with its float weights one ulp away; None where that cannot be had."""
        if self.reference:
            return None
        overrides: dict[str, NDArray[Any]] = {}
        total = 0
        for tensor in self.original.weights():
            if total > _PERTURB_BYTES:
                break
            overrides[tensor.name] = self._moved(tensor.name, self.original.array(tensor))
            total += overrides[tensor.name].nbytes
        try:
            return self.original.session(
                expose=expose, overrides=overrides, provider=self.options.where(), threads=self.options.threads
            )
        except RuntimeMissingError:  # a bfloat16 weight, say, that cannot be handed over
            return None

    def _moved(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        return one_ulp_away(array, self.options.seed + zlib.crc32(name.encode()))

    def optimised(self) -> Session | None:
        """The original at onnxruntime's own highest level."""
        if self.reference:
            return None
        try:
            return self.original.session(optimize=True, provider=self.options.where(), threads=self.options.threads)
        except RuntimeMissingError:
            return None


def perturbed_feeds(feeds: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Inputs with every float moved by one ulp, up or down by chance."""
    return {
        name: one_ulp_away(value, seed + zlib.crc32(name.encode()) + 1)
        if isinstance(value, np.ndarray) and is_float(value)
        else value
        for name, value in feeds.items()
    }
