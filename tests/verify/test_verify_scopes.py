"""Bodies of If and Loop, functions, quantized and sparse weights, other shapes of graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from verify_models import Pair, model

from bnfold.report import Folded
from bnfold.verify import VerifyOptions, isolated, verify

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((4, 4)).astype(np.float32)
K = RANDOM.uniform(0.5, 2, 4).astype(np.float32)


def branches(captured: str, scale: str, made: str = "a") -> str:
    return f"""
        {captured} = MatMul(x, w)
        y = If(k) <then_branch = t () => (float[3,4] {made}) {{ {made} = Mul({captured}, {scale}) }},
                   else_branch = e () => (float[3,4] z) {{ h = Relu({captured})
                                                           z = Add(h, u) }}>"""


BRANCHES = {"w": W, "s": K, "s2": K * 2, "u": W[:3]}


@pytest.mark.parametrize("wrong", ["s2", "u"])
def test_both_branches_are_checked(wrong):
    inputs = "float[3,4] x, bool k"
    original = model(inputs, "float[] y", branches("m", "s"), BRANCHES)
    assert verify(original, model(inputs, "float[] y", branches("n", "s"), BRANCHES)).verdict == "equal"
    report = verify(original, model(inputs, "float[] y", branches("n", wrong), BRANCHES))
    assert report.verdict == "different"
    assert [site.scope for site in report.sites if site.verdict == "different"] == ["If:y.then_branch"]


def test_a_branch_that_was_not_taken_proves_nothing():
    """A body's output has another name, so the whole If is a site, and only one of its branches runs."""
    inputs = "float[3,4] x, bool k"
    original = model(inputs, "float[] y", branches("m", "s"), BRANCHES)
    report = verify(original, model(inputs, "float[] y", branches("n", "s", "b"), BRANCHES))
    assert report.verdict == "inconclusive"
    assert "only one of its branches was taken" in report.reason
    changed = BRANCHES | {"u": W[:3] * 2, "s": K * 2}
    report = verify(original, model(inputs, "float[] y", branches("n", "s", "b"), changed))
    assert (report.verdict, report.sites[0].tensor) == ("different", "y")


