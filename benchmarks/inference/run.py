"""What users gain: ``python benchmarks/inference/run.py [--groups trained,light,packages,corpus] [--provider cuda]``.

Every model as it was, as bnfold left it, and as every other tool left it, timed in one run with onnxruntime: all
optimisations off and on, one and two threads, batch 1 (or the model's own) and 16 (where the batch is free). Speed is
the original's time over the tool's, median of pairs with a 95% interval; "control" is a second session of the original,
which shows the noise. The total time is bounded (``--total``) and dealt out to the rows. Writes
``inference-PROVIDER.json``, every row as soon as it is measured, and ``.md`` to ``.cache/results``; with ``--page`` the
tables go into that page as well. What the other tools make is kept in ``.cache/inference``. With ``--provider cuda``
the rows are made for float32 and float16, with device buffers bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tool"))

import page
from contest import Allowance, Contest, Setting
from subjects import Subject, all_subjects
from summary import line, markdown
from tools import CACHE, ROOT, find

from bnfold.bench import BenchOptions
from bnfold.bench.machine import look_at_machine
from bnfold.errors import BnfoldError
from bnfold.runtime import Level, Provider, open_session

if TYPE_CHECKING:
    from collections.abc import Iterator

LEVELS = (Level.ALL, Level.DISABLE_ALL)
GROUPS = ("trained", "light", "packages", "corpus")
TOOLS = ("bnfold", "onnxruntime", "onnxsim", "onnxslim", "onnxoptimizer", "onnxscript")


def main() -> int:
    """Fold everything, race everything, write the tables."""
    args = arguments()
    options = BenchOptions(provider=Provider.parse(args.provider))
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"inference-{short(options)}.json"
    if args.tables:
        return write(json.loads(file.read_text()), args, file)
    try:
        open_session(ROOT / "models" / "digits_cnn.onnx", provider=options.provider)
    except BnfoldError as error:
        print(f"--provider {args.provider}: {error}", file=sys.stderr)
        return 2
    found: dict[str, Any] = {"machine": asdict(look_at_machine(options.provider.name)), "rows": []}
    tools = find(args.peers, build=set(args.tools) != {"bnfold"})
    with tempfile.TemporaryDirectory(prefix="work-", dir=args.out) as folder:
        contest = Contest(tools, args.tools, options, Path(folder), args.precision, args.longest)
        for row in rows(contest, args):
            found["rows"].append(row)
            file.write_text(json.dumps(found, indent=1))
            print(line(row), file=sys.stderr, flush=True)
    return write(found, args, file)


def short(options: BenchOptions) -> str:
    """``cpu`` or ``cuda``."""
    return options.provider.name.removesuffix("ExecutionProvider").lower()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words, counts = (lambda text: tuple(text.split(","))), (lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--groups", type=words, default=GROUPS, metavar="GROUP,...", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--models", type=words, metavar="NAME,...", help="only these models")
    parser.add_argument("--tools", type=words, default=TOOLS, metavar="TOOL,...")
    parser.add_argument("--threads", type=counts, default=(1, 2), metavar="N,...")
    parser.add_argument("--batch", type=counts, default=(1, 16), metavar="N,...")
    parser.add_argument("--total", type=float, default=1200, help="seconds for all rows; folding comes on top")
    parser.add_argument("--budget", type=float, default=4.0, help="most seconds of timing per row, all tools together")
    parser.add_argument("--precision", type=float, default=0.01, help="a row ends when its intervals are that narrow")
    parser.add_argument("--longest", type=float, default=0.15, help="leave a batch out where one run takes longer")
    parser.add_argument("--provider", default="cpu", help="cpu, cuda or another one of onnxruntime")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter that has the other tools (or BNFOLD_PEERS)")
    parser.add_argument("--out", type=Path, default=CACHE / "results", help="folder for results")
    parser.add_argument("--page", type=Path, help="page that gets the tables")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write tables of what was measured")
    return parser.parse_args()


def rows(contest: Contest, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows, one by one, until the time is over."""
    subjects = [s for s in all_subjects(contest.folder, args.groups) if not args.models or s.name in args.models]
    dtypes = ("float32", "float16") if short(contest.options) == "cuda" else ("float32",)
    plan = {
        (subject.name, dtype): [
            Setting(subject, dtype, batch, threads, level)
            for batch in args.batch
            if subject.feeds(batch) is not None
            for threads, level in itertools.product(args.threads, LEVELS)
        ]
        for subject in subjects
        for dtype in dtypes
    }
    allowance = Allowance(args.total, sum(map(len, plan.values())), args.budget)
    for (name, dtype), members in plan.items():
        source = members[0].subject.path if dtype == "float32" else to_float16(members[0].subject, contest.folder)
        made = contest.made(source) if source and not allowance.over else {}
        for setting in members if made else ():
            if allowance.over:
                break
            start, budget = time.monotonic(), allowance.next()
            yield contest.row(setting, made, budget)
            allowance.took(time.monotonic() - start, budget)
        if source and allowance.over:
            print(f"{name} {dtype}: left out or cut short, the time is over", file=sys.stderr)


def to_float16(subject: Subject, folder: Path) -> Path | None:
    """The model in float16, inputs and outputs too; None when onnxruntime's converter cannot."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = folder / f"{subject.name}-float16.onnx"
    try:
        onnx.save(convert_float_to_float16(onnx.load(str(subject.path)), keep_io_types=False), str(path))
    except Exception as error:  # the converter raises what it likes
        print(f"{subject.name}: no float16 ({error})", file=sys.stderr)
        return None
    return path


def write(found: dict[str, Any], args: argparse.Namespace, file: Path) -> int:
    """All tables beside the results and on stdout, the most important ones into the page."""
    text = markdown(found["rows"], full=True)
    file.with_suffix(".md").write_text(text)
    print(text)
    if args.page and not page.put(args.page, file.stem, markdown(found["rows"], full=False)):
        print(f"{args.page} has no place for {file.stem}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
