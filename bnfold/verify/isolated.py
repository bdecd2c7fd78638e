"""The proof in a process of its own: a runtime that crashes is a result, not the end of the caller."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold import errors
from bnfold.report import versions
from bnfold.verify.report import INCONCLUSIVE, VerifyReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bnfold.report import Folded
    from bnfold.verify.options import VerifyOptions

__all__ = ["verify_isolated"]

_GRACE = 60.0  # seconds that a step may take after the budget is used up, before the process is ended


def verify_isolated(original: Any, folded: Any, options: VerifyOptions, folds: Sequence[Folded]) -> VerifyReport:
    """Run :func:`bnfold.verify.verify` in a subprocess; arguments and errors as there.

    A process that dies makes the comparison inconclusive, with the signal as the reason.
    """
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        task, answer = Path(folder, "task"), Path(folder, "answer")
        models = [_as_file(model, Path(folder, name)) for model, name in ((original, "a.onnx"), (folded, "b.onnx"))]
        plain = replace(options, isolated=False, progress=None)
        task.write_bytes(pickle.dumps((*models, plain, tuple(folds))))
        command = [sys.executable, "-m", "bnfold.verify.isolated", str(task), str(answer)]
        limit = None if options.budget is None else options.budget + _GRACE
        try:
            done = subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return _inconclusive(f"the runtime did not answer within {limit:g} seconds")
        if not answer.exists():
            return _inconclusive(_death(done.returncode, done.stderr))
        result: VerifyReport | tuple[str, str] = pickle.loads(answer.read_bytes())  # written by _main below
    if isinstance(result, VerifyReport):
        return result
    name, message = result
    raise getattr(errors, name)(message)


def _as_file(model: Any, path: Path) -> str:
    from bnfold import files
    from bnfold.model import Model

    if isinstance(model, str | os.PathLike):
        return str(Path(model).absolute())
    proto = files.to_proto(model) if isinstance(model, Model) else model
    try:
        path.write_bytes(proto.SerializeToString())
    except ValueError as error:  # above protobuf's 2 GiB
        raise errors.OptionError("a model above 2 GiB must be given as a path to be compared in isolation") from error
    return str(path)


def _inconclusive(reason: str) -> VerifyReport:
    return VerifyReport(INCONCLUSIVE, reason, versions=versions())


def _death(code: int, text: bytes) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the runtime crashed ({signal.Signals(-code).name})"
    last = text.decode(errors="replace").strip().splitlines()
    return f"the runtime's process ended with code {code}" + (f": {errors.printable(last[-1])}" if last else "")


def _main(task: str, answer: str) -> None:
    from bnfold.verify import verify

    original, folded, options, folds = pickle.loads(Path(task).read_bytes())  # written by verify_isolated above
    result: VerifyReport | tuple[str, str]
    try:
        result = verify(original, folded, options, folds=folds)
    except errors.BnfoldError as error:
        result = (type(error).__name__, str(error))
    Path(answer).write_bytes(pickle.dumps(result))


if __name__ == "__main__":  # pragma: no cover - runs in the child process only
    _main(sys.argv[1], sys.argv[2])
