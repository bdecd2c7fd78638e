"""Turning the signs of quantized weights: ``-(q - z) * scale`` with other integers, for channels of negative scale.

``2 z - q`` is such an integer, unless it leaves the range (-128 becomes 128). With the zero point turned, too,
``m - q`` and ``m - z`` never do, where ``m`` is the sum of the largest and the smallest integer; but channels then have
zero points of their own, which kernels on integers do not take.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnfold.absorb.dequantized import RANGES, Dequantized, quantized_data
from bnfold.affine import Vector
from bnfold.graph import Node
from bnfold.refusals import Refusal

__all__ = ["Turned", "one_for_all", "problem", "turned"]

_SYMMETRIC = (17, 18, 19, 20)
"""float8 types: every number has its negative."""

_INT32 = 6
"""The type of a sum, which has no zero point."""


class Turned(NamedTuple):
    """The new integers, and the new zero points as the scales are shaped; None where they stay."""

    values: NDArray[np.float64]
    zeros: NDArray[np.float64] | None


def problem(
    node: Node, position: int, weight: Dequantized, axis: int, factor: Vector, scale: NDArray[np.float64]
) -> Refusal | None:
    """Why the quantized weight of ``node`` at ``position`` cannot take a factor that is negative for some channels."""
    kind = weight.values.data_type
    if kind in _SYMMETRIC and not weight.zeros().any():
        return None
    if kind not in RANGES:
        reason = f"the sign of the weight of '{node.label}' cannot be flipped in its type"
        return Refusal("quantized", reason, node.label)
    zeros = turned(weight, axis, factor, scale).zeros
    if zeros is None:
        return None
    alike = weight.zeros().any() and (zeros == zeros.flat[0]).all()
    mixed = weight.block and weight.axis == axis and _mixed(factor < 0, weight.block)
    if kind != _INT32 and not mixed and (alike or quantized_data(node, 1 - position) is None):
        return None
    reason = f"flipping the sign of the weight of '{node.label}' leaves the range of its integers"
    return Refusal("quantized", reason, node.label)


def turned(weight: Dequantized, axis: int, factor: Vector, scale: NDArray[np.float64]) -> Turned:
    """The integers with the signs of negative channels turned, to go with a new scale of this shape."""
    plain = _turned(weight, axis, factor, 2 * weight.zeros())
    if _fits(weight, plain):
        return Turned(plain, None)
    mirror = float(sum(RANGES[weight.values.data_type]))
    negative = factor < 0
    zeros = np.zeros(1) if weight.zero is None else weight.zero.float64()
    if weight.block:
        each = negative[:: weight.block] if weight.axis == axis else negative
        each = each.reshape([-1 if i == axis else 1 for i in range(scale.ndim)])
        zeros = np.broadcast_to(zeros, scale.shape)
    else:
        each = negative[: scale.size].reshape(scale.shape)
        zeros = np.broadcast_to(zeros.ravel(), (scale.size,)).reshape(scale.shape)
    return Turned(_turned(weight, axis, factor, np.array(mirror)), np.where(each, mirror - zeros, zeros))


def one_for_all(weight: Dequantized, axis: int, factor: Vector) -> bool:
    """Whether a single zero point can stay one."""
    alike = (factor < 0).all() or (factor >= 0).all()
    return bool(alike or _fits(weight, _turned(weight, axis, factor, 2 * weight.zeros())))


def _turned(weight: Dequantized, axis: int, factor: Vector, mirror: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is as far below ``mirror`` as the integers are above zero, in channels with a negative factor."""
    values = weight.values.array().astype(np.float64)  # exact: no type here has more than 32 bits
    negative = (factor < 0).reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return np.where(negative, mirror - values, values)


def _mixed(negative: NDArray[np.bool_], block: int) -> bool:
    """Whether channels of different signs share a zero point."""
    return bool((np.repeat(negative[::block], block)[: negative.size] != negative).any())


def _fits(weight: Dequantized, values: NDArray[np.float64]) -> bool:
    low, high = RANGES.get(weight.values.data_type, (-np.inf, np.inf))
    return bool(values.min() >= low and values.max() <= high)