def loop(body: str, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    text = f"""
        y = Loop(n, c, x) <body = b (int64 i, bool p, float[3,4] s) => (bool q, float[3,4] r) {{
            q = Identity(p)
            {body}
        }}>"""
    fixed = {"n": np.array(3, np.int64), "c": np.array(True)}
    return model("float[3,4] x", "float[] y", text, values | fixed)


def test_a_fold_in_a_loop():
    original = loop("m = MatMul(s, w)\n r = Mul(m, k)", {"w": W, "k": K})
    assert verify(original, loop("r = MatMul(s, w)", {"w": W * K})).verdict == "equal"
    report = verify(original, loop("r = MatMul(s, w)", {"w": W * K * np.float32(1.01)}))
    assert report.verdict == "different"
    assert [(site.tensor, site.verdict) for site in report.sites] == [("r", "different")]


def test_a_fold_in_a_function_is_blamed_by_its_name_there():
    def function(text: str, values: dict[str, np.ndarray]) -> onnx.ModelProto:
        constants = "\n".join(
            f"{name} = Constant <value = float[{','.join(map(str, v.shape))}] {{{', '.join(map(str, v.ravel()))}}}> ()"
            for name, v in values.items()
        )
        made = onnx.parser.parse_model(
            f"""<ir_version: 10, opset_import: ["": 17, "f": 1]>
            g (float[3,4] x) => (float[3,4] y) {{ a = f.layer(x)  y = f.layer(a) }}
            <domain: "f", opset_import: ["": 17]> layer (v) => (r) {{ {constants} {text} }}"""
        )
        for node in made.functions[0].node:
            node.name = node.op_type.lower()
        return made

    original = function("m = MatMul(v, w)\n r = Mul(m, k)", {"w": W, "k": K})
    fold = Folded("mul", "Mul", ("matmul",), "after MatMul", ("r",), "function:layer")
    assert verify(original, function("r = MatMul(v, w)", {"w": W * K}), folds=[fold]).verdict == "equal"
    report = verify(original, function("r = MatMul(v, w)", {"w": W * K * np.float32(1.01)}), folds=[fold])
    assert (report.verdict, report.blamed) == ("different", ("mul",))


def test_weights_behind_dequantize_linear():
    """A fold into the scales of quantized weights, and one that rounds its int32 bias once more."""
    q = RANDOM.integers(-127, 128, (4, 4)).astype(np.int8)
    scale, k = np.float32(0.01), np.array([1.5, 0.5, 2, -1], np.float32)
    bias = RANDOM.integers(-20000, 20000, 4).astype(np.int32)
    before = "d = DequantizeLinear(q, s)\n b = DequantizeLinear(i, t)\n m = Gemm(x, d, b)\n y = Mul(m, k)"
    after = "d = DequantizeLinear<axis=1>(q, s)\n b = DequantizeLinear<axis=0>(i, t)\n y = Gemm(x, d, b)"
    original = model(
        "float[N,4] x", "float[] y", before, {"q": q, "s": scale, "i": bias, "t": np.float32(1e-4), "k": k}
    )
    right = {"q": q * np.sign(k).astype(np.int8), "s": scale * np.abs(k), "t": np.full(4, 1e-4, np.float32)}
    right["i"] = np.rint(bias * k.astype(np.float64)).astype(np.int32)
    assert verify(original, model("float[N,4] x", "float[] y", after, right)).verdict == "equal"
    wrong = dict(right, s=right["s"] * np.array([1, 1.01, 1, 1], np.float32))
    assert verify(original, model("float[N,4] x", "float[] y", after, wrong)).verdict == "different"
    wrong = dict(right, i=right["i"] + np.array([0, 0, 200, 0], np.int32))
    assert verify(original, model("float[N,4] x", "float[] y", after, wrong)).verdict == "different"


def test_a_network_that_rounds_may_flip_single_elements():
    nodes = "m = MatMul(x, w)\n{}\n q = QuantizeLinear(n, t, z)\n y = DequantizeLinear(q, t, z)"
    step = {"t": np.float32(0.05), "z": np.array(3, np.uint8)}
    original = model("float[400,4] x", "float[] y", nodes.format("n = Mul(m, k)"), {"w": W, "k": K} | step)
    after = nodes.format("").replace("m = MatMul", "n = MatMul")
    assert verify(original, model("float[400,4] x", "float[] y", after, {"w": W * K} | step)).verdict == "equal"
    wrong = {"w": W * K * np.array([1, 1, 1.01, 1], np.float32)} | step
    assert verify(original, model("float[400,4] x", "float[] y", after, wrong)).verdict == "different"


def test_frontiers_are_aligned():
    """The second model starts from the quantized tensor where the first starts from the same tensor dequantized."""
    step = {"t": np.float32(0.05), "z": np.array(3, np.uint8), "w": W}
    first = "q = QuantizeLinear(x, t, z)\n d = DequantizeLinear(q, t, z)\n a = Relu(d)\n y = MatMul(d, w)"
    second = first.replace("y = MatMul(d, w)", "e = DequantizeLinear(q, t, z)\n y = MatMul(e, w)")
    models = [model("float[9,4] x", "float[] y, float[] a", text, step) for text in (first, second)]
    report = verify(*models)
    assert report.verdict == "equal", report.reason
    assert [site.tensor for site in report.sites] == ["y"]


def test_tensors_that_steer_keep_their_values():
    text = """
        s = Shape(x)
        {0}
        h = Gather(s, zero)
        p = Concat<axis=0>(h, minus)
        r = Reshape(n, p)
        g = CastLike(half, x)
        {1}"""
    values = {"zero": np.array([0], np.int64), "minus": np.array([-1], np.int64), "half": np.array(0.5, np.float32)}
    before = text.format("m = Mul(x, k)\n n = Relu(m)", "t = Mul(r, g)\n y = Add(t, t)")
    after = text.format(
        "n = Relu(u)\n u = Mul(x, k)".replace("n = Relu(u)\n u = Mul(x, k)", "u = Mul(x, k)\n n = Relu(u)"),
        "y = Mul(r, g2)",
    )
    original = model("float[N,2,3] x", "float[] y", before, values | {"k": K[:3]})
    folded = model("float[N,2,3] x", "float[] y", after, values | {"k": K[:3], "g2": np.array(1, np.float32)})
    report = verify(original, folded)
    assert report.verdict == "equal", report.reason


def test_sparse_weights_are_constants():
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [3], [0, 5, 11])

    def sparse(nodes: str, stored: dict[str, np.ndarray]) -> onnx.ModelProto:
        made = model("float[N,4] x", "float[N,3] y", nodes, stored)
        made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
        made.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 3]))
        return made

    original = sparse("m = MatMul(x, w)\n y = Mul(m, k)", {"k": K[:3]})
    dense = np.zeros(12, np.float32)
    dense[[0, 5, 11]] = [1, 2, 3]
    folded = model("float[N,4] x", "float[] y", "y = MatMul(x, w)", {"w": dense.reshape(4, 3) * K[:3]})
    folded.graph.output[0].CopyFrom(original.graph.output[0])
    assert verify(original, folded).verdict == "equal"


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_products_of_every_rank(rank):
    shape = ",".join(["N", "3", "5"][: rank - 1]) + ",4"
    original = model(f"float[{shape}] x", "float[] y", "m = MatMul(x, w)\n y = Mul(m, k)", {"w": W, "k": K})
    assert (
        verify(original, model(f"float[{shape}] x", "float[] y", "y = MatMul(x, w)", {"w": W * K})).verdict == "equal"
    )
    wrong = W * K * np.array([1, 1, 1, 1.01], np.float32)
    report = verify(original, model(f"float[{shape}] x", "float[] y", "y = MatMul(x, w)", {"w": wrong}))
    assert (report.verdict, report.sites[0].channel) == ("different", 3)


