"""Every error bnfold raises on purpose.

    BnfoldError                   exit code 2: wrong usage or input that cannot be used
    ├── ModelReadError            the file cannot be read as an ONNX model, or its data is missing or unsafe
    ├── ModelWriteError           the output cannot be written
    ├── OptionError               an option or argument that makes no sense for this model
    ├── RuntimeMissingError       onnxruntime is not installed, or cannot run this model at all
    ├── ProviderError             an execution provider was asked for and is not there
    └── VerificationError         exit code 1: the folded model is not the same network

Any other exception that leaves bnfold is a bug in bnfold.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "BnfoldError",
    "ModelReadError",
    "ModelWriteError",
    "OptionError",
    "ProviderError",
    "RuntimeMissingError",
    "VerificationError",
    "did_you_mean",
    "printable",
]


class BnfoldError(Exception):
    """Root of all errors that bnfold raises; the message is one line: what, where, what to do."""

    exit_code = 2


class ModelReadError(BnfoldError):
    """A model file, or the external data beside it, cannot be read."""


class ModelWriteError(BnfoldError):
    """The output file cannot be written; whatever stood there before is untouched."""


class OptionError(BnfoldError):
    """An option or argument that cannot be honoured."""


class RuntimeMissingError(BnfoldError):
    """No runtime can evaluate the model."""


class ProviderError(BnfoldError):
    """The execution provider asked for is not available."""


class VerificationError(BnfoldError):
    """The folded model differs from the original."""

    exit_code = 1


def printable(name: object) -> str:
    """Return ``name`` on one line with control characters escaped: names in a model are not trusted."""
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'padding'?``, or nothing when no known word is close."""
    import difflib  # only mistakes need it

    close = difflib.get_close_matches(word.lower(), list(known), n=1)
    return f"; did you mean {printable(close[0])!r}?" if close else ""
