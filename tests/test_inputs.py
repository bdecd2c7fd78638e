"""Inputs: made ones and the user's."""

from __future__ import annotations

import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, parser

from bnfold.errors import OptionError
from bnfold.inputs import DISTRIBUTIONS, InputSpec, bind_dims, input_specs, make_inputs
from bnfold.userdata import load_inputs


def text(inputs: str, nodes: str = "y = Identity(x)", **constants: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => (float[] y) {{ {nodes} }}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


IMAGE = InputSpec("x", shape=("N", 3, "H", "W"))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_same_seed_makes_the_same_values(distribution):
    first, second = (make_inputs([IMAGE], seed=5, distribution=distribution)["x"] for _ in range(2))
    assert first.shape == (1, 3, 32, 32)
    assert first.dtype == np.float32
    assert np.array_equal(first, second)
    other = make_inputs([IMAGE], seed=6, distribution=distribution)["x"]
    assert np.array_equal(first, other) == (distribution in ("zeros", "constant"))


def test_an_input_does_not_depend_on_the_others():
    alone = make_inputs([IMAGE])["x"]
    assert np.array_equal(alone, make_inputs([InputSpec("a", shape=(7,)), IMAGE])["x"])
    assert not np.array_equal(alone, make_inputs([InputSpec("z", shape=IMAGE.shape)])["z"])


def test_what_the_distributions_look_like():
    values = {kind: make_inputs([IMAGE], distribution=kind, size=64)["x"] for kind in DISTRIBUTIONS}
    assert 0.95 < values["normal"].std() < 1.05
    assert 95 < values["large"].std() < 105
    assert 0.00095 < values["small"].std() < 0.00105
    assert 0 <= values["uniform"].min() < values["uniform"].max() < 1
    assert not values["zeros"].any()
    assert (values["constant"] == 1).all()
    assert (values["negative"] <= 0).all()
    inside = values["borders"][:, :, 1:-1, 1:-1]
    assert not inside.any()
    assert np.count_nonzero(values["borders"]) == 3 * (64 * 64 - 62 * 62)
    assert make_inputs([InputSpec("x", shape=(2, 3, 0, 4))], distribution="borders")["x"].shape == (2, 3, 0, 4)
    flat = make_inputs([InputSpec("x", shape=(2, 9))], distribution="borders")["x"]
    assert np.count_nonzero(flat, axis=0).tolist() == [2, *[0] * 7, 2]


@pytest.mark.parametrize(
    ("data_type", "low", "high"),
    [(TensorProto.INT64, 0, 8), (TensorProto.UINT8, 0, 256), (TensorProto.INT8, -128, 128), (TensorProto.INT32, 0, 8)],
)
def test_integers_stay_in_range(data_type, low, high):
    spec = InputSpec("i", data_type=data_type, shape=(500,))
    values = make_inputs([spec])["i"]
    assert values.min() >= low
    assert values.max() < high
    assert not make_inputs([spec], distribution="zeros")["i"].any()
    assert (
        make_inputs([InputSpec("attention_mask", data_type=data_type, shape=(50,))])["attention_mask"].max() < low + 2
    )


@pytest.mark.parametrize(
    ("data_type", "dtype"),
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.BOOL, "bool"),
        (TensorProto.STRING, "object"),
        (TensorProto.COMPLEX64, "complex64"),
        (TensorProto.INT4, "int4"),
        (TensorProto.FLOAT8E4M3FN, "float8_e4m3fn"),
    ],
)
def test_every_element_type(data_type, dtype):
    for distribution in ("normal", "zeros"):
        values = make_inputs([InputSpec("x", data_type=data_type, shape=(4, 4))], distribution=distribution)["x"]
        assert (values.dtype.name, values.shape) == (dtype, (4, 4))


def test_dimensions_are_bound_by_name():
    specs = [IMAGE, InputSpec("m", shape=("N", "W")), InputSpec("u", shape=(None, None))]
    bound = bind_dims(specs, {"W": 5}, batch=3, size=16)
    assert bound == {"N": 3, "H": 16, "W": 5, "u:0": 3, "u:1": 16}
    made = make_inputs(specs, dims={"W": 5, "u:1": 7}, batch=3, size=16)
    assert [made[name].shape for name in "xmu"] == [(3, 3, 16, 5), (3, 5), (3, 7)]


