"""Writing files whose contents are known before they are written: parts at fixed offsets, in any order, by threads."""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.blobs import FileBlob, ScaledBlob
from bnfold.errors import ModelReadError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bnfold.blobs import Blob, Block
    from bnfold.datafile import DataFile
    from bnfold.dtypes import Buffer

__all__ = ["Output", "write"]

# Bytes per step, between which progress is reported and threads take turns.
_STEP = 1 << 25
_COPY_BUFFER = 1 << 20
_BLOCKS = 16
# Below this much data one thread is faster than starting another.
_WORTH_THREADS = 1 << 22
# ioctl of Linux that lets two files share their blocks (btrfs, XFS, bcachefs).
_FICLONE = 0x40049409
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


@dataclass
class Output:
    """One file to write: what stands at which offset; ``clone_of`` is the file that most of it is copied from."""

    path: str
    size: int
    parts: list[tuple[int, Buffer | Blob]]
    clone_of: DataFile | None = None


class _Target:
    """A file being written; one thread at a time, as the kernel would have them spin for the same inode."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._lock = threading.Lock()

    def put(self, offset: int, data: memoryview) -> None:
        with self._lock:
            while data:
                count = os.pwrite(self.descriptor, data, offset)
                data = data[count:]
                offset += count

    def copy(self, source: int, source_offset: int, offset: int, size: int) -> int | None:
        """Return the bytes copied by the kernel, or None where it cannot copy between these files by itself."""
        if not hasattr(os, "copy_file_range"):
            return None
        try:
            with self._lock:
                return os.copy_file_range(source, self.descriptor, size, source_offset, offset)
        except OSError as error:
            if error.errno in _NO_KERNEL_COPY:
                return None
            raise


@dataclass
class _Step:
    """One piece of work, done by one thread."""

    nbytes: int
    run: Callable[[], None]


def write(
    outputs: Iterable[Output],
    *,
    mode: int | None,
    progress: Callable[[int, int], None] | None,
    threads: int | None,
) -> None:
    """Create the files, which must not exist, with permissions by umask, or ``mode`` where given.

    ``progress(done, total)`` is called in this thread with counts of bytes. Raises ``OSError`` when writing fails,
    ``ModelReadError`` when a source does, and ``Unrepresentable`` for a weight that its dtype cannot hold.
    """
    targets: list[_Target] = []
    steps: list[_Step] = []
    try:
        for output in outputs:
            target = _Target(output.path)
            targets.append(target)
            if mode is not None:
                os.fchmod(target.descriptor, mode)
            cloned = output.clone_of is not None and _clone(output.clone_of, target.descriptor)
            os.ftruncate(target.descriptor, output.size)
            for offset, part in output.parts:
                if cloned and isinstance(part, FileBlob) and part.file is output.clone_of and part.offset == offset:
                    continue
                steps += _steps(target, offset, part)
        _Crew(steps, progress).run(threads)
    finally:
        for target in targets:
            os.close(target.descriptor)


def _steps(target: _Target, offset: int, part: Buffer | Blob) -> list[_Step]:
    """Return the work that puts ``part`` at ``offset``."""
    if isinstance(part, ScaledBlob):
        return _scaled_steps(target, offset, part)
    if isinstance(part, FileBlob):
        return [
            _Step(size, lambda at=at, size=size: _copy(part.file, part.offset + at, target, offset + at, size))  # type: ignore[misc]
            for at in range(0, part.nbytes, _STEP)
            for size in [min(_STEP, part.nbytes - at)]
        ]
    if isinstance(part, bytes | bytearray | memoryview):
        return [_Step(len(part), lambda: target.put(offset, memoryview(part)))]
    return [_Step(part.nbytes, lambda: target.put(offset, memoryview(part.read(0, part.nbytes))))]


def _scaled_steps(target: _Target, offset: int, blob: ScaledBlob) -> list[_Step]:
    blocks = blob.blocks()
    result = []
    for first in range(0, len(blocks), _BLOCKS):
        mine = blocks[first : first + _BLOCKS]

        def run(mine: list[Block] = mine) -> None:
            for block, data in blob.evaluate(mine):
                target.put(offset + block.offset, data)

        result.append(_Step(sum(block.nbytes for block in mine), run))
    return result


def _clone(source: DataFile, target: int) -> bool:
    """Make ``target`` share all blocks of ``source`` if the file system can."""
    try:
        import fcntl

        descriptor, owned = source.descriptor()
        try:
            fcntl.ioctl(target, _FICLONE, descriptor)
        finally:
            if owned:
                os.close(descriptor)
    except (OSError, ImportError):
        return False
    return True


def _copy(source: DataFile, source_offset: int, target: _Target, target_offset: int, size: int) -> None:
    """Copy ``size`` bytes between files, in the kernel where possible."""
    descriptor, owned = source.descriptor()
    try:
        while size:
            count = target.copy(descriptor, source_offset, target_offset, size)
            if count is None:
                chunk = memoryview(bytearray(min(size, _COPY_BUFFER)))
                source.read_into(source_offset, chunk)
                target.put(target_offset, chunk)
                count = len(chunk)
            if count == 0:
                raise ModelReadError(f"{printable(source.path)}: became shorter while it was read; run bnfold again")
            source_offset, target_offset, size = source_offset + count, target_offset + count, size - count
    finally:
        if owned:
            os.close(descriptor)


class _Crew:
    """Threads, this one among them, that work through a list of steps; the first error stops all of them."""

    def __init__(self, steps: list[_Step], progress: Callable[[int, int], None] | None) -> None:
        self._steps = iter(steps)
        self._total = sum(step.nbytes for step in steps)
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        self._error: BaseException | None = None

    def run(self, threads: int | None) -> None:
        if threads is None:
            threads = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        extra = threads - 1 if self._total >= _WORTH_THREADS else 0
        crew = [threading.Thread(target=self._work, name="bnfold-writer", daemon=True) for _ in range(extra)]
        for thread in crew:
            thread.start()
        try:
            self._work(self._progress)
        finally:
            for thread in crew:
                thread.join()
        if self._error is not None:
            raise self._error
        if self._progress is not None:
            self._progress(self._total, self._total)

    def _work(self, progress: Callable[[int, int], None] | None = None) -> None:
        try:
            while True:
                with self._lock:
                    step = next(self._steps, None) if self._error is None else None
                if step is None:
                    return
                step.run()
                with self._lock:
                    self._done += step.nbytes
                if progress is not None:
                    progress(self._done, self._total)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
