"""The commands of ``bnfold``, and how what they raise becomes one line on stderr and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bnfold._version import __version__
from bnfold.errors import BnfoldError, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["COMMANDS", "build", "run"]

COMMANDS = {
    "fold": "Fold a model, prove the result, and write it.",
    "inspect": "Show what would fold, and why the rest stays.",
    "verify": "Prove that two models are the same network.",
    "bench": "Measure what folding gained.",
    "explain": "Explain a reason for keeping an operator.",
}
"""What ``bnfold --help`` says; each is a function of the same name in the module of the same name."""

DONE, USAGE, INTERRUPTED, CLOSED = 0, 2, 130, 141


def build(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The application with the commands asked for; every one costs milliseconds to describe to typer."""
    app = typer.Typer(
        name="bnfold",
        help="Fold batch normalization out of ONNX models, and prove that the result is the same network.",
        epilog="Exit codes: 0 done, 1 a check failed, 2 wrong usage or unreadable input.",
        add_completion=names is COMMANDS,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # names of files and tensors are not markup, and rich takes as long to load as typer
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_root)
    for name in names:
        app.command(name, short_help=COMMANDS[name])(getattr(importlib.import_module(f".{name}", __package__), name))
    return app


def run(arguments: list[str]) -> int:
    """Run one command line.

    Returns:
        The exit code; everything that went wrong has been said on stderr.
    """
    _prepare_streams()
    try:
        with _termination_as_exit():
            code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_stdout()
        return CLOSED
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        _discard_stdout()  # typer and rich leave with 1, which means that a check failed
        return CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BnfoldError as error:
        _complain(str(error))
        return error.exit_code
    except MemoryError:
        _complain("there is not enough memory; fold files rather than models in memory, or try --no-verify")
        return USAGE
    except Exception:
        traceback.print_exc()
        _complain(f"this is a bug in bnfold {__version__}: please report it with the lines above and the model")
        return USAGE


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"bnfold {__version__}")
        raise typer.Exit(DONE)


def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Declare what stands before the commands."""


def _invoke(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        app = build((arguments[0],))
    elif any(name.startswith("_BNFOLD_COMPLETE") for name in os.environ) or arguments:
        app = build()
    else:
        _complain("say what to do, for example: bnfold fold model.onnx -o folded.onnx (bnfold --help lists all)")
        return USAGE
    try:
        code: Any = app(arguments, prog_name="bnfold", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _usage(error)  # click's exceptions are not public in typer, but this method of theirs is old and stable
    return code if isinstance(code, int) else DONE


def _usage(error: Any) -> int:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "bnfold"
    _complain(f"{error.format_message().rstrip()} (try: {command} --help)")
    return USAGE


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"bnfold: {printable(message)}", file=sys.stderr)


@contextlib.contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Leave by an exception on SIGTERM, so that temporary files are removed on the way out."""

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepare_streams() -> None:
    """Print what the terminal's encoding lacks as escapes, rather than fail on it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Nobody reads stdout any more: keep the interpreter from complaining about it when it exits."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
