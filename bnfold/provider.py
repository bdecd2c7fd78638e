"""Execution providers: their names, as people write them, and their options."""

from __future__ import annotations

from dataclasses import dataclass

from bnfold.errors import OptionError, printable

__all__ = ["CPU", "CUDA", "Provider"]

_SHORT = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "trt": "TensorrtExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "dml": "DmlExecutionProvider",
    "directml": "DmlExecutionProvider",
}


@dataclass(frozen=True, slots=True)
class Provider:
    """An execution provider and its options, e.g. ``Provider("CUDAExecutionProvider", (("device_id", "0"),))``."""

    name: str = "CPUExecutionProvider"
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str | Provider) -> Provider:
        """Read ``cpu``, ``cuda``, ``cuda:device_id=0,use_tf32=1`` or any provider name of onnxruntime.

        Names are case-insensitive and may leave out ``ExecutionProvider``.

        Raises:
            OptionError: an empty name, or an option that is not ``key=value``.
        """
        if isinstance(text, Provider):
            return text
        name, _, rest = text.strip().partition(":")
        if not name:
            raise OptionError(f"provider {printable(text)!r}: expected cpu, cuda or NAME[:option=value,...]")
        options = []
        for item in filter(None, (part.strip() for part in rest.split(","))):
            key, equals, value = item.partition("=")
            if not equals or not key.strip():
                raise OptionError(f"provider {printable(text)!r}: option {printable(item)!r} is not key=value")
            options.append((key.strip(), value.strip()))
        return cls(_full_name(name.strip()), tuple(options))

    def __str__(self) -> str:
        return self.name + (":" + ",".join(f"{k}={v}" for k, v in self.options) if self.options else "")


CPU = Provider()
CUDA = Provider("CUDAExecutionProvider")


def _full_name(name: str) -> str:
    known = {full.lower(): full for full in _SHORT.values()}
    bare = name.lower().removesuffix("executionprovider")
    if bare in _SHORT:
        return _SHORT[bare]
    return known.get(
        f"{bare}executionprovider", name if name.endswith("ExecutionProvider") else f"{name}ExecutionProvider"
    )
