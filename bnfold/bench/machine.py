"""What there is to know about the machine before and after measuring."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from bnfold.bench.report import Machine

__all__ = ["cores", "governor", "load", "look_at_machine", "on_battery"]


def look_at_machine(provider: str) -> Machine:
    """Processor, cores, system, load, and the name of the GPU when ``provider`` runs on one."""
    device = gpu_name() if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider") else None
    return Machine(processor(), cores(), f"{platform.system()} {platform.release()}", load(), device)


def processor() -> str:
    """The processor's marketing name where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def load() -> float | None:
    """One-minute load average; None where there is none (Windows)."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def governor(root: Path = Path("/sys/devices/system/cpu/cpu0/cpufreq")) -> str | None:
    """Name of the frequency governor of the first core, None when there is none to see."""
    try:
        return (root / "scaling_governor").read_text().strip()
    except OSError:
        return None


def on_battery(root: Path = Path("/sys/class/power_supply")) -> bool:
    """Whether a mains supply is known and none of them is connected."""
    states = []
    for supply in sorted(root.glob("*")):
        try:
            if (supply / "type").read_text().strip() == "Mains":
                states.append((supply / "online").read_text().strip())
        except OSError:
            continue
    return bool(states) and "1" not in states


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU, None when ``nvidia-smi`` does not answer."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)
