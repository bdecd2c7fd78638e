"""Break correct folds in many ways and see whether the proof notices.

    python benchmarks/proof/mutate.py [--groups trained,made,corpus,light] [--per-model 60] [--json FILE]

A mutant is *harmful* when the output of the operator that was broken moves by more than 0.1% of that channel's spread
(its standard deviation over a few random inputs of the model, or any movement beyond rounding where it has none), and
anything at all moves where the fold ends: a channel that a Slice cuts off on the way is no part of the network.
Prints, per kind: mutants, harmful ones, how many of those the proof caught, how many it blamed on the right node; and
alarms raised over correct folds, which must be none.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent))

import mutants
from hosts import hosts
from subjects import subjects

import bnfold
from bnfold.inputs import input_specs, make_inputs
from bnfold.runtime import open_session
from bnfold.verify import VerifyOptions, verify

HARMFUL = 1e-3
BORDER = "border shift wrong"


def movement(folded: onnx.ModelProto, mutant: onnx.ModelProto, tensor: str) -> float:
    """The largest movement of a channel of a tensor, over that channel's spread."""
    runs: list[list[np.ndarray]] = [[], []]
    for side, model in enumerate((folded, mutant)):
        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        if tensor not in {value.name for value in exposed.graph.output}:
            exposed.graph.output.add(name=tensor)
        session = open_session(exposed, threads=2)
        for seed in range(4):
            feeds = make_inputs(input_specs(folded), seed=100 + seed, batch=3, size=64)
            runs[side].append(np.asarray(session.run(feeds, [tensor])[tensor], np.float64))
    a, b = (np.concatenate(side) for side in runs)
    axis = 1 if a.ndim != 3 or a.shape[1] > 1 else 2
    moved, spread = channels(np.abs(b - a), axis).max(1), channels(a, axis).std(1)
    size = np.abs(channels(a, axis)).max(1)
    still = spread <= 1e-6 * size
    ratio = np.where(still, np.where(moved > 1e-4 * size, np.inf, 0.0), moved / np.where(still, 1.0, spread))
    return float(ratio.max())


def channels(array: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


class Tally:
    """Counts per kind."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self.missed: list[dict[str, Any]] = []
        self.alarms: list[str] = []
        self.correct = 0

    def add(
        self, kind: str, harm: float, report: bnfold.VerifyReport, fold: bnfold.Folded, model: str, near: set[str]
    ) -> None:
        count = self.counts[kind]
        count["mutants"] += 1
        caught = report.verdict == "different"
        must_pass = "must pass" in kind
        if must_pass:
            count["caught"] += caught
            if caught:
                self.missed.append({"model": model, "kind": kind, "node": fold.node, "reason": report.reason})
            return
        if harm <= HARMFUL:
            count["harmless caught"] += caught
            return
        right = caught and fold.node in report.blamed and set(report.blamed) <= near
        count["harmful"] += 1
        count["caught"] += caught
        count["blamed"] += right
        if not right:
            self.missed.append(
                {
                    "model": model,
                    "kind": kind,
                    "node": fold.node,
                    "moved": harm,
                    "verdict": report.verdict,
                    "reason": report.reason,
                    "blamed": report.blamed,
                }
            )


def neighbours(fold: bnfold.Folded, folds: tuple[bnfold.Folded, ...]) -> set[str]:
    """Folds that ended in the same operators or tensors: blaming one of them is blaming the right place."""
    return {f.node for f in folds if set(f.into) & set(fold.into) or set(f.tensor) & set(fold.tensor)}


def break_model(name: str, original: onnx.ModelProto, tally: Tally, per_model: int) -> None:
    result = bnfold.fold(original, verify=False)
    folds = result.report.folded
    report = verify(original, result.model, folds=folds)
    tally.correct += 1
    if report.verdict != "equal":
        tally.alarms.append(f"{name}: {report.reason}")
        return
    for seed in (1, 2):
        again = verify(original, result.model, VerifyOptions(seed=seed), folds=folds if seed == 1 else ())
        tally.correct += 1
        if again.verdict != "equal":
            tally.alarms.append(f"{name} (seed {seed}): {again.reason}")
    for mutant, fold in mutants.ignoring_padding(original):
        _judge(tally, BORDER, name, (original, original, mutant), fold, (fold,))
    found = list(hosts(original, result.model, folds))
    if not found:
        return
    random = np.random.default_rng(zlib.crc32(name.encode()))
    made = tries = 0
    kinds = list(mutants.KINDS.items())
    while made < per_model and tries < 6 * per_model:
        host = found[int(random.integers(len(found)))]
        kind, make = kinds[tries % len(kinds)]
        tries += 1
        change = make(host, random)
        if change is None:
            continue
        made += 1
        mutant = mutants.applied(result.model, host, change)
        _judge(tally, kind, name, (original, result.model, mutant), host.fold, folds, host.node.output[0])


def _judge(
    tally: Tally,
    kind: str,
    name: str,
    models: tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto],
    fold: bnfold.Folded,
    folds: tuple[bnfold.Folded, ...],
    tensor: str = "",
) -> None:
    original, right, mutant = models
    harm = movement(right, mutant, tensor or fold.tensor[0])
    if harm > HARMFUL and not any(movement(right, mutant, end) for end in fold.tensor):
        harm = 0.0
    report = verify(original, mutant, folds=folds)
    tally.add(kind, harm, report, fold, name, neighbours(fold, folds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default="trained,made,corpus,light")
    parser.add_argument("--per-model", type=int, default=60)
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    tally, start = Tally(), time.monotonic()
    for group, name, model in subjects(tuple(arguments.groups.split(","))):
        if arguments.only not in name:
            continue
        large = sum(len(t.raw_data) for t in model.graph.initializer) > 4 << 20
        began = time.monotonic()
        break_model(name, model, tally, arguments.per_model // 3 if large else arguments.per_model)
        total = sum(count["mutants"] for count in tally.counts.values())
        print(f"{group} {name}: {time.monotonic() - began:.0f} s, {total} mutants so far", file=sys.stderr, flush=True)
    print(table(tally))
    print(f"\n{tally.correct} correct folds, {len(tally.alarms)} alarms; {time.monotonic() - start:.0f} s")
    for alarm in tally.alarms:
        print(f"ALARM {alarm}")
    for miss in tally.missed:
        print(f"MISSED {miss}")
    if arguments.json:
        record = {"kinds": tally.counts, "missed": tally.missed, "alarms": tally.alarms, "correct": tally.correct}
        Path(arguments.json).write_text(json.dumps(record, indent=1, default=str))
    return 1 if tally.alarms or tally.missed else 0


def table(tally: Tally) -> str:
    lines = [
        "| kind | mutants | harmful | caught | blamed on the right node | harmless, caught too |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    total: dict[str, int] = defaultdict(int)
    for kind in [*mutants.KINDS, BORDER]:
        count = tally.counts[kind]
        for key, value in count.items():
            total[key] += value
        lines.append(_row(kind, count))
    lines.append(_row("**all**", total))
    return "\n".join(lines)


def _row(kind: str, count: dict[str, int]) -> str:
    fields = ("mutants", "harmful", "caught", "blamed", "harmless caught")
    return f"| {kind} | " + " | ".join(f"{count.get(field, 0):,}" for field in fields) + " |"


if __name__ == "__main__":
    sys.exit(main())
