"""A fresh process that opens one session, runs it once and says what that cost.

The request, its only argument, is JSON (see :func:`bnfold.bench.startup.request`);
the answer is one JSON line on stdout.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["answer", "main", "peak_bytes"]


def peak_bytes() -> int:
    """Peak resident memory of this process so far.

    ``VmHWM`` where the system has it: on Linux ``ru_maxrss`` of a child starts at its parent's peak.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found.group(1)) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def answer(request: dict[str, Any]) -> dict[str, float | int]:
    """Do what the request says: import, note the memory, open the session, run it."""
    import numpy as np

    from bnfold.runtime import Level, Provider, onnxruntime, open_session

    onnxruntime()
    with np.load(request["feeds"]) as archive:
        feeds = {name: archive[f"a{number}"] for number, name in enumerate(request["inputs"])}
    baseline = peak_bytes()
    start = time.perf_counter()
    session = open_session(
        request["model"],
        provider=Provider.parse(request["provider"]),
        optimize=Level(request["level"]),
        threads=request["threads"],
        tf32=request["tf32"],
    )
    opened = time.perf_counter()
    session.run(feeds)
    done = time.perf_counter()
    return {
        "create": opened - start,
        "first_run": done - opened,
        "peak_bytes": peak_bytes(),
        "baseline_bytes": baseline,
    }


def main() -> None:
    """Entry point: the request is the only argument."""
    print(json.dumps(answer(json.loads(sys.argv[1]))))
