"""What can be asked of a bench."""

from __future__ import annotations

from dataclasses import dataclass, field

from bnfold.errors import OptionError
from bnfold.runtime import CPU, Provider

__all__ = ["BenchOptions"]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Options of :func:`bnfold.bench`.

    Attributes:
        provider: execution provider for both sessions.
        batches: sizes for the first, symbolic dimension of the inputs; None measures the model's own default.
        threads: numbers of threads inside an operator, one set of rows for each; 0 lets onnxruntime choose.
        dims: values for named symbolic dimensions.
        budget: seconds per row, the A/A preludes and the opening of sessions included.
        precision: a row ends early when its 95% interval lies within this share of the ratio, both ways.
        min_sample: seconds that one sample takes at least; shorter runs are repeated in an inner loop.
        warm_up: seconds of running before anything counts, at least, over all pairs of sessions of a row.
        processes: fresh processes per model and level for start-up time and peak memory; 0 leaves them out.
        seed: for inputs and for the order of rounds.
        tf32: allow TF32 in CUDA matrix products.
        cuda_graph: capture and replay CUDA graphs.
    """

    provider: Provider = CPU
    batches: tuple[int, ...] | None = None
    threads: tuple[int, ...] = (1,)
    dims: dict[str, int] = field(default_factory=dict)
    budget: float = 10.0
    precision: float = 0.01
    min_sample: float = 0.002
    warm_up: float = 0.5
    processes: int = 3
    seed: int = 0
    tf32: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        """Refuse values that make no sense.

        Raises:
            OptionError: a count or time out of range, or a CUDA option for another provider.
        """
        if self.batches is not None and (not self.batches or min(self.batches) < 1):
            raise OptionError("batch sizes must be 1 or more")
        if not self.threads or min(self.threads) < 0:
            raise OptionError("threads must be 0 (onnxruntime chooses) or more")
        if not self.budget > 0 or not self.min_sample > 0 or not self.precision > 0 or self.warm_up < 0:
            raise OptionError("budget, precision and sample time must be above 0 seconds")
        if self.processes < 0:
            raise OptionError("the number of processes cannot be negative")
        if (self.tf32 or self.cuda_graph) and self.provider.name != "CUDAExecutionProvider":
            raise OptionError(f"--tf32 and --cuda-graph need --provider cuda, not {self.provider}")
