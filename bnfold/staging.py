"""Writing a model so that an interrupted run leaves the old one or the new one, never half of either.

``stage`` writes complete files into a temporary folder inside the destination's folder; ``Staged.commit`` moves them to
their names, the data file first and the model file last. Moving the model file is the moment at which the new model
exists: until then the old one is as it was.

A data file is never overwritten, since the old model points into it until that moment. The new data goes by the first
name that is free: ``model.onnx.data``, ``model.onnx.1.data``, and so on. The data file that the replaced model used
stays, because a copy of that model may still need it; a note says so.

Whatever happens to the *process* - an error, Ctrl-C, SIGKILL - the files are whole, because the system holds what was
written. A power loss is another matter: only what was flushed to the disk is safe then. Flushing takes longer than
all the rest for a large model, so ``commit`` does it where it matters or costs nothing: when a file is replaced, which
may be the only copy of a model, and for up to 64 MiB. After a power loss within seconds of any other commit the new
files can be incomplete; the input is as it was.
"""

# Paths stay the strings they are: what is checked is what is opened.
# ruff: noqa: PTH100, PTH105, PTH108, PTH110, PTH112, PTH114, PTH116, PTH118, PTH119, PTH120, PTH121
from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import stat
import tempfile
from typing import TYPE_CHECKING, Self

from google.protobuf.message import EncodeError  # type: ignore[import-untyped,unused-ignore]

from bnfold.blobs import FileBlob
from bnfold.errors import BnfoldError, ModelWriteError, printable
from bnfold.layout import Skeleton, data_output, root
from bnfold.streaming import Output, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from bnfold.blobs import Blob
    from bnfold.model import Model

__all__ = ["Staged", "stage"]

#: protobuf refuses messages of 2 GiB; the margin is for tools that add a little to a model.
INLINE_MOST = (1 << 31) - (1 << 20)

_FLUSH_ALWAYS = 64 << 20


