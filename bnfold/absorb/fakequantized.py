"""Float weights that are quantized and dequantized in the graph, as quantization-aware training leaves them.

``dq(q(w))`` takes a scale ``s`` as ``w' = s * w`` with both scales times ``|s|``: the integers in between stay what
they were, or turn their signs. They are made of rounded numbers, though, so a weight close to the border between two
of them might fall on the other side; such a one becomes exactly what its integer stands for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnfold import dtypes
from bnfold.absorb.dequantized import RANGES, Dequantized
from bnfold.absorb.port import Stored
from bnfold.absorb.signs import Turned
from bnfold.affine import Vector
from bnfold.graph import Node

__all__ = ["floats"]

_BORDER = 2.0**-7
"""How far from the middle between two integers a weight has to be, in steps."""


def floats(
    weight: Dequantized,
    source: Node,
    axis: int,
    factor: Vector,
    scale: NDArray[np.float64],
    turned: Turned,
) -> tuple[Stored, ...]:
    """The new float weight, from which the new scale makes the integers that are wanted."""
    wanted, zeros = turned
    old = source.scope.constants.get(source.input(0))
    assert old is not None, "or its integers were not constant"
    kind = dtypes.numpy_dtype(old.data_type)
    along = [-1 if i == axis else 1 for i in range(wanted.ndim)]
    step = np.broadcast_to(
        scale.astype(dtypes.numpy_dtype(weight.scale.data_type)).astype(np.float64).ravel(), factor.shape
    )
    step = step.reshape(along)
    zeros = weight.zeros() if zeros is None else np.broadcast_to(zeros.ravel(), factor.shape).reshape(along)
    values = (old.float64() * factor.reshape(along)).astype(kind).astype(np.float64)
    ratio = values / step
    lowest, highest = RANGES[weight.values.data_type]
    same = np.clip(np.rint(ratio) + zeros, lowest, highest) == wanted
    clear = np.abs(np.abs(ratio - np.floor(ratio)) - 0.5) > _BORDER
    return (Stored(0, np.where(same & clear, values, (wanted - zeros) * step), old.data_type, "weight"),)
