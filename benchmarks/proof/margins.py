"""How near correct folds come to what the proof allows: the largest error of a site over its tolerance, per model.

    python benchmarks/proof/margins.py [--groups trained,made,corpus] [--seeds 3]

Below one is equal. What the margin is on both sides: harmful folds (mutate.py) lie far above one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from subjects import subjects

import bnfold
from bnfold.verify import VerifyOptions, local, verify


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", default="trained,made,corpus")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    seen = _watch()
    sites, alarms = 0, 0
    print("| model | sites | largest error over tolerance |\n|---|--:|--:|")
    for _, name, model in subjects(tuple(arguments.groups.split(","))):
        folded = bnfold.fold(model, verify=False)
        seen.clear()
        for seed in range(arguments.seeds):
            options = VerifyOptions(seed=seed, distributions=("normal",))
            report = verify(model, folded.model, options, folds=folded.report.folded)
            sites += len(report.sites)
            alarms += report.verdict != "equal"
        if seen:
            print(f"| {name} | {len(seen) // arguments.seeds} | {max(seen):.3f} |", flush=True)
    print(f"\n{sites} sites checked, {alarms} alarms")
    return alarms != 0


def _watch() -> list[float]:
    """Note the ratio of every site that is checked."""
    seen: list[float] = []
    check = local.LocalChecker.check

    def watched(self: local.LocalChecker, *arguments: Any) -> Any:
        found = check(self, *arguments)
        seen.extend(result.ratio for result in found.values())
        return found

    local.LocalChecker.check = watched  # type: ignore[method-assign]
    return seen


if __name__ == "__main__":
    sys.exit(main())