class Staged:
    """A complete model in a temporary folder: ``commit`` puts it in place, ``discard`` removes it.

    ``model_path`` can be loaded as it is; ``files`` are the names the files will have. As a context manager it
    discards what was not committed.
    """

    def __init__(self, folder: str, moves: list[tuple[str, str]]) -> None:
        self._folder = folder
        self._moves = moves
        self._committed = False
        self.model_path = moves[-1][0]
        self.files = [final for _, final in moves]

    def commit(self, *, flush: bool | None = None) -> None:
        """Put the files in place. ``flush`` waits until the disk has them; None decides as the module says.

        Raises ``ModelWriteError`` when that fails; the destination is then what it was.
        """
        if self._committed:
            return
        try:
            if flush is None:
                size = sum(os.stat(staged).st_size for staged, _ in self._moves)
                flush = size <= _FLUSH_ALWAYS or os.path.lexists(self.files[-1])
            if flush:
                for staged, _ in self._moves:
                    _flush(staged)
            for staged, final in self._moves:
                os.replace(staged, final)
            self._committed = True
            if flush:
                _flush(os.path.dirname(self.files[-1]))
        except OSError as error:
            self._take_back()
            raise _write_error(self.files[-1], error) from error
        self.discard()

    def _take_back(self) -> None:
        """Remove data files that were moved when the model file could not follow."""
        for staged, final in self._moves[:-1]:
            if not self._committed and not os.path.lexists(staged):
                with contextlib.suppress(OSError):
                    os.unlink(final)
        self.discard()

    def discard(self) -> None:
        """Remove the temporary folder; does nothing the second time."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()


def stage(
    model: Model,
    destination: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> Staged:
    """Write ``model`` beside ``destination``, ready to take its place.

    Large tensors stay where they were: inside the model file, or in one data file next to it; a model above protobuf's
    limit gets a data file in any case, with a note in ``model.notes``. A destination that is a link is replaced itself,
    not what it points to; a file that is replaced passes on its permissions.

    ``progress(done, total)`` gets counts of bytes. Scaled weights are evaluated by ``threads`` threads (default: one
    per core, at most 4).

    Raises ``ModelWriteError`` when the files cannot be written, ``ModelReadError`` when a source has become unreadable,
    and ``Unrepresentable`` when a scaled weight does not fit its dtype. Nothing is left behind then.
    """
    final = os.path.abspath(os.fspath(destination))
    mode = _check_destination(model, final)
    skeleton = _serialise(model, final)
    external = _external(model, skeleton, final)
    folder = _temporary_folder(final)
    try:
        outputs: list[Output] = []
        offsets: dict[Blob, int] = {}
        data_name = _free_name(final)
        if external:
            data, offsets = data_output(os.path.join(folder, data_name), external)
            outputs.append(data)
        outputs.append(skeleton.output(os.path.join(folder, os.path.basename(final)), data_name, offsets))
        model.notes += _left_behind(model, final, mode)
        write(outputs, mode=mode, progress=progress, threads=threads)
        parent = os.path.dirname(final)
        moves = [(output.path, os.path.join(parent, os.path.basename(output.path))) for output in outputs]
        return Staged(folder, moves)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _write_error(final, error) from error
        raise


def _check_destination(model: Model, final: str) -> int | None:
    """Return the permissions of the file to be replaced, or None; refuse what must not be replaced."""
    shown = printable(final)
    try:
        status = os.lstat(final)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _write_error(final, error) from error
    if stat.S_ISLNK(status.st_mode):
        return None
    if stat.S_ISDIR(status.st_mode):
        raise ModelWriteError(f"{shown}: is a directory; give the name of a file")
    if not stat.S_ISREG(status.st_mode):
        raise ModelWriteError(f"{shown}: is not a regular file; give the name of a file")
    for blob in model.blobs:
        start = root(blob)
        if isinstance(start, FileBlob) and start.external and start.file.identity == (status.st_dev, status.st_ino):
            raise ModelWriteError(f"{shown}: holds the weights of the model that is read; give another name")
    return stat.S_IMODE(status.st_mode) & 0o777


def _serialise(model: Model, final: str) -> Skeleton:
    try:
        return Skeleton(model.proto.SerializeToString(deterministic=True), model.blobs)
    except (EncodeError, ValueError) as error:
        raise ModelWriteError(
            f"{printable(final)}: the model without its large tensors is too big for protobuf ({error}); "
            "store its tensors as raw data (onnx.numpy_helper) first"
        ) from error


def _external(model: Model, skeleton: Skeleton, final: str) -> list[Blob]:
    """Return the blobs that go into a data file, in the order of the model."""
    starts = [(blob, root(blob)) for blob in skeleton.references]
    external = [blob for blob, start in starts if isinstance(start, FileBlob) and start.external]
    kept = set(external)
    inside = sum(blob.nbytes for blob in skeleton.references if blob not in kept)
    if skeleton.nbytes() + inside <= INLINE_MOST:
        return external
    model.notes.append(
        f"the model is larger than protobuf's limit of 2 GiB: its weights are in {printable(_free_name(final))}, "
        "which belongs beside it"
    )
    return skeleton.references


def _temporary_folder(final: str) -> str:
    parent = os.path.dirname(final)
    if not os.path.isdir(parent):
        raise ModelWriteError(f"{printable(final)}: there is no folder '{printable(parent)}'; create it first")
    try:
        return tempfile.mkdtemp(prefix=".bnfold-", dir=parent)
    except OSError as error:
        raise _write_error(final, error) from error


def _free_name(final: str) -> str:
    """Return the name for the data file: the first of its kind that no file has."""
    base = os.path.basename(final)
    names = itertools.chain([f"{base}.data"], (f"{base}.{number}.data" for number in itertools.count(1)))
    return next(name for name in names if not os.path.lexists(os.path.join(os.path.dirname(final), name)))


def _left_behind(model: Model, final: str, mode: int | None) -> list[str]:
    """Return notes about data files that only the model being replaced at ``final`` is known to use."""
    if mode is None:
        return []
    from bnfold.files import load

    parent, base = os.path.split(final)
    try:
        replaced = load(final)
    except BnfoldError:
        return []
    in_place = model.path is not None and os.path.exists(model.path) and os.path.samefile(model.path, final)
    needed = {start.file.identity for start in map(root, model.blobs) if isinstance(start, FileBlob)}
    owned = re.compile(re.escape(base) + r"(\.\d+)?\.data")
    result = set()
    for blob in replaced.blobs:
        if not isinstance(blob, FileBlob) or not blob.external or (blob.file.identity in needed and not in_place):
            continue
        folder, name = os.path.split(blob.path)
        if owned.fullmatch(name) and os.path.realpath(parent) == folder and not os.path.islink(blob.path):
            result.add(name)
    return [
        f"kept '{printable(name)}', which the replaced model used; other models may need it" for name in sorted(result)
    ]


def _flush(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(final: str, error: Exception) -> ModelWriteError:
    reason = getattr(error, "strerror", None) or str(error)
    return ModelWriteError(
        f"{printable(final)}: cannot be written: {reason}; check space and permissions of its folder"
    )
