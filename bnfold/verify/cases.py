"""The inputs of a comparison: what the user gave, and what can be made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bnfold.errors import OptionError
from bnfold.inputs import InputSet, InputSpec, bind_dims, input_specs, make_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bnfold.verify.options import VerifyOptions
    from bnfold.verify.source import Source

__all__ = ["Case", "made", "sizes", "user_cases"]

# Sizes to try for dynamic dimensions other than the batch, smallest first: the first that the model accepts, and
# another one beside it. Deep convolutional nets need pictures of 64 or 224 pixels, everything else is happy with less.
_SIZES = ((32, 48), (64, 96), (128, 160), (224, 256), (8, 12), (1, 2), (320, 640))


@dataclass(frozen=True, slots=True)
class Case:
    """One set of inputs; fields as in :class:`~bnfold.inputs.InputSet`, and the binding of dynamic dimensions."""

    name: str
    feeds: Mapping[str, Any]
    expected: Mapping[str, Any] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)


def user_cases(source: Source, options: VerifyOptions) -> list[Case]:
    """Read the user's data.

    Raises:
        OptionError: see :func:`bnfold.userdata.load_inputs`.
    """
    from bnfold.userdata import fit, load_inputs

    specs = input_specs(source.given.proto)
    outputs = [value.name for value in source.given.proto.graph.output]
    files = [given for given in options.inputs if isinstance(given, str)]
    sets = list(load_inputs(files, specs, outputs)) if files else []
    for number, given in enumerate(g for g in options.inputs if not isinstance(g, str)):
        missing = [spec.name for spec in specs if spec.name not in given]
        if missing:
            raise OptionError(f"no data for input {missing[0]!r}; give an array for every input")
        sets.append(InputSet(f"user data {number}", {s.name: fit(given[s.name], s, "user data") for s in specs}))
    return [Case(given.name, given.feeds, given.expected) for given in sets]


def sizes(specs: Sequence[InputSpec], options: VerifyOptions) -> Iterator[tuple[int, int]]:
    """Pairs of sizes to try for dynamic dimensions; one pair when there are none."""
    small = bind_dims(specs, options.dims, batch=1, size=_SIZES[0][0])
    if small == bind_dims(specs, options.dims, batch=1, size=_SIZES[1][0]):
        yield _SIZES[0]
        return
    yield from _SIZES


def made(specs: Sequence[InputSpec], options: VerifyOptions, size: tuple[int, int]) -> list[Case]:
    """Make the input sets of a comparison: every distribution with batch 1, two of them again with batch 3.

    Raises:
        OptionError: an input that cannot be made.
    """
    bindings = [bind_dims(specs, options.dims, batch=batch, size=s) for batch, s in ((1, size[0]), (3, size[1]))]
    cases = [_case(specs, options, kind, bindings[0]) for kind in options.distributions]
    if bindings[0] != bindings[1]:
        cases += [_case(specs, options, kind, bindings[1]) for kind in options.distributions[:2]]
    return cases


def _case(specs: Sequence[InputSpec], options: VerifyOptions, kind: str, bound: Mapping[str, int]) -> Case:
    feeds = make_inputs(specs, seed=options.seed, distribution=kind, dims=bound)
    shown = ", ".join(f"{name}={number}" for name, number in bound.items())
    return Case(f"{kind} ({shown})" if shown else kind, feeds, dims=bound)
