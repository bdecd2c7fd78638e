"""The tools that are compared, each as a command that turns one model file into another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".cache"
PEERS = ("onnxruntime", "onnxruntime-all", "onnxsim", "onnxslim", "onnxoptimizer", "onnxscript")
FROZEN, GELU = "bnfold --freeze", "bnfold --fold-gelu"  # bnfold with an option
FLOORS = ("load-save", "cp")
REQUIREMENTS = (
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "onnxsim==0.8.1",
    "onnxslim==0.1.98",
    "onnxoptimizer==0.4.2",
    "onnxscript==0.7.2",
)


@dataclass(frozen=True, slots=True)
class Tools:
    """Where the tools are: the ``bnfold`` command and the peers' interpreter."""

    bnfold: tuple[str, ...]
    peers: str

    def command(self, tool: str, source: Path, destination: Path) -> tuple[str, ...]:
        """The command line by which ``tool`` reads ``source`` and writes ``destination``."""
        if tool in ("bnfold", FROZEN, GELU):
            options = tool.split()[1:]
            return (*self.bnfold, "fold", str(source), "-o", str(destination), "--no-verify", "-q", *options)
        if tool == "cp":
            return copy_command(source, destination)
        return (self.peers, str(HERE / "peer.py"), tool, str(source), str(destination))


def copy_command(source: Path, destination: Path) -> tuple[str, ...]:
    """Copy the model and the data beside it byte for byte (``--reflink=never``: no shared blocks)."""
    data = [path for path in source.parent.glob(source.name + ".*") if path.is_file()]
    pairs = [(source, destination)] + [(path, destination.with_name(destination.name + path.suffix)) for path in data]
    script = " && ".join(f"cp --reflink=never '{a}' '{b}'" for a, b in pairs)
    return ("sh", "-c", script)


def find(peers: str | None = None, *, build: bool = True) -> Tools:
    """Locate the tools; builds the peers' environment in ``.cache/peers`` when it is not there (about 400 MB).

    bnfold is installed anew in ``.cache/bnfold``, as users have it: an editable installation starts 0.04 s later.
    """
    peers = peers or os.environ.get("BNFOLD_PEERS")
    if peers is None and build:
        peers = str(build_peers(CACHE / "peers"))
    if build:
        return Tools((str(build_own(CACHE / "bnfold")),), peers or sys.executable)
    script = Path(sys.executable).with_name("bnfold")
    bnfold = (str(script),) if script.exists() else (shutil.which("bnfold") or "bnfold",)
    return Tools(bnfold, peers or sys.executable)


def build_own(folder: Path) -> Path:
    """Install this project, as it is now, in an environment of its own; returns its command."""
    pip = (str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet")
    if not (folder / "bin" / "bnfold").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([*pip, f"{ROOT}[cpu]"], check=True)
    else:
        subprocess.run([*pip, "--no-deps", "--force-reinstall", str(ROOT)], check=True)
    return folder / "bin" / "bnfold"


def build_peers(folder: Path) -> Path:
    """Make the virtual environment with the peers once; returns its interpreter."""
    python = folder / "bin" / "python"
    done = folder / "requirements.txt"
    wanted = "\n".join(REQUIREMENTS)
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"building {folder} with {', '.join(REQUIREMENTS)}", file=sys.stderr)
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    done.write_text(wanted)
    return python


def corpus() -> Path | None:
    """The folder with exported models: ``BNFOLD_CORPUS``, else ``../shared/corpus``, else None."""
    for folder in (os.environ.get("BNFOLD_CORPUS"), ROOT.parent / "shared" / "corpus"):
        if folder and (Path(folder) / "manifest.json").exists():
            return Path(folder)
    return None
