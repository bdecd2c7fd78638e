"""Ranks and dimensions from what is near, and proofs that a reshape keeps channels on one axis."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import Case, build, kept
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, shape_inference

from bnfold import files, infer, symbolic
from bnfold.affine import Affine, Spread
from bnfold.carry.reshape import Monomial, move, spread
from bnfold.graph import Scope, index_model

SHAPE = "s = Shape(x)\nz = Gather(s, i0)\n"
SIZES = {
    "looked up in a computed tensor": "k = Gather(t, i0)",
    "looked up in a long table": "k = Gather(long, z)",
    "cut with steps": "k = Slice(s, i2, i9, i0, i2)",
    "divided with a rest": "k = Div(z, i9)",
    "divided by another size": "k = Div(i9, z)",
    "a product of a computed tensor": "k = ReduceProd(t)",
    "a sum": "k = Add(z, z)",
}
TABLES = {"i0": [0], "i2": [2], "i9": [9], "long": list(range(20))}

KEPT = [
    *[
        kept(
            f"the first size is {name}",
            "reshape",
            "float[N,4,H,8] x, int64[3] t",
            f"n = BN4(x)\n{SHAPE}{size}\nto = Concat <axis=0> (k, rest)\nr = Reshape(n, to)\ny = Conv(r, W)",
            outputs="float[a,b,c] y",
            W=(3, 4, 1),
            rest=[4, -1],
            **{table: value for table, value in TABLES.items() if table in SHAPE + size},
        )
        for name, size in SIZES.items()
    ],
    *[
        kept(
            f"{source} to {target}",
            "reshape",
            f"float[{source}] x",
            f"n = BN3(x)\nr = Reshape(n, to)\ny = {'Gemm' if len(target) == 2 else 'Conv'}(r, W)",
            outputs="float[a,b] y" if len(target) == 2 else "float[a,b,c] y",
            to=target,
            W=weight,
        )
        for source, target, weight in (
            ("2,3,4", [4, 6], (6, 2)),
            ("2,3,4", [2, 2, 6], (2, 2, 1)),
            ("2,3,4", [3, 2, 4], (2, 2, 1)),
            ("2,3,4", [2, 4, 3], (2, 4, 1)),
            ("N,3", [3, -1], (5, 2)),
            ("N,3,H", [-1, 3], (3, 2)),
        )
    ],
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


C3 = Affine.of([2.0, 3.0, 5.0], [1.0, 0.0, 4.0])
NOT_PROVABLE = [
    (("N", 3, "H"), ("H", 3, "N"), 1),
    (("N", 3, "H"), ("N", "H", 3), 1),
    (("N", 3), (3, "N"), 1),
    ((2, 3, 4), (4, 6), 1),
    ((2, 3, 4), (2, 2, 6), 1),
    (("N", 3, "H"), (3, "N", "H"), 1),
    (("N", "M", 3), ("M", 4, "N"), 2),
]


@pytest.mark.parametrize(("source", "target", "axis"), NOT_PROVABLE)
def test_what_is_not_proven(source: tuple[int | str, ...], target: tuple[int | str, ...], axis: int) -> None:
    assert move(monomials(*source), monomials(*target), C3.at(axis)) is None


def scope(model: ModelProto) -> Scope:
    return index_model(files.from_proto(model))[0]


def monomials(*dims: int | str) -> list[Monomial]:
    return [Monomial(d) if isinstance(d, int) else Monomial(1, (d,)) for d in dims]


PROVABLE = [
    (("N", 3, "H", "W"), ("N", 3, "?"), 1, 1, [2, 3, 5]),
    (("N", 3, "H", "W"), ("N", 3, 1, "?"), 1, 1, [2, 3, 5]),
    (("N", 3, 4), ("N", 12), 1, 1, list(np.repeat([2, 3, 5], 4))),
    ((2, 3), (6,), 1, 0, [2, 3, 5] * 2),
    (("N", "T", 3), ("?", 3), 2, 1, [2, 3, 5]),
    (("N", 3), (1, "N", 1, 3), 1, 3, [2, 3, 5]),
    ((3, 3, 3), (3, 9), 1, 1, list(np.repeat([2, 3, 5], 3))),
    ((3, 3), (9,), 0, 0, list(np.repeat([2, 3, 5], 3))),
]


@pytest.mark.parametrize(("source", "target", "axis", "place", "scale"), PROVABLE)
def test_what_is_proven(
    source: tuple[int | str, ...], target: tuple[int | str, ...], axis: int, place: int, scale: list[float]
) -> None:
    names = [n for n in source if isinstance(n, str) and n not in target]
    shape = [
        Monomial(1, tuple(sorted(names))) if d == "?" else Monomial(d) if isinstance(d, int) else Monomial(1, (d,))
        for d in target
    ]
    moved = move(monomials(*source), shape, C3.at(axis))
    assert moved is not None
    assert moved.axis == place
    np.testing.assert_array_equal(moved.scale, scale)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_proof_holds_for_real_arrays(source: list[int], axis: int, random: object) -> None:
    axis %= len(source)
    total = int(np.prod(source))
    target, left = [], total
    while left > 1:
        size = random.choice([d for d in range(2, left + 1) if left % d == 0])  # type: ignore[attr-defined]
        target.append(size)
        left //= size
        if random.random() < 0.3:  # type: ignore[attr-defined]
            target.append(1)
    affine = Affine(np.arange(1.0, source[axis] + 1), np.arange(float(source[axis])), axis)
    data = np.arange(float(total)).reshape(source)
    moved = move(monomials(*source), monomials(*target), affine)
    if moved is not None:
        assert_equal_after(affine, moved, data, target)
    wide = spread(monomials(*source), monomials(*target), affine.simplest())
    if affine.uniform:
        return
    assert wide is not None, "all sizes are numbers"
    assert_equal_after(affine, wide, data, target)
    if isinstance(wide, Spread):
        again = spread(monomials(*target), monomials(*source), wide)
        assert again is not None
        assert not isinstance(again, Spread)
        assert again.same_as(affine)


NOT_SPREAD = [
    ((2, 6), (2, 3, 2), 1, 5),  # the affine has another number of channels
    (("N", 6), ("M", 3, 2), 1, 6),  # whatever N and M are, the 6 is the last axis
    (("N", 6, "H"), (2, "N", "H", 3), 1, 6),
    ((2, 6, 1 << 20), (4, 3 << 20), 1, 6),  # too many values
    ((0, 6), (6, 0), 1, 6),
]


@pytest.mark.parametrize(("source", "target", "axis", "channels"), NOT_SPREAD[:1] + NOT_SPREAD[2:])
def test_what_is_not_spread(
    source: tuple[int | str, ...], target: tuple[int | str, ...], axis: int, channels: int
) -> None:
    affine = Affine.of(np.arange(1.0, channels + 1), 0.0, axis)
    assert spread(monomials(*source), monomials(*target), affine) is None


def test_channels_are_followed_from_behind() -> None:
    source, target, axis, channels = NOT_SPREAD[1]
    wide = spread(monomials(*source), monomials(*target), Affine.of(np.arange(1.0, channels + 1), 0.0, axis))
    assert isinstance(wide, Spread)
    assert wide.axes == (1, 2)


def assert_equal_after(affine: Affine, moved: Affine, data: np.ndarray, target: list[int]) -> None:
    def on(values: np.ndarray, axes: tuple[int, ...], rank: int) -> np.ndarray:
        sizes = dict(zip(axes, values.shape, strict=True)) if values.size > 1 else {}
        return values.reshape([sizes.get(i, 1) for i in range(rank)])

    axes = moved.axes if isinstance(moved, Spread) else (moved.axis,)
    want = on(affine.scale, (affine.axis,), data.ndim) * data + on(affine.shift, (affine.axis,), data.ndim)
    after = data.reshape(target)
    got = on(moved.scale, axes, after.ndim) * after + on(moved.shift, axes, after.ndim)
    np.testing.assert_array_equal(got, want.reshape(target))


def test_monomials() -> None:
    n, h = Monomial(1, ("N",)), Monomial(1, ("H",))
    assert (n * h * Monomial(6)).over(h * Monomial(2)) == Monomial(3, ("N",))
    assert n.over(h) is None
    assert Monomial(6).over(Monomial(4)) is None
    assert Monomial(6).over(Monomial(0)) is None


NOT_FOLLOWED = {
    "looked up in a computed tensor": "k = Gather(t, i0)",
    "looked up at a computed place": "k = Gather(few, z)",
    "looked up out of range": "k = Gather(s, i9)",
    "looked up along another axis": "k = Gather <axis=1> (square, z)",
    "looked up in a long table": "k = Gather(long, z)",
    "floats": "f = Cast <to=1> (s)\ng = Mul(f, half)\nk = Cast <to=7> (g)",
    "cut at a computed place": "k = Slice(s, z, i9)",
    "cut at several places": "k = Slice(s, two, two)",
    "cut with steps": "k = Slice(s, i0, i9, i0, i2)",
    "divided with a rest": "k = Div(s, i9)",
    "divided by another size": "k = Div(i9, z)",
    "products of a computed tensor": "k = ReduceProd(t)",
    "sums": "k = Add(s, s)",
    "joined with a computed tensor": "k = Concat <axis=0> (s, t)",
}
N, N4 = Monomial(1, ("N",)), Monomial(4, ("N",))
FOLLOWED = {
    "k = Gather(s, i0)": [N],
    "k = Slice(s, i0, i2)": [N, Monomial(4)],
    "k = Mul(z, z)": [N * N],
    "k = Div(s, s)": [Monomial(1)] * 4,
    "p = Mul(z, i2)\nk = Div(p, i2)": [N],
    "p = Slice(s, i0, i2)\nk = ReduceProd <keepdims=1> (p)": [N4],
    "k = ReduceProd <keepdims=0> (s)": [Monomial(32, ("H", "N"))],
    "u = Squeeze(z)\nk = Unsqueeze(u, i0)": [N],
}


def monomials_of(nodes: str) -> list[Monomial] | None:
    constants = {
        "i0": [0],
        "i2": [2],
        "i9": [9],
        "two": [0, 1],
        "few": [3, 4, 5],
        "long": list(range(20)),
        "square": np.array([[1, 2], [3, 4]]),
        "half": np.float32(0.5),
    }
    used = {name: value for name, value in constants.items() if name in nodes + SHAPE}
    model = build("float[N,4,H,8] x, int64[3] t", f"{SHAPE}{nodes}\ny = Relu(x)", "float[a,b,c,d] y", **used)
    return symbolic.values(scope(model), "k")


@pytest.mark.parametrize("nodes", NOT_FOLLOWED.values(), ids=NOT_FOLLOWED)
def test_sizes_that_are_not_followed(nodes: str) -> None:
    assert monomials_of(nodes) is None


@pytest.mark.parametrize(("nodes", "sizes"), FOLLOWED.items())
def test_sizes_that_are_followed(nodes: str, sizes: list[Monomial]) -> None:
    assert monomials_of(nodes) == sizes


@pytest.mark.parametrize("length", [10, 100])
def test_copies_share_the_names_of_unknown_sizes_for_a_while(length: int) -> None:
    nodes = "r0 = NonZero(x)\nc0 = Cast <to=1> (r0)\n" + "".join(f"c{i + 1} = Relu(c{i})\n" for i in range(length))
    found = scope(build("float[2,4] x", nodes + f"y = Abs(c{length})", "float[a,b] y"))
    first, last = (symbolic.dimensions(found, name, (2, None)) for name in ("c0", f"c{length}"))
    assert (first == last) == (length == 10)


def last_names(nodes: str, **constants: object) -> list[str | None]:
    """The names of the last sizes of ``c`` and ``y``, whose value nothing tells."""
    found = scope(build("float[2,4] x", f"z = NonZero(x)\nc = Cast <to=1> (z)\n{nodes}", "float[a,b] y", **constants))
    dims = [found.shapes.dims(name) for name in "cy"]
    named = [symbolic.dimensions(found, n, (*d[:-1], None)) for n, d in zip("cy", dims, strict=True) if d is not None]
    return [shape[-1].names[0] if shape else None for shape in named]


SCALAR, ROW, COLUMN = np.float32(2), np.float32([[2]]), np.float32([[2], [3]])


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ("y = Div(c, k)", {"k": SCALAR}),
        ("y = Sub(k, c)", {"k": ROW}),
        ("a = Add(c, k)\nb = Neg(a)\ny = Mul(k, b)", {"k": COLUMN}),
    ],
)
def test_what_a_constant_does_not_stretch_shares_the_names_of_unknown_sizes(
    nodes: str, constants: dict[str, object]
) -> None:
    assert last_names(nodes, **constants) == ["?z:1", "?z:1"]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ("y = Add(c, c)", {}),
        ("d = Identity(c)\ny = Add(c, d)", {}),
        ("y = Add(c, k)", {"k": np.float32([[[2]]])}),
        ("e = ReduceSum <keepdims=1> (c, one)\nf = NonZero(e)\ng = Cast <to=1> (f)\ny = Mul(g, k)", {"one": [1], "k": COLUMN}),
    ],
)  # fmt: skip
def test_what_may_be_stretched_has_names_of_its_own(nodes: str, constants: dict[str, object]) -> None:
    first, last = last_names(nodes, **constants)
    assert first == "?z:1" != last


def test_dimensions_come_from_what_is_near() -> None:
    found = scope(
        build(
            "float[N,4,H,8] x",
            "c = Conv(x, W)\nr = Relu(c)\nt = Transpose <perm=[0,2,3,1]> (r)\ng = GlobalAveragePool(r)\na = Add(r, k)\ny = Sum(a, g)",
            "float[p,q,r,s] y",
            W=(3, 4, 1, 1),
            k=(3, 1, 1),
        )
    ).shapes
    assert found.known_dims("c") == (None, 3, None, None)
    assert found.known_dims("g") == (None, 3, 1, 1)
    assert found.known_dims("t") == (None, None, None, 3)
    assert found.dim("t", -1) == 3
    assert found.rank("y") == 4
    assert found.axis("y", -3) == 1
    assert found.element_type("r") == 1


def test_what_is_not_known_stays_unknown() -> None:
    found = scope(build("float[2,4] x, int64[r] s", "r = Reshape(x, s)\ny = Relu(r)", "float[a,b] y")).shapes
    assert found.rank("nothing") is None
    assert found.axis("nothing", -1) is None
    assert found.dim("x", 5) is None
    assert found.element_type("nothing") is None


@pytest.mark.parametrize(
    ("attributes", "dims"),
    [("", (5, 2, 3)), ("<transA=1>", (5, 4, 3)), ("<transB=1>", (5, 2, 4)), ("<transBatchA=1>", None)],
)
def test_a_fused_product_has_the_shape_of_a_product(attributes: str, dims: tuple[int, ...] | None) -> None:
    inputs = "float[5,2,4] x, float[5,4,3] z"
    found = scope(
        build(
            inputs,
            f"p = com.microsoft.FusedMatMul {attributes} (x, z)\ny = Relu(p)",
            "float[a,b,c] y",
            imports={"com.microsoft": 1},
        )
    )
    assert found.shapes.known_dims("p") == dims


def test_a_size_that_a_reshape_copies_from_nowhere() -> None:
    assert (
        scope(
            build("float[2,4] x", "r = Reshape(x, to)\ny = Relu(r)", "float[a,b,c] y", to=[2, 4, 0])
        ).shapes.known_dims("r")
        is None
    )


def test_types_of_stored_tensors() -> None:
    assert scope(build("float[2,4] x", "y = Add(x, k)", k=np.float16([[1]]))).shapes.element_type("k") == 10


def test_what_the_exporter_declared_fills_the_gaps_where_onnx_infers_nothing() -> None:
    """A node of a domain that the model does not import stops shape inference as a whole."""
    model = build("float[2,4] x", "c = ConvTranspose(x, W)\ny = Relu(c)", "float[p,q,r] y", W=(3, 4, 2))
    model.graph.node[1].domain = "nobody"
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 9, "rest"]))
    found = scope(model).shapes
    assert found.dims("y") == ("p", "q", "r")
    assert found.dims("c") == ("N", 4, "rest")


def test_what_the_exporter_declared_says_more_than_names_that_inference_makes_up() -> None:
    model = build("float[2,4,S] x", "c = Compress <axis=2> (x, m)\na = Add(c, k)\ny = Relu(a)", "float[p,q,r] y",
                  k=(4, 1), m=np.array([True, False, True]))  # fmt: skip
    assert str(scope(model).shapes.inferred("a")[2]).startswith("unk__")  # type: ignore[index]
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 9, 2]))
    assert scope(model).shapes.dims("a") == (2, 4, 2)


@pytest.mark.parametrize(("axis", "dims"), [(0, (1, None)), (1, ("N", 12)), (2, (None, 4)), (-1, (None, 4)), (3, (None, 1))])
def test_flatten(axis: int, dims: tuple[int | str | None, ...]) -> None:
    model = build("float[N,3,4] x", f"f = Flatten <axis={axis}> (x)\ny = Relu(f)", "float[p,q] y")
    assert scope(model).shapes.known_dims("f") == dims


def test_sizes_in_two_bodies_are_not_the_same_because_the_tensors_have_one_name() -> None:
    """Else the Reshape of the one by the Shape of the other would seem to keep the channels together."""
    resize = "s = Concat <axis=0> ({0}, one, {0})  r = Resize({1}, , s)  {2} = Relu(r)"
    body = "(flag) < then_branch = t{0} () => (float[p,q,s] g{0}) {{ " + resize.replace("{2}", "g{0}") + " }}, "
    body += "else_branch = e{0} () => (float[p,q,s] h{0}) {{ " + resize.replace("{2}", "h{0}") + " }} >"
    text = f"o = If {body.format('a', 'x')}\nu = If {body.format('b', 'z')}\ny = Concat <axis=0> (o, u)"
    inputs = "float[N,4,H] x, float[M,4,K] z, bool flag, float[1] a, float[1] b"
    found = scope(build(inputs, text, "float[p,q,s] y", opset=19, one=np.float32([1]))).shapes
    one, other = found.dims("o") or (), found.dims("u") or ()
    assert one[1] == other[1] == 4
    assert {one[0], one[2]}.isdisjoint({other[0], other[2]})


def test_a_resize_of_an_axis_that_is_not_there() -> None:
    model = build("float[N,3,4] x", "r = Resize <axes=[7]> (x, , , to)\ny = Relu(r)", "float[p,q,r] y", to=[8])
    assert scope(model).shapes.known_dims("r") is None


def test_ranks_that_contradict_each_other_are_not_known() -> None:
    found = scope(build("float[2,4,4] x", "c = Conv(x, W)\ny = Relu(c)", "float[p,q,r] y", W=(3, 4, 2))).shapes
    found.learn(helper.make_graph([], "g", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 3])]))
    assert found.dims("c") is None


@pytest.mark.parametrize("first", ["a", "b", "c", "y"])
def test_what_is_asked_first_does_not_matter(first: str) -> None:
    nodes = "a = Relu(x)\nb = Transpose <perm=[0,1]> (z)\nc = MatMul(a, b)\ns = Add(c, a)\ny = Mul(b, s)"
    found = scope(build("float[4,4] x, float[4,4] z", nodes, "float[p,q] y")).shapes
    found.known_dims(first)
    assert found.known_dims("y") == (4, 4)


COMPUTED_SHAPE = """
    d = DepthToSpace <blocksize=2> (x)
    a = Conv(d, W)
    s = Shape(a)
    b = Reshape(a, s)
    t = Shape(b)
    y = Reshape(b, t)