@pytest.mark.parametrize("dims", [{"M": 3}, {"N": 0}])
def test_dimensions_that_make_no_sense(dims):
    with pytest.raises(OptionError, match="dimension"):
        bind_dims([IMAGE], dims)


@pytest.mark.parametrize(
    "spec",
    [InputSpec("s", kind="sequence", data_type=0), InputSpec("o", kind="optional"), InputSpec("r", shape=None)],
)
def test_what_cannot_be_made_says_what_to_do(spec):
    with pytest.raises(OptionError, match="--input"):
        make_inputs([spec])


def test_an_unknown_distribution():
    with pytest.raises(OptionError, match="normal"):
        make_inputs([IMAGE], distribution="cauchy")


# -- what the graph tells ------------------------------------------------------------------------------------------


def test_initializers_are_no_inputs():
    model = text("float[2] x, float[2] w", "y = Add(x, w)", w=np.zeros(2, np.float32))
    assert [spec.name for spec in input_specs(model)] == ["x"]


TABLE = {"table": np.zeros((11, 4), np.float32)}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("y = Gather(table, i)", (0, 11)),
        ("y = Gather<axis=1>(table, i)", (0, 4)),
        ("k = Cast<to=7>(i)\n j = Reshape(k, s)\n y = Gather(table, j)", (0, 11)),
        ("a = Gather(table, i)\n b = Gather<axis=1>(table, i)\n y = Concat<axis=0>(a, b)", (0, 4)),
        ("y = ScatterElements(table, i, table)", (0, 1)),
        ("y = Reshape(table, i)", (1, 2)),
        ("c = Cast<to=1>(i)\n y = Relu(c)", (None, None)),
    ],
)
def test_integers_follow_their_readers(nodes, expected):
    model = text("int64[3] i", nodes, **TABLE, s=np.array([3], np.int64))
    (spec,) = input_specs(model)
    assert (spec.low, spec.high) == expected


@pytest.mark.parametrize(
    ("nodes", "weight", "shape"),
    [
        ("y = Conv(x, w)", (5, 3, 3, 3), ("N", 3, "H", "W")),
        ("y = Conv<group=2>(x, w)", (4, 3, 3, 3), ("N", 6, "H", "W")),
        ("y = ConvTranspose(x, w)", (7, 2, 3, 3), ("N", 7, "H", "W")),
    ],
)
def test_channels_follow_the_weights(nodes, weight, shape):
    model = text("float[N,C,H,W] x", nodes, w=np.zeros(weight, np.float32))
    assert input_specs(model)[0].shape == shape


@pytest.mark.parametrize(
    ("nodes", "weight", "shape"),
    [
        ("y = MatMul(x, w)", (6, 2), ("N", 6)),
        ("y = Gemm(x, w)", (6, 2), ("N", 6)),
        ("y = Gemm<transB=1>(x, w)", (2, 6), ("N", 6)),
        ("y = Gemm<transA=1>(x, w)", (6, 2), ("N", "C")),
    ],
)
def test_features_follow_the_weights(nodes, weight, shape):
    assert input_specs(text("float[N,C] x", nodes, w=np.zeros(weight, np.float32)))[0].shape == shape


def test_kinds_of_inputs():
    model = onnx.ModelProto()
    model.graph.input.append(onnx.helper.make_tensor_sequence_value_info("s", 1, [2]))
    model.graph.input.append(onnx.helper.make_tensor_value_info("r", 1, None))
    model.graph.input.append(onnx.helper.make_tensor_value_info("n", 1, [-1, 0, None]))
    assert [(spec.kind, spec.shape) for spec in input_specs(model)] == [
        ("sequence", None),
        ("tensor", None),
        ("tensor", (None, 0, None)),
    ]


# -- the user's data -----------------------------------------------------------------------------------------------

