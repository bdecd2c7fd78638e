"""Pooling, reductions, Resize and Pad let an affine pass where their weights sum to one, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import Case, build, case, folds, kept, refuses

X = "float[2,4,4,4] x"
W = (3, 4, 1, 1)
C = "c = Conv(x, W)\n"
POOL = "kernel_shape=[2,2], strides=[2,2]"
ZERO, ONE = np.float32(0), np.float32(1)

KEPT = [
    *[
        kept(f"{op}: negative scale", "sign", X, C + f"p = {op}(c)\ny = BN3(p)", W=W)
        for op in (f"MaxPool <{POOL}>", "GlobalMaxPool")
    ],
    kept(
        "MaxPool with its indices",
        "blocked",
        X,
        C + f"p, i = MaxPool <{POOL}> (c)\nn = BNpos3(p)\nj = Cast <to=1> (i)\ny = Add(n, j)",
        W=W,
    ),
    kept(
        "AveragePool counts padding",
        "shift",
        X,
        C + "p = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (c)\ny = BN3(p)",
        W=W,
    ),
    kept(
        "AveragePool of opset 1 counts padding",
        "shift",
        X,
        C + "p = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1]> (c)\ny = BN3 <is_test=1> (p)",
        opset=6,
        ir=3,
        W=W,
    ),
    kept(
        "Resize to a size from outside",
        "axis",
        "float[2,4,4,4] x, int64[4] to",
        C + "u = Resize (c, , , to)\ny = BN3(u)",
        W=W,
    ),
    kept(
        "AveragePool SAME that pads",
        "shift",
        X,
        C + 'p = AveragePool <kernel_shape=[3,3], auto_pad="SAME_UPPER", count_include_pad=1> (c)\ny = BN3(p)',
        W=W,
    ),
    kept(
        "ReduceMean of what is cut, perhaps to nothing",
        "shift",
        "float[2,4,H,4] x, int64[1] e",
        C + "s = Slice(c, b, e, h)\nr = ReduceMean <keepdims=1> (s, h)\ny = BN3(r)",
        W=W,
        b=[0],
        h=[2],
    ),
    *[
        kept(f"float16: a scale below one in front of {op}", "overflow", "float16[2,4,4,4] x",
             f"n = Mul(x, half)\nr = {op}\ny = Conv(r, W)", W=W, half=np.float16(0.5), opset=17,
             **({} if "LpPool" in op else {"h": [2]} if "Sum" in op else {}))
        for op in ("ReduceSum(n, h)", "ReduceL1 <axes=[2]> (n)", "ReduceL2 <axes=[3]> (n)", "GlobalLpPool <p=1> (n)")
    ],
    kept("a dilated pool that pads to the same size", "blocked", "float[2,4,H,4] x",
         C + 'p = MaxPool <kernel_shape=[2,2], dilations=[4,4], auto_pad="SAME_UPPER"> (c)\ny = BN3(p)', W=W, opset=19),
    kept("a window longer than its axis, of which onnxruntime makes one", "shift", "float[1,1,1] x",
         "b = Conv(x, W)\nc = AveragePool<kernel_shape=[2], count_include_pad=1, strides=[4]>(b)\ny = Add(c, k)",
         W=(1, 1, 1), k=np.float32([5]), opset=13),
    kept("ReduceMean of what is cut in front of a product by a constant on the left", "shift", "float[2,4,H] x, int64[1] e",
         "s = Slice(x, b, e, h)\nm = MatMul(L, s)\nr = ReduceMean <keepdims=0> (m, h)\ny = Add(r, k)",
         L=(3, 4), b=[0], h=[2], k=np.float32([1, 2, 4])),
    kept(
        "ReduceMean of nothing",
        "shift",
        X,
        C + "s = Slice(c, b, b, h)\nr = ReduceMean <keepdims=1> (s, h)\ny = BN3(r)",
        W=W,
        b=[0],
        h=[2],
    ),
    kept(
        "ReduceMean of a part without rows",
        "shift",
        "float[2,4,H,4] x",
        C + "a, b = Split <axis=2> (c, parts)\nr = ReduceMean <keepdims=1> (b, h)\ny = BN3(r)",
        W=W,
        parts=[3, 0],
        h=[2],
    ),
    kept(
        "ReduceMean of images that are cut, perhaps to none",
        "shift",
        "float[N,4,4,4] x",
        "t = Slice(x, one, end, b)\nc = Conv(t, W)\nr = ReduceMean <keepdims=1> (c, b)\ny = BN3(r)",
        W=W,
        b=[0],
        one=[1],
        end=[9],
    ),
    kept(
        "ReduceMean of what a Pad cuts, perhaps to nothing",
        "shift",
        "float[2,4,H,4] x",
        C + "p = Pad(c, cut)\nr = ReduceMean <keepdims=1> (p, h)\ny = BN3(r)",
        W=W,
        cut=[0, 0, -1, 0, 0, 0, 0, 0],
        h=[2],
    ),
    kept(
        "Pad by a value that an attribute rounds",
        "padding",
        "double[2,4,4,4] x",
        C + "p = Pad <pads=[0,0,1,1,0,0,1,1]> (c)\ny = Add(p, t)",
        opset=9,
        ir=4,
        W=W,
        t=np.array(1 / 3),
    ),
    kept(
        "Pad by partly computed widths, of the channels",
        "axis",
        X + ", int64[3] w",
        C + "g = Concat <axis=0> (n, w, n, n, m)\np = Pad(c, g)\ny = BNscale3(p)",
        W=W,
        n=[0],
        m=[0, 0],
    ),
    kept("LpPool", "shift", X, C + f"p = LpPool <{POOL}> (c)\ny = BN3(p)", W=W),
    kept(
        "ReduceMean over the channels",
        "axis",
        "float[2,4,4,4] x",
        "n = BN4(x)\nr = ReduceMean <keepdims=0> (n, a)\ny = Conv(r, U)",
        U=(3, 4, 1),
        a=[1],
    ),
    kept("ReduceProd", "blocked", X, C + "r = ReduceProd <keepdims=1> (c, a)\ny = BN3(r)", W=W, a=[2]),
    kept(
        "ReduceMean over computed axes",
        "shape-unknown",
        "float[2,4,4,4] x, int64[1] a",
        C + "r = ReduceMean <keepdims=1> (c, a)\ny = BN3(r)",
        W=W,
        outputs="float[2,3,e,f] y",
    ),
    kept(
        "Resize extrapolates",
        "blocked",
        X,
        C + 'r = Resize <coordinate_transformation_mode="tf_crop_and_resize"> (c, roi, k)\ny = BN3(r)',
        W=W,
        roi=np.array([0, 0, 0, 0, 1, 1, 2, 2], np.float32),
        k=np.array([1, 1, 2, 2], np.float32),
    ),
    kept(
        "Resize of the channels",
        "axis",
        "float[2,2,4,4] x",
        "c = Conv(x, W)\nr = Resize(c, , k)\ny = BN4(r)",
        W=(2, 2, 1, 1),
        k=np.array([1, 2, 1, 1], np.float32),
    ),
    kept("Pad of the channels", "axis", X, C + "p = Pad(c, k, v)\ny = BN4(p)", W=W, k=[0, 1, 0, 0, 0, 0, 0, 0], v=ZERO),
    kept(
        "Pad, value would differ per channel",
        "padding",
        X,
        C + "p = Pad(c, k)\ny = BN3(p)",
        W=W,
        k=[0, 0, 1, 1, 0, 0, 1, 1],
    ),
    kept(
        "Pad by a computed value",
        "shift",
        "float[2,4,4,4] x, float v",
        C + "p = Pad(c, k, v)\ny = BN3(p)",
        W=W,
        k=[0, 0, 1, 1, 0, 0, 1, 1],
    ),
    kept(
        "AveragePool, scaled along a row",
        "axis",
        X,
        C + "p = AveragePool <kernel_shape=[1,1]> (c)\ny = Mul(p, k)",
        W=W,
        k=(4, 1),
    ),
    kept(
        "ReduceSum of unknown length, shifted",
        "shape-unknown",
        "float[2,4,H,4] x",
        C + "r = ReduceSum(c, a)\ny = BN3(r)",
        W=W,
        a=[2],
    ),
    kept(
        "ReduceSum of unknown length, shifted in front",
        "shape-unknown",
        "float[2,4,H,4] x",
        "n = BN4(x)\nr = ReduceSum(n, a)\ny = Conv(r, W)",
        W=W,
        a=[2],
    ),
    kept(
        "ReduceMean over computed axes in front",
        "shape-unknown",
        X + ", int64[1] a",
        "n = BN4(x)\nr = ReduceMean(n, a)\ny = Conv(r, W)",
        outputs="float[b,c,d,e] y",
        W=W,
    ),
    kept(
        "Resize of the listed channel axis",
        "axis",
        X,
        C + "r = Resize <axes=[-3]> (c, , f)\ny = BN6(r)",
        W=W,
        f=np.array([2], np.float32),
    ),
    kept("Pad of the listed channel axis", "axis", X, C + "p = Pad(c, g, , a)\ny = BNscale4(p)", W=W, g=[0, 1], a=[1]),
    kept(
        "Pad of computed axes",
        "axis",
        X + ", int64[2] a",
        C + "p = Pad(c, g, , a)\ny = BNscale3(p)",
        outputs="float[b,d,e,f] y",
        W=W,
        g=[0, 1, 0, 1],
    ),
    kept(
        "Pad by computed widths",
        "axis",
        X + ", int64[8] g",
        C + "p = Pad(c, g)\ny = BNscale3(p)",
        outputs="float[b,d,e,f] y",
        W=W,
    ),
    kept(
        "Pad with a computed value",
        "shift",
        X + ", float v",
        C + "p = Pad(c, g, v)\ny = BN3(p)",
        W=W,
        g=[0, 0, 1, 1, 0, 0, 1, 1],
    ),
    kept(
        "Pad behind a scale of zero",
        "shift",
        X,
        "n = Mul(x, k)\np = Pad(n, g)\ny = Conv(p, W)",
        W=W,
        g=[0, 0, 1, 1, 0, 0, 1, 1],
        k=np.array([0, 1, 2, 4], np.float32).reshape(4, 1, 1),
    ),
    kept(
        "Pad by a scaled value",
        "axis",
        "float x, float[2,4] z",
        "n = Mul(x, k)\np = Pad(z, g, n)\ny = Gemm(p, B)",
        k=np.float32(2),
        g=[0, 1, 0, 1],
        B=(6, 3),
    ),
    kept(
        "Resize by scaled sizes",
        "axis",
        "float[4] x, float[2,4,4,4] z",
        "n = Mul(x, k)\nr = Resize(z, , n)\ny = Relu(r)",
        outputs="float[a,b,c,d] y",
        k=np.float32(2),
    ),
]

LINEAR = [
    *[
        f"MaxPool <{POOL}>",
        'MaxPool <kernel_shape=[3,3], auto_pad="SAME_UPPER">',
        "MaxPool <kernel_shape=[2,2], dilations=[2,2]>",
    ],
    *[
        "GlobalMaxPool",
        f"AveragePool <{POOL}>",
        "GlobalAveragePool",
        "ReduceMean <keepdims=1>",
        "ReduceMax <keepdims=1>",
        "ReduceMin <keepdims=1>",
    ],
    "AveragePool <kernel_shape=[2,2], count_include_pad=1>",
    f"AveragePool <{POOL}, ceil_mode=1>",
]

FOLDS = [
    case(
        "AveragePool SAME that pads nothing",
        X,
        C
        + 'p = AveragePool <kernel_shape=[2,2], strides=[2,2], auto_pad="SAME_UPPER", count_include_pad=1> (c)\ny = BN3(p)',
        W=W,
    ),
    case(
        "Pad by partly computed widths",
        X,
        C + "s = Shape(c)\nh = Gather(s, two)\ng = Concat <axis=0> (n, h, o, n, o, h)\np = Pad(c, g)\ny = BNscale3(p)",
        W=W,
        two=[2],
        n=[0, 0],
        o=[1],
    ),
    case(
        "ReduceMean far behind a Slice",
        "float[N,4,H,4] x",
        C
        + "s = Slice(c, b, e, h)\n"
        + "".join(f"s{i} = Identity({'s' if not i else f's{i - 1}'})\n" for i in range(9))
        + "r = ReduceMean <keepdims=1> (s8, w)\ny = BN3(r)",
        outputs="float[a,b,c,d] y",
        sizes={"N": 2, "H": 3},
        W=W,
        b=[0],
        e=[2],
        h=[2],
        w=[2, 3],
    ),
    case(
        "Pad by partly computed widths, of another type first",
        X,
        C
        + "s = Shape(c)\nh = Gather(s, two)\nf = Concat <axis=0> (n, h, o, n, o, h)\ni = Cast <to=6> (f)\ng = Cast <to=7> (i)\n"
        "p = Pad(c, g)\ny = BNscale3(p)",
        W=W,
        two=[2],
        n=[0, 0],
        o=[1],
    ),
    case(
        "Resize by partly computed scales",
        X,
        C + "t = Shape(c)\nh = Gather(t, two)\nf = Cast <to=1> (h)\ng = Div(f, three)\nk = Concat <axis=0> (n, g, g)\n"
        'u = Resize <mode="nearest"> (c, k)\ny = BN3(u)',
        affines=1,
        opset=10,
        ir=5,
        W=W,
        two=[2],
        three=np.float32([2]),
        n=np.float32([1, 1]),
    ),
    *[
        case(
            f"after, {op}",
            X,
            C + f"p = {op}(c" + (", a)" if "Reduce" in op else ")") + "\ny = BNpos3(p)",
            W=W,
            **({"a": [2, 3]} if "Reduce" in op else {}),
        )
        for op in LINEAR
    ],
    *[
        case(
            f"before, {op}",
            X,
            f"n = BNpos4(x)\np = {op}(n" + (", a)" if "Reduce" in op else ")") + "\ny = Conv(p, W)",
            W=W,
            **({"a": [2, 3]} if "Reduce" in op else {}),
        )
        for op in LINEAR
    ],
    case(
        "AveragePool counts padding, no shift",
        X,
        C + "p = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (c)\ny = BNscale3(p)",
        W=W,
    ),
    case("ReduceMean without the axes kept", X, C + "r = ReduceMean <keepdims=0> (c, a)\ny = BN3(r)", W=W, a=[-1, -2]),
    case(
        "ReduceMean in front of Gemm",
        X,
        "n = BN4(x)\nr = ReduceMean <keepdims=0> (n, a)\ny = Gemm(r, B)",
        B=(4, 3),
        a=[2, 3],
    ),
    case("ReduceSum", X, C + "r = ReduceSum <keepdims=0> (c, a)\ny = BN3(r)", W=W, a=[2, 3]),
    case("ReduceSum in front", X, "n = BN4(x)\nr = ReduceSum <keepdims=0> (n, a)\ny = Gemm(r, B)", B=(4, 3), a=[2, 3]),
    case("ReduceSum, no axes, noop", X, C + "r = ReduceSum <noop_with_empty_axes=1> (c)\ny = BN3(r)", W=W),
    case("ReduceMean over the batch", X, C + "r = ReduceMean <keepdims=1> (c, a)\ny = BN3(r)", W=W, a=[0]),
    *[
        case(
            f"Resize {mode}",
            X,
            C + f'r = Resize <mode="{mode}"> (c, , k)\ny = BN3(r)',
            W=W,
            k=np.array([1, 1, 2, 2], np.float32),
        )
        for mode in ("nearest", "linear")
    ],
    case("Resize by sizes", X, C + "r = Resize(c, , , k)\ny = BN3(r)", W=W, k=[2, 3, 8, 8]),
    case(
        "Resize of some axes",
        X,
        C + "r = Resize <axes=[3,2]> (c, , k)\ny = BN3(r)",
        W=W,
        k=np.array([2, 2], np.float32),
    ),
    case(
        "Resize in front",
        X,
        "n = BN4(x)\nr = Resize(n, , k)\ny = Conv(r, W)",
        W=W,
        k=np.array([1, 1, 2, 2], np.float32),
    ),
    *[
        case(f"Pad {mode}", X, C + f'p = Pad <mode="{mode}"> (c, k)\ny = BN3(p)', W=W, k=[0, 0, 1, 1, 0, 0, 1, 1])
        for mode in ("reflect", "edge", "wrap")
    ],
    case("Pad by zero, no shift", X, C + "p = Pad(c, k)\ny = BNscale3(p)", W=W, k=[0, 0, 1, 1, 0, 0, 1, 1]),
    case(
        "Pad, the value follows",
        X,
        C + "p = Pad(c, k, v)\nm = Mul(p, s)\ny = Add(m, t)",
        W=W,
        k=[0, 0, 1, 1, 0, 0, 1, 1],
        v=ONE,
        s=np.float32(2),
        t=np.float32(3),
    ),
    case(
        "Pad without a value, it follows",
        X,
        C + "p = Pad(c, k)\ny = Add(p, t)",
        W=W,
        k=[0, 0, 1, 1, 0, 0, 1, 1],
        t=np.float32(3),
    ),
    case(
        "Pad, the value follows twice",
        X,
        C + "p = Pad(c, k, v)\na = Add(p, t)\nf = Flatten(a)\nr = Reshape(f, g)\ny = BNscale3(r)",
        W=W,
        k=[0, 0, 1, 1, 0, 0, 1, 1],
        v=ONE,
        t=np.float32(-1),
        g=[2, 3, 6, 6],
    ),
    case(
        "Pad, the value follows and is then in the way of a norm",
        X,
        C + "p = Pad(c, k)\na = Add(p, t)\nr = Transpose <perm=[0,1,3,2]> (a)\ny = BNscale3(r)",
        norms=1,
        W=W,
        k=[0, 0, 1, 1, 0, 0, 1, 1],
        t=np.float32(3),
    ),
    case(
        "Pad in front, the value follows twice",
        X,
        "a = Mul(x, s)\nt = Transpose <perm=[0,1,3,2]> (a)\nb = Add(t, u)\np = Pad(b, k)\ny = Conv(p, W)",
        W=W,
        k=[0, 0, 1, 1, 0, 0, 1, 1],
        s=np.float32(2),
        u=np.float32(3),
    ),
    case(
        "Pad in front, the value follows",
        X,
        "a = Add(x, t)\np = Pad(a, k)\ny = Conv(p, W)",
        W=W,
        k=[0, 0, 1, 1, 0, 0, 1, 1],
        t=np.float32(3),
    ),
    case(
        "Pad by constant, in front, axes",
        X,
        "n = BNscale4(x)\np = Pad(n, k, v, a)\ny = Conv(p, W)",
        W=W,
        k=[1, 2, 1, 0],
        v=ZERO,
        a=[-1, 2],
    ),
    case("ReduceMean of no axes", X, C + "r = ReduceMean <noop_with_empty_axes=1> (c)\ny = BN3(r)", W=W),
    case(
        "Resize of listed spatial axes",
        X,
        C + "r = Resize <axes=[2,3]> (c, , f)\ny = BN3(r)",
        W=W,
        f=np.array([2, 2], np.float32),
    ),
    case(
        "Resize of listed axes that leaves the channels",
        X,
        C + "r = Resize <axes=[-3,3]> (c, , f)\ny = BN3(r)",
        W=W,
        f=np.array([1, 2], np.float32),
    ),
    case("Pad of a listed spatial axis", X, C + "p = Pad(c, g, , a)\ny = BNscale3(p)", W=W, g=[1, 1], a=[-1]),
    case(
        "Pad of listed axes that leaves the channels",
        X,
        C + "p = Pad(c, g, , a)\ny = BNscale3(p)",
        W=W,
        g=[0, 1, 0, 1],
        a=[1, 2],
    ),
]


@pytest.mark.parametrize("case", KEPT)
def test_must_not_change(case: Case) -> None:
    case.keeps()


@pytest.mark.parametrize("case", FOLDS)
def test_folds_exactly(case: Case) -> None:
    case.folds()


@pytest.mark.parametrize("shift", [[5, 3, 1], [6, 4, 2]])
def test_a_padded_value_that_channels_of_different_scale_share(shift: list[float]) -> None:
    """Twice 1, 2 and 3, and 5, 3 and 1: every channel pads with 7, as a number of its own and not by any one's scale."""
    values = {"k": np.float32([1, 2, 3]).reshape(3, 1, 1), "j": np.float32(shift).reshape(3, 1, 1), "u": np.float32(2)}
    nodes = C + "p = Pad(c, g, u)\nm = Mul(p, k)\na = Add(m, j)\ny = Abs(a)"
    folds(build(X, nodes, W=W, g=[0, 0, 1, 1, 0, 0, 1, 1], **values))