def test_shapes_that_inference_does_not_know_are_asked_for():
    """The first operator is in a domain that onnx knows nothing about."""
    pair = Pair(head="relu")
    models = [pair.original(), pair.folded()]
    for made in models:
        made.opset_import.add(domain="com.microsoft", version=1)
        first = helper.make_node("FastGelu", ["x"], ["f"], domain="com.microsoft")
        made.graph.node.insert(0, first)
        made.graph.node[1].input[0] = "f"
    report = verify(*models)
    assert report.verdict == "equal", report.reason
    assert report.sites[0].how == "local, in place"


def test_old_batch_norms_and_inputs_that_are_constants():
    made = []
    pair = Pair(head="relu")
    for each in (pair.original(), pair.folded()):
        each.ir_version = 3
        for tensor in each.graph.initializer:
            each.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        each.opset_import[0].version = 9
        made.append(each)
    assert verify(*made).verdict == "equal"


def test_a_model_without_inputs():
    text = "r = Mul(a, b)\n y = Relu(r)"
    models = [model("", "float[] y", text, {"a": W, "b": np.full((), v, np.float32)}) for v in (1, 1, 2)]
    assert verify(models[0], models[1]).verdict == "equal"
    assert verify(models[0], models[2]).verdict == "different"


def test_large_activations_are_compared_in_groups(monkeypatch):
    from bnfold.verify import inplace, whole

    monkeypatch.setattr(inplace, "_EXPOSED_BYTES", 1)
    monkeypatch.setattr(whole, "_KEEP_OPEN", 0)
    monkeypatch.setattr(whole, "_OUTPUT_BYTES", 1)
    monkeypatch.setattr(whole, "_SLOW", 0.0)
    text = "a = MatMul(x, w)\n b = Mul(a, k)\n c = MatMul(b, w)\n y = Mul(c, k)"
    original = model("float[N,4] x", "float[] y", text, {"w": W, "k": K})
    folded = model("float[N,4] x", "float[] y", "b = MatMul(x, w)\n y = MatMul(b, w)", {"w": W * K})
    report = verify(original, folded)
    assert report.verdict == "equal", report.reason
    assert [site.how for site in report.sites] == ["local, in place"] * 2


def test_slow_models_get_fewer_inputs(monkeypatch):
    from bnfold.verify import judge

    monkeypatch.setattr(judge, "_SLOW_RUN", 0.0)
    pair = Pair()
    report = verify(pair.original(), pair.folded())
    assert len(report.inputs) == 4
    assert any("4 of 8 input sets" in note for note in report.notes)


def test_the_worker_of_isolation_writes_what_it_found(tmp_path, monkeypatch):
    pair = Pair()
    task = {}

    def run(command, **_):
        task["done"] = True
        isolated._main(*command[-2:])
        return type("Done", (), {"returncode": 0, "stderr": b""})

    monkeypatch.setattr(isolated.subprocess, "run", run)
    assert verify(pair.original(), pair.folded(), VerifyOptions(isolated=True)).verdict == "equal"
    assert task
