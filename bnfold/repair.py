"""Prove the folded model; take back the folds that fail; fold again, until the proof holds.

Usually the proof names the folds that are wrong. When it only sees that the outputs differ, the folds are tried in
growing prefixes: the one whose addition breaks the proof is the culprit, found by bisection; all others stay folded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import onnx

from bnfold.errors import VerificationError
from bnfold.folding import Folding, FoldOptions, limits_of
from bnfold.plan import Limits
from bnfold.refusals import Refusal

if TYPE_CHECKING:
    from bnfold.verify import VerifyReport

__all__ = ["prove_and_repair"]

Result = TypeVar("Result")
Original: TypeAlias = str | onnx.ModelProto
Proven = tuple[Folding, Result, "VerifyReport | None", dict[str, Refusal]]


def prove_and_repair(
    attempt: Callable[[Limits], tuple[Folding, Result]], original: Original | None, options: FoldOptions
) -> Proven[Result]:
    """Fold with ``attempt`` and prove the result against the original.

    Returns:
        The last attempt, its result, its proof, and the folds taken back with the reason. Without an original nothing
        is proven and the proof is None.

    Raises:
        VerificationError: the proof cannot tell, or fails in a way that taking back folds does not mend, or, with
            ``strict``, fails at all.
    """
    if original is None:
        folding, result = attempt(limits_of(options))
        return folding, result, None, {}
    return _Repair(attempt, original, options).run()


class _Repair(Generic[Result]):
    """What is known while searching for folds that fail."""

    def __init__(
        self, attempt: Callable[[Limits], tuple[Folding, Result]], original: Original, options: FoldOptions
    ) -> None:
        self._attempt = attempt
        self._original = original
        self._options = options
        self._limits = limits_of(options)
        self._excluded = dict(self._limits.skip)
        self._withdrawn: dict[str, Refusal] = {}
        self._cleared: list[str] | None = None  # folds that passed together

    def run(self) -> Proven[Result]:
        while True:
            folding, result, proof = self._try(())
            if proof.equal:
                return folding, result, proof, self._withdrawn
            blamed = self._blamed(proof)
            if self._options.strict:
                blamed = []
            elif not blamed:
                blamed = self._bisect([entry.node for entry in folding.folded if entry.node not in self._excluded])
            if not blamed:
                raise VerificationError(f"the folded model differs from the original: {proof.reason}")
            reason = Refusal("withdrawn", f"the fold failed verification: {proof.reason}", None)
            self._withdrawn.update(dict.fromkeys(blamed, reason))

    def _try(self, without: tuple[str, ...] | list[str]) -> tuple[Folding, Result, VerifyReport]:
        """Fold and prove without these folds, the withdrawn ones and the ones that options exclude."""
        trial = Refusal("withdrawn", "left out while looking for the fold that fails", None)
        self._limits.skip.clear()
        self._limits.skip.update(self._excluded | self._withdrawn | dict.fromkeys(without, trial))
        folding, result = self._attempt(self._limits)
        proof = _prove(self._original, result, folding, self._options)
        if proof.verdict == "inconclusive" and not proof.blamed:
            raise VerificationError(
                f"cannot tell whether the folded model is the same: {proof.reason}; --no-verify writes it unproven"
            )
        return folding, result, proof

    def _blamed(self, proof: VerifyReport) -> list[str]:
        return [label for label in proof.blamed if label not in self._limits.skip]

    def _bisect(self, labels: list[str]) -> list[str]:
        """The fold whose addition to the ones before it breaks the proof; nothing when the proof fails without any.

        Takes log2(n) proofs. What passed in an earlier search is not tried again.
        """
        if self._cleared is None:
            if not self._try(labels)[2].equal:
                return []
            self._cleared = []
        ordered = list(dict.fromkeys((*self._cleared, *labels)))
        low, high = len(self._cleared), len(ordered)  # the first `low` pass, the first `high` fail
        while high - low > 1:
            middle = (low + high) // 2
            proof = self._try(ordered[middle:])[2]
            blamed = self._blamed(proof)
            if blamed:
                return blamed
            low, high = (middle, high) if proof.equal else (low, middle)
        self._cleared = ordered[:low]
        return ordered[low:high]


def _prove(original: Original, result: object, folding: Folding, options: FoldOptions) -> VerifyReport:
    from bnfold.verify import verify as prove

    assert isinstance(result, (str, onnx.ModelProto))
    return prove(original, result, options.verification, folds=folding.folded)
