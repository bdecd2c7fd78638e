"""``bnfold fold IN.onnx -o OUT.onnx``: fold, prove, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bnfold.errors import OptionError, RuntimeMissingError, did_you_mean, printable

from .arguments import (
    JsonOption,
    Only,
    OnlyOption,
    SkipCodeOption,
    SkipOption,
    dimensions,
    seconds,
)
from .output import ProgressBar, refuse_overwriting, same_file, say, warn, write_json

if TYPE_CHECKING:
    from bnfold import VerifyOptions

__all__ = ["fold"]

MISSING = (
    "onnxruntime is not installed, and the proof needs it; "
    'install it with: pip install "bnfold[cpu]" (or leave the proof out: --no-verify)'
)


def fold(
    source: Annotated[Path, typer.Argument(metavar="IN.onnx", help="The model to fold.", show_default=False)],
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.onnx", help="Where to write the folded model.")
    ] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace IN.onnx itself.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; write nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if anything would fold; write nothing.")] = False,
    json: JsonOption = "",
    only: OnlyOption = "all",
    skip: SkipOption = None,
    skip_code: SkipCodeOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every fold and every measurement.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Prove that the result is the same network.")
    ] = True,
    fold_gelu: Annotated[
        bool,
        typer.Option("--fold-gelu", help="Fold parts of written-out Gelus too, for runtimes that do not fuse them."),
    ] = False,
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Treat initializers that callers may override as constants.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="A fold that fails the proof is an error, not taken back.")
    ] = False,
    provider: Annotated[
        str, typer.Option(metavar="NAME", help="Where to run: cpu, cuda, NAME[:option=value,...].")
    ] = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the made inputs.")] = 0,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Size of a dynamic dimension; may be repeated."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="DATA", help="name=file.npy, file.npz or a folder of test data; may be repeated."
        ),
    ] = None,
    rtol: Annotated[
        float | None, typer.Option(metavar="X", help="Relative tolerance instead of the noise floor.")
    ] = None,
    atol: Annotated[
        float | None, typer.Option(metavar="X", help="Absolute tolerance instead of the noise floor.")
    ] = None,
    budget: Annotated[str, typer.Option(metavar="TIME", help="Time for the proof, such as 60s.")] = "",
    bench: Annotated[bool, typer.Option("--bench", help="Measure the gain afterwards.")] = False,
) -> None:
    """Fold the batch norms of a model into its linear operators, prove the result, and write it.

    The output is written only when the proof holds; until then the old file stays as it is.

    Examples:

        bnfold fold model.onnx -o folded.onnx

        bnfold fold model.onnx --in-place --json report.json

        bnfold fold model.onnx --dry-run -v

        bnfold fold model.onnx --check

        bnfold fold model.onnx -o folded.onnx --input x=batch.npy --dim N=8
    """
    request = _Request(source, output, in_place, dry_run, check, json, bench)
    request.validate()
    if only not in Only:
        raise OptionError(f"--only {printable(only)!r}: expected one of {', '.join(Only)}{did_you_mean(only, Only)}")
    proof = _Proof(provider, seed, tuple(dim or ()), tuple(inputs or ()), rtol, atol, budget)
    proof.validate()
    proving = verify and not request.plan_only
    if proving:
        _require_runtime()
    with ProgressBar(quiet=quiet) as bar:
        from bnfold.pipeline import FoldOptions, fold_file, inspect

        options = FoldOptions(
            only=only,
            skip=tuple(skip or ()),
            skip_codes=tuple(skip_code or ()),
            fold_gelu=fold_gelu,
            freeze=freeze,
            verify=proving,
            strict=strict,
            verification=proof.options(bar) if proving else None,
            progress=bar.step,
        )
        result = inspect(source, options) if request.plan_only else fold_file(source, request.destination, options)
    for note in result.notes:
        warn(f"note: {note}")
    if json:
        write_json(result, json)
    if not quiet and json != "-":
        from .rendering import folded, planned

        say(planned(result, verbose=verbose) if request.plan_only else folded(result, verbose=verbose))  # type: ignore[arg-type]
    if bench:
        from .bench import bench_after_fold

        bench_after_fold(source, request.destination, quiet=quiet)
    if check and result.folded:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Request:
    """What to read and what to write."""

    source: Path
    output: Path | None
    in_place: bool
    dry_run: bool
    check: bool
    json: str
    bench: bool

    @property
    def plan_only(self) -> bool:
        return self.dry_run or self.check

    @property
    def destination(self) -> Path:
        return self.source if self.output is None else self.output

    def validate(self) -> None:
        """Refuse what contradicts itself, before anything is read.

        Raises:
            OptionError: with what to type instead.
        """
        if self.output is not None and self.in_place:
            raise OptionError("-o and --in-place exclude each other; give one of them")
        if self.output is None and not self.in_place and not self.plan_only:
            raise OptionError(
                f"say where the folded model goes: -o OUT.onnx, or --in-place to replace {printable(self.source)} "
                "(--dry-run and --check write nothing)"
            )
        if self.output is not None and not self.plan_only and same_file(self.source, self.output):
            name = printable(self.output)
            raise OptionError(f"{name} is the input itself; give another name, or --in-place to replace it")
        if self.bench and (self.in_place or self.plan_only):
            raise OptionError("--bench measures two files against each other; it needs -o OUT.onnx")
        if self.bench and self.json == "-":
            raise OptionError("--bench prints tables on stdout; give --json a file")
        refuse_overwriting(self.json, (self.source, self.output))


@dataclass(frozen=True)
class _Proof:
    """The options of the proof as they were typed."""

    provider: str
    seed: int
    dim: tuple[str, ...]
    inputs: tuple[str, ...]
    rtol: float | None
    atol: float | None
    budget: str

    def validate(self) -> None:
        """Refuse what cannot be read, whether or not the proof will run.

        Raises:
            OptionError: see :func:`dimensions` and :func:`seconds`.
        """
        dimensions(self.dim)
        seconds(self.budget)
        for name, value in (("--rtol", self.rtol), ("--atol", self.atol)):
            if value is not None and not 0 <= value < float("inf"):
                raise OptionError(f"{name} {value}: expected a number that is not negative")

    def options(self, bar: ProgressBar) -> VerifyOptions:
        from bnfold.runtime import Provider
        from bnfold.verify.options import VerifyOptions

        return VerifyOptions(
            provider=Provider.parse(self.provider),
            seed=self.seed,
            dims=dimensions(self.dim),
            inputs=self.inputs,
            rtol=self.rtol,
            atol=self.atol,
            budget=seconds(self.budget),
            progress=bar.fraction,
        )


def _require_runtime() -> None:
    """Say that onnxruntime is missing before a large model is folded, not after.

    Raises:
        RuntimeMissingError: it is not installed.
    """
    import importlib.util

    if importlib.util.find_spec("onnxruntime") is None:
        raise RuntimeMissingError(MISSING)