def test_a_reduction_over_what_may_be_the_channels() -> None:
    """Nothing but the norm says that there are four; no valid model, as onnx finds out."""
    nodes = "r = Reshape(x, s)\nm = ReduceMean(r, a)\ny = BN4(m)"
    refuses(build("float[2,4,4,4] x, int64[4] s", nodes, "float[a,b,c,d] y", a=[1]), "axis")


def test_indices_of_a_pool_carry_nothing() -> None:
    """A norm of integers is no valid model; nothing is done to it."""
    nodes = C + f"p, i = MaxPool <{POOL}> (c)\ny = BN3(i)\nz = Relu(p)"
    refuses(build(X, nodes, "float[a,b,c,d] y, float[e,f,g,h] z", W=W), "blocked")


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12, 13, 18, 19, 22])
@pytest.mark.parametrize(
    "op", ["MaxPool <kernel_shape=[2,2]>", "AveragePool <kernel_shape=[2,2]>", "GlobalAveragePool"]
)
def test_pools_in_every_opset(opset: int, op: str) -> None:
    folds(build(X, C + f"p = {op}(c)\ny = BNpos3(p)", opset=opset, ir=7, W=W))


@pytest.mark.parametrize("opset", [7, 11, 13, 17])
@pytest.mark.parametrize("op", ["ReduceMean", "ReduceMax"])
def test_reductions_with_axes_as_an_attribute(opset: int, op: str) -> None:
    folds(build(X, C + f"p = {op} <axes=[2,3], keepdims=0> (c)\ny = BNpos3(p)", opset=opset, ir=7, W=W))


def test_older_forms_of_upsample_and_pad() -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    folds(build(X, C + 'u = Upsample <mode="nearest", scales=[1.0,1.0,2.0,2.0]> (c)\ny = BN3(u)', opset=7, ir=4, W=W))
    folds(build(X, C + 'u = Upsample <mode="nearest"> (c, k)\ny = BN3(u)', opset=9, ir=4, W=W, k=scales))
    folds(build(X, C + 'u = Resize <mode="nearest"> (c, k)\ny = BN3(u)', opset=10, ir=4, W=W, k=scales))
    folds(
        build(
            X, C + "p = Pad <pads=[0,0,1,1,0,0,1,1], value=2.0> (c)\ny = Add(p, t)", opset=9, ir=4, W=W, t=np.float32(3)
        )
    )
    folds(build(X, C + 'p = Pad <pads=[0,0,1,1,0,0,1,1], mode="edge"> (c)\ny = BN3(p)', opset=9, ir=4, W=W))