"""


@pytest.mark.parametrize("first", ["a", "b", "y"])
def test_what_inference_is_told_is_not_taken_for_all_that_is_known(first: str) -> None:
    """On the way to inference, shapes are asked for that only inference can tell."""
    found = scope(build("float[N,4,2,2] x", COMPUTED_SHAPE, "float[p,q,r,s] y", W=(4, 1, 1, 1))).shapes
    found.dims(first)
    assert [found.dims(name) for name in "aby"] == [("N", 4, 4, 4)] * 3
    assert found.known_dims("b") == ("N", 4, 4, 4)


def through_casts(nodes: str) -> str:
    """Sizes that onnx loses, up to opset 13."""
    return f"{nodes}\ns = Shape(q)\nh = Cast <to=6> (s)\nl = Cast <to=7> (h)\nr = Reshape(q, l)\ny = Squeeze(r)"


def test_inference_goes_on_behind_a_reshape_that_is_proven_here() -> None:
    found = scope(
        build("float[1,N,4] x", through_casts("q = Unsqueeze(x, one)"), "float[a,b] y", opset=13, one=[1])
    ).shapes
    assert found.dims("r") == (1, 1, "N", 4)
    nodes = "".join(
        f"q{i} = Softmax(r{i})\nu{i} = Squeeze(q{i}, zero)\ns{i} = Shape(u{i})\nh{i} = Cast <to=6> (s{i})\nl{i} = Cast <to=7> (h{i})\n"
        f"n{i} = Concat <axis=0> (one, l{i})\nr{i + 1} = Reshape(u{i}, n{i})\n"
        for i in range(20)
    )
    model = build(
        "float[1,N,4] x", f"r0 = Relu(x)\n{nodes}y = Squeeze(r20, zero)", "float[a,b] y", opset=13, one=[1], zero=[0]
    )
    assert scope(model).shapes.dims("y") == ("N", 4)


def test_inference_ends_even_where_more_could_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "_PASSES", 1)
    model = build("float[1,N,4] x", through_casts("q = Unsqueeze(x, one)"), "float[a,b] y", opset=13, one=[1])
    assert scope(model).shapes.dims("y") == ("a", "b")


def test_names_that_onnx_makes_up_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """They mean something else in the next inference."""
    given = []

    def infer_shapes(model: ModelProto, **options: bool) -> ModelProto:
        given.append(str(model))
        return shape_inference.infer_shapes(model, **options)

    monkeypatch.setattr(infer, "shape_inference", SimpleNamespace(infer_shapes=infer_shapes))
    nodes = "z = NonZero(x)\nc = Cast <to=1> (z)\nq = Unsqueeze(c, one)\n"
    found = scope(build("float[N,4] x", through_casts(nodes), "float[a,b] y", opset=13, one=[1])).shapes
    assert found.dims("r") == (2, 1, "unk__0")
    assert len(given) == 2
    assert not any(re.search(r"unk__\d", text) for text in given)


def test_long_chains_of_sums_are_walked_once() -> None:
    nodes = "\n".join(f"a{i} = Add(a{i - 1}, a{i - 1})" for i in range(1, 3000))
    found = scope(build("float[N,3] a0", nodes, "float[p,q] a2999")).shapes
    assert found.known_dims("a2999") == ("N", 3)


def test_a_product_with_a_missing_operand_has_no_shape() -> None:
    model = build("float[2,4] x", "y = MatMul(x, W)", W=(4, 3))
    del model.graph.node[0].input[1:]
    assert scope(model).shapes.known_dims("y") is None
