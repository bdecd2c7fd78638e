"""The algebra of scale and shift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.affine import Affine

DIFFERENT = {
    "next to one": (Affine.of([1.0, np.nextafter(1.0, 2.0)]), Affine.of([1.0, 1.0])),
    "next to zero": (Affine.of([1.0, 1.0], [0.0, 5e-324]), Affine.of([1.0, 1.0], [0.0, 0.0])),
    "a sign": (Affine.of([1.0, -1.0]), Affine.of([1.0, 1.0])),
    "the order": (Affine.of([2.0, 1.0]), Affine.of([1.0, 2.0])),
    "the axis": (Affine.of([2.0, 1.0], axis=1), Affine.of([2.0, 1.0], axis=3)),
    "a scale for a shift": (Affine.of(1.0, 2.0), Affine.of(2.0, 1.0)),
    "no number": (Affine.of(np.nan), Affine.of(1.0)),
    "an infinite shift": (Affine.of([1.0, 1.0], [0.0, np.inf]), Affine.of([1.0, 1.0])),
    "the number of channels": (Affine.of([2.0, 2.0]), Affine.of([2.0, 2.0, 2.0])),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_must_not_be_taken_for_another(one: Affine, other: Affine) -> None:
    """Nor for one that does nothing."""
    assert not one.same_as(other)
    assert not other.same_as(one)
    assert not one.identity


NUMBERS = st.sampled_from([-4.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 3.0])


def affines(size: int) -> st.SearchStrategy[Affine]:
    vectors = st.lists(NUMBERS, min_size=size, max_size=size).map(np.array)
    return st.one_of(st.builds(Affine.of, vectors, vectors), st.builds(Affine.of, NUMBERS, NUMBERS))


def apply(affine: Affine, values: np.ndarray) -> np.ndarray:
    """On the last axis."""
    return affine.scale * values + affine.shift


X = np.arange(12.0).reshape(3, 4) - 5


@given(affines(4), affines(4), affines(4))
def test_then_composes_and_is_associative(a: Affine, b: Affine, c: Affine) -> None:
    np.testing.assert_array_equal(apply(a.then(b), X), apply(b, apply(a, X)))
    np.testing.assert_array_equal(apply(a.then(b).then(c), X), apply(a.then(b.then(c)), X))


@given(affines(4))
def test_scale_and_shift_part(affine: Affine) -> None:
    assert affine.only_scale().then(affine.only_shift()).same_as(affine)
    assert affine.identity == (not affine.scales and not affine.shifts)
    assert affine.over(4).scale.size == 4
    np.testing.assert_array_equal(apply(affine.over(4), X), apply(affine, X))


@given(affines(4), st.integers(1, 3))
def test_repeat_and_tile_follow_a_reshape(affine: Affine, times: int) -> None:
    data = np.arange(4.0 * times).reshape(4, times)
    scaled = affine.scale.reshape(-1, 1) * data + affine.shift.reshape(-1, 1)
    np.testing.assert_array_equal(apply(affine.repeat(times, 1), data.ravel()), scaled.ravel())
    data = np.arange(4.0 * times).reshape(times, 4)
    np.testing.assert_array_equal(apply(affine.tile(times, 1), data.ravel()), apply(affine, data).ravel())


def test_take_scatter() -> None:
    affine = Affine.of([1.0, 2.0, 3.0], [0.0, 1.0, 2.0])
    assert affine.take([2, 0]).same_as(Affine.of([3.0, 1.0], [2.0, 0.0]))
    assert affine.scatter(5, [4, 0, 2]).same_as(Affine.of([2.0, 1.0, 3.0, 1.0, 1.0], [1.0, 0.0, 2.0, 0.0, 0.0]))
    assert Affine.of(2.0).take([1]).uniform


def test_finite() -> None:
    assert Affine.of([1.0, 2.0]).finite
    assert not Affine.of([1.0, np.inf]).finite
    assert not Affine.of(1.0, np.nan).finite


def test_the_axis_of_a_uniform_affine_means_nothing() -> None:
    assert Affine.of(2.0, axis=1).same_as(Affine.of(2.0, axis=3))
    assert not Affine.of([2.0, 1.0], axis=1).same_as(Affine.of([2.0, 1.0], axis=3))
    assert Affine.of(2.0, axis=0).then(Affine.of([1.0, 2.0], axis=3)).axis == 3
