"""The one idea: an affine map per channel, ``y = scale * x + shift``, along one axis of a tensor.

Everything is float64 from the moment parameters are read until a weight is written, so that composing any number of
affines still rounds each weight once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Channels = slice | list[int] | NDArray[np.integer[Any]]
"""What picks channels out of a vector."""

__all__ = ["Affine", "Spread", "Vector"]


@dataclass(slots=True, eq=False)
class Affine:
    """``y[..., c, ...] = scale[c] * x[..., c, ...] + shift[c]`` with channel ``c`` on ``axis``.

    Attributes:
        scale, shift: float64 vectors of the same length: the channels, or 1 when all channels share one value
            (then ``axis`` means nothing).
        axis: channel axis; negative counts from the last axis, as NumPy does.
    """

    scale: Vector
    shift: Vector
    axis: int = 1

    @staticmethod
    def of(scale: object, shift: object = 0.0, axis: int = 1) -> Affine:
        """Make an affine from anything that NumPy turns into vectors or scalars; scalars stretch to the other's
        length."""
        s, t = _vector(scale), _vector(shift)
        if s.size != t.size:
            s, t = (np.array(a) for a in np.broadcast_arrays(s, t))
        return Affine(s, t, axis)

    @property
    def uniform(self) -> bool:
        """One value for the whole tensor, so the axis does not matter."""
        return self.scale.size == 1

    @property
    def scales(self) -> bool:
        return bool(np.count_nonzero(self.scale != 1.0))

    @property
    def shifts(self) -> bool:
        return bool(np.count_nonzero(self.shift))

    @property
    def identity(self) -> bool:
        return not self.scales and not self.shifts

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    def simplest(self) -> Affine:
        """The same as one value, where all channels have the same."""
        scale, shift = self.scale, self.shift
        if scale.size < 2 or scale[0] != scale[-1] or shift[0] != shift[-1]:  # most differ there already
            return self
        alike = (scale == scale[0]).all() and (shift == shift[0]).all()
        return Affine(scale[:1], shift[:1], self.axis) if alike else self

    def then(self, later: Affine) -> Affine:
        """This affine followed by ``later``: ``later(self(x))``. Both live on the same axis, or one is uniform."""
        axis = later.axis if self.uniform else self.axis
        return Affine.of(later.scale * self.scale, later.scale * self.shift + later.shift, axis)

    def at(self, axis: int) -> Affine:
        """The same vectors on another axis."""
        return self if self.axis == axis else Affine(self.scale, self.shift, axis)

    def over(self, channels: int) -> Affine:
        """Stretch a uniform affine to ``channels`` channels."""
        if self.scale.size == channels:
            return self
        return Affine(np.repeat(self.scale, channels), np.repeat(self.shift, channels), self.axis)

    def repeat(self, times: int, axis: int) -> Affine:
        """Each channel ``times`` times in a row, as flattening ``[C, times]`` to ``[C * times]`` lays them out."""
        return self if self.uniform else Affine(np.repeat(self.scale, times), np.repeat(self.shift, times), axis)

    def tile(self, times: int, axis: int) -> Affine:
        """All channels ``times`` times over, as flattening ``[times, C]`` to ``[times * C]`` lays them out."""
        return self if self.uniform else Affine(np.tile(self.scale, times), np.tile(self.shift, times), axis)

    def take(self, channels: Channels) -> Affine:
        """The channels at these indices in that order."""
        return self if self.uniform else Affine(self.scale[channels], self.shift[channels], self.axis)

    def scatter(self, total: int, channels: Channels) -> Affine:
        """An affine over ``total`` channels that acts on these ``channels`` and leaves the others as they are."""
        scale, shift = np.ones(total), np.zeros(total)
        scale[channels], shift[channels] = self.scale, self.shift
        return Affine(scale, shift, self.axis)

    def only_scale(self) -> Affine:
        return Affine(self.scale, np.zeros_like(self.shift), self.axis)

    def only_shift(self) -> Affine:
        return Affine(np.ones_like(self.scale), self.shift, self.axis)

    def same_as(self, other: Affine) -> bool:
        """Whether both do exactly the same to a tensor."""
        return (
            (self.uniform or self.axis == other.axis)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.shift, other.shift)
        )


@dataclass(slots=True, eq=False)
class Spread(Affine):
    """An affine whose channels stand on several axes, as where a Reshape split them.

    Attributes:
        scale, shift: float64 arrays with a dimension for each of the axes.
        axes: counted from the first axis, one for each dimension of the arrays; ``axis`` means nothing.
    """

    axes: tuple[int, ...] = ()

    @staticmethod
    def along(scale: NDArray[np.float64], shift: NDArray[np.float64], axes: Iterable[int]) -> Affine:
        """Values that vary along these axes, or only seem to; an ordinary affine where one axis or none is left."""
        kept = list(axes)
        for place in reversed(range(len(kept))):
            first_scale, first_shift = scale.take([0], place), shift.take([0], place)
            if (scale == first_scale).all() and (shift == first_shift).all():
                scale, shift = first_scale.squeeze(place), first_shift.squeeze(place)
                del kept[place]
        if len(kept) > 1:
            return Spread(scale, shift, kept[0], tuple(kept))
        return Affine(scale.ravel(), shift.ravel(), *kept)

    @staticmethod
    def at_places(affine: Affine, places: Channels, axis: int, size: int) -> Affine:
        """The affine at some places of another axis of so many, which counts from the first one, as its own does."""
        scale, shift = np.ones((size, affine.scale.size)), np.zeros((size, affine.scale.size))
        scale[places], shift[places] = affine.scale, affine.shift
        return Spread.along(scale, shift, (axis, affine.axis))

    def simplest(self) -> Affine:
        """Itself: values along several axes vary."""
        return self

    def same_as(self, other: Affine) -> bool:
        """Whether both do exactly the same to a tensor."""
        return (
            isinstance(other, Spread)
            and self.axes == other.axes
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.shift, other.shift)
        )

    def on(self, axes: Iterable[int]) -> Affine:
        """The same values on other axes."""
        return Spread(self.scale, self.shift, self.axis, tuple(axes))


def _vector(values: object) -> Vector:
    """A vector of float64, or of the machine's longer type where the values have it already (see ``read``)."""
    array = np.atleast_1d(np.asarray(values))
    return array if array.dtype == np.longdouble else array.astype(np.float64, copy=False)