SPECS = (InputSpec("x", shape=("N", 2)), InputSpec("i", data_type=TensorProto.INT64, shape=("N",)))
X, INDEX = np.array([[1.5, 2.5]], np.float32), np.array([3], np.int64)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("i.npy", INDEX)
    np.savez("both.npz", x=X, i=INDEX)
    for folder in ("plain", "sets/test_data_set_0", "sets/test_data_set_1"):
        (tmp_path / folder).mkdir(parents=True)
        for name, value in (("input_0", X), ("input_1", INDEX), ("output_0", X * 2)):
            (tmp_path / folder / f"{name}.pb").write_bytes(numpy_helper.from_array(value).SerializeToString())
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["x=x.npy", "i=i.npy"], ["user data"]),
        (["x=x.npy", "i=plain/input_1.pb"], ["user data"]),
        (["both.npz"], ["both.npz"]),
        (["plain"], ["plain"]),
        (["sets"], ["sets/test_data_set_0", "sets/test_data_set_1"]),
        (["both.npz", "x=x.npy", "plain", "i=i.npy"], ["user data", "both.npz", "plain"]),
    ],
)
def test_user_data(here, arguments, names):
    sets = load_inputs(arguments, SPECS, ["y"])
    assert [s.name for s in sets] == names
    for given in sets:
        assert np.array_equal(given.feeds["x"], X)
        assert np.array_equal(given.feeds["i"], INDEX)
    if "plain" in names:
        assert np.array_equal(sets[-1].expected["y"], X * 2)


def test_floats_and_whole_numbers_are_converted(here):
    np.savez("wide.npz", x=X.astype(np.float64), i=INDEX.astype(np.int8))
    (given,) = load_inputs(["wide.npz"], SPECS)
    assert given.feeds["x"].dtype == np.float32
    assert given.feeds["i"].dtype == np.int64


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("nothing", "expected name=file.npy"),
        ("z=x.npy", "no input 'z'"),
        ("x=x.npy", "no data for input 'i'"),
        ("x=missing.npy", "cannot be read"),
        ("x=i.npy", "shape 1 does not fit input 'x'"),
        ("x=both.npz", "several arrays"),
        ("x=text.npy", "cannot be read"),
        ("x=objects.npy", "cannot be read"),
        ("x=broken.pb", "cannot be read"),
        ("i=halves.npy", "does not fit input 'i'"),
        ("one.npz", "no array for input 'i'"),
        ("text.npz", "cannot be read"),
        ("single.npz", "holds one array"),
        ("cut.npz", "cannot be read"),
        ("flipped.npz", "cannot be read"),
        ("objects.npz", "cannot be read"),
        ("bytes.npz", "does not fit input 'x'"),
        ("empty", "neither input_0.pb"),
        ("partial", "no input_N.pb for input 'i'"),
    ],
)
def test_user_data_that_does_not_fit(here, argument, message):
    (here / "text.npy").write_text("no array")
    (here / "text.npz").write_text("no array")
    (here / "broken.pb").write_bytes(b"\xff\xff\xff")
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("halves.npy", np.array([0.5]))
    np.savez("one.npz", x=X)
    (here / "single.npz").write_bytes((here / "x.npy").read_bytes())
    whole = (here / "both.npz").read_bytes()
    (here / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (here / "flipped.npz").write_bytes(whole.replace(X.tobytes(), bytes(X.nbytes)))
    np.savez("objects.npz", x=np.array([[{}, {}]], dtype=object), i=INDEX, allow_pickle=True)
    with zipfile.ZipFile("bytes.npz", "w") as archive:
        archive.writestr("x", b"no array")
        archive.writestr("i", b"no array")
    (here / "empty").mkdir()
    (here / "partial").mkdir()
    (here / "partial" / "input_0.pb").write_bytes(numpy_helper.from_array(X).SerializeToString())
    with pytest.raises(OptionError, match=message):
        load_inputs([argument], SPECS)


def test_sequences_and_optionals_come_from_folders(tmp_path):
    sequence = numpy_helper.from_list([X, X * 2])
    (tmp_path / "input_0.pb").write_bytes(sequence.SerializeToString())
    optional = onnx.helper.make_optional("o", onnx.OptionalProto.TENSOR, numpy_helper.from_array(X))
    (tmp_path / "input_1.pb").write_bytes(optional.SerializeToString())
    specs = [InputSpec("s", kind="sequence", data_type=0), InputSpec("o", kind="optional", data_type=0)]
    (given,) = load_inputs([str(tmp_path)], specs)
    assert [array.tolist() for array in given.feeds["s"]] == [X.tolist(), (X * 2).tolist()]
    assert np.array_equal(given.feeds["o"], X)
