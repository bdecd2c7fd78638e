"""The command line: the only place that prints, reads ``sys.argv`` and turns results into exit codes.

Exit codes: 0 done; 1 a check failed; 2 wrong usage, input that cannot be used, or a bug in bnfold; 130 interrupted.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run ``bnfold`` and return its exit code.

    Args:
        arguments: without the name of the program; those of the process by default.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--version"]:  # asked for by scripts and prompts: answered before typer, numpy or onnx are loaded
        from bnfold._version import __version__

        print(f"bnfold {__version__}")
        return 0
    if arguments is None:  # a process of our own, over in a moment: its graphs are not worth collecting
        import atexit
        import gc

        gc.disable()
        atexit.register(gc.freeze)  # nor is it worth looking for cycles on the way out
    from .app import run

    return run(given)
