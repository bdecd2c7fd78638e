"""Run a command as a process of its own and say what it cost.

Time is wall clock from spawn to exit; memory is ``ru_maxrss`` of that process from ``os.wait4``. On Linux a child
starts with its parent's peak, so the process that calls this must stay small (no NumPy, no onnx here), and figures
below some 25 MB are its own.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import random
import resource
import signal
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Run:
    """One process.

    Attributes:
        seconds: wall clock.
        cpu: seconds over all threads.
        peak: bytes.
        why: why it failed; empty when it did not.
        cached: share of its input that was in the page cache when it began.
    """

    seconds: float
    cpu: float
    peak: int
    why: str = ""
    cached: float = 1.0

    @property
    def ok(self) -> bool:
        """Whether the process ended with exit code 0 in time."""
        return not self.why


@dataclass(frozen=True, slots=True)
class Job:
    """What to run: ``command``, the files it reads (dropped from the cache for a cold run) and what it writes."""

    tool: str
    command: tuple[str, ...]
    reads: tuple[Path, ...] = ()
    writes: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """A tool's runs of one job, and their median seconds and largest peak (None when every run failed)."""

    tool: str
    runs: tuple[Run, ...]

    @property
    def seconds(self) -> float | None:
        """Median wall clock of the runs that ended well."""
        good = [run.seconds for run in self.runs if run.ok]
        return statistics.median(good) if good else None

    @property
    def peak(self) -> int | None:
        """Largest peak memory in bytes of the runs that ended well."""
        return max((run.peak for run in self.runs if run.ok), default=None)

    @property
    def why(self) -> str:
        """Why it failed, empty when any run ended well."""
        return "" if self.seconds is not None else next(run.why for run in self.runs)


def memory_limit() -> int:
    """Bytes of data a measured process may allocate: 80% of what is available now, so that none takes the machine."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 * 8 // 10
    return resource.RLIM_INFINITY


def spawn(command: Sequence[str], timeout: float, env: Mapping[str, str] | None = None) -> Run:
    """Run ``command`` with its output discarded (the end of stderr is kept for ``why``)."""
    limit = memory_limit()
    quoted = ["sh", "-c", f'ulimit -d {limit // 1024}; exec "$@"', "sh", *command]
    read, write = os.pipe()
    start = time.perf_counter()
    process = subprocess.Popen(
        quoted,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=write,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    os.close(write)
    late = threading.Event()

    def kill() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout, kill)
    timer.start()
    tail = drain(read)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
    why = f"over {timeout:g} s" if late.is_set() else reason(process.returncode, tail)
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, why)


def drain(descriptor: int) -> str:
    """Read a pipe to its end and return the last 4,000 characters."""
    tail = b""
    while block := os.read(descriptor, 65536):
        tail = (tail + block)[-4000:]
    os.close(descriptor)
    return tail.decode(errors="replace")


def reason(code: int, stderr: str) -> str:
    """Why a process with this exit code failed, on one short line; empty for 0."""
    if code == 0:
        return ""
    last = (stderr.strip().splitlines() or [""])[-1]
    name = f"signal {-code}" if code < 0 else f"exit {code}"
    return f"{name}: {last[:160]}" if last else name


def evict(paths: Sequence[Path]) -> float:
    """Drop the files from the page cache; returns the share of their pages that are in it all the same.

    ``posix_fadvise`` needs no privilege, but drops clean pages only, so each file is flushed first. It is advice: a
    file system in memory ignores it, hence the look afterwards.
    """
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pages = [resident(path) for path in paths]
    return sum(kept for kept, _ in pages) / max(1, sum(total for _, total in pages))


def resident(path: Path) -> tuple[int, int]:
    """How many pages of the file are in the page cache, and how many it has (``mincore``)."""
    size = path.stat().st_size
    if size == 0:
        return 0, 0
    pages = -(-size // mmap.PAGESIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as view:
        start = ctypes.c_char.from_buffer(view)
        found = (ctypes.c_ubyte * pages)()
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), found)
        del start  # or the map could not be closed
    return (pages if failed else sum(entry & 1 for entry in found)), pages


def warm(paths: Sequence[Path]) -> float:
    """Read the files once so that they are in the page cache; returns 1."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(1 << 22)
            while file.readinto(buffer):
                pass
    return 1.0


def interleaved(
    jobs: Sequence[Job],
    *,
    rounds: int,
    timeout: float,
    cold: bool = False,
    seed: int = 0,
    deadline: float = math.inf,
    say: Callable[[str], None] = lambda _: None,
) -> list[Cost]:
    """Run every job ``rounds`` times, in a new random order each round. A tool that fails once is not run again.

    Behind ``deadline`` (of ``time.monotonic``) no other round begins; the first one always runs.
    """
    order = random.Random(seed)
    runs: dict[str, list[Run]] = {job.tool: [] for job in jobs}
    for number in range(rounds):
        if number and time.monotonic() > deadline:
            break
        for job in order.sample(jobs, len(jobs)):
            if any(not run.ok for run in runs[job.tool]):
                continue
            remove(job.writes)
            left = evict(job.reads) if cold else warm(job.reads)
            run = replace(spawn(job.command, timeout), cached=left)
            runs[job.tool].append(run)
            say(f"{number + 1}/{rounds} {job.tool}: {run.seconds:.3f} s, {run.peak / 1e6:.0f} MB {run.why}")
            remove(job.writes)
            os.sync()
    return [Cost(tool, tuple(found)) for tool, found in runs.items()]


def remove(paths: Sequence[Path]) -> None:
    """Delete what a run wrote, and anything beside it under the same stem (external data)."""
    for path in paths:
        for found in path.parent.glob(path.name + "*"):
            found.unlink()
