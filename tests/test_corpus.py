"""Real exports: what folds, what stays and why, and that the network is the same."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import Array, count, session
from onnx import ModelProto, checker, numpy_helper

import bnfold

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
LIGHT = DATA / "light"
CORPUS = Path(os.environ.get("BNFOLD_CORPUS") or Path(__file__).parents[2] / "shared" / "corpus")
HAVE_CORPUS = (CORPUS / "manifest.json").is_file()


# -- what must not change ----------------------------------------------------------------------------------------------

KEPT = {  # models of the onnx package, and why each of their operators stays
    "light/light_bvlc_alexnet": "",
    "light/light_inception_v1": "",
    "light/light_squeezenet": "",
    "light/light_vgg19": "",
    "light/light_zfnet512": "",
    "pytorch-converted/test_BatchNorm1d_3d_input_eval/model": "no-producer",
    "pytorch-converted/test_BatchNorm2d_eval/model": "no-producer",
    "pytorch-converted/test_BatchNorm2d_momentum_eval/model": "no-producer",
    "pytorch-converted/test_BatchNorm3d_eval/model": "no-producer",
    "pytorch-converted/test_BatchNorm3d_momentum_eval/model": "no-producer",
    "pytorch-converted/test_Softmin/model": "no-producer",
    "pytorch-converted/test_Softsign/model": "shift",
    "pytorch-operator/test_operator_addconstant/model": "no-producer",
    "pytorch-operator/test_operator_basic/model": "blocked",
    "pytorch-operator/test_operator_params/model": "blocked",
    "pytorch-operator/test_operator_symbolic_override_nested/model": "shared-output shared-output",
    "simple/test_gradient_of_add_and_mul/model": "",
}


@pytest.mark.parametrize("name", KEPT)
def test_must_not_change(name: str) -> None:
    model = onnx.load(DATA / f"{name}.onnx")
    result = bnfold.fold(model, verify=False)
    assert result.model.SerializeToString() == model.SerializeToString()
    assert [entry.code for entry in result.report.kept] == KEPT[name].split()


# -- the light models of the onnx package ------------------------------------------------------------------------------

LEFT_IN_LIGHT = {"resnet50": 0, "densenet121": 62, "inception_v2": 6, "shufflenet": 0}


def load_light(name: str) -> ModelProto:
    return onnx.load(LIGHT / f"light_{name}.onnx")


def light_input() -> Array:
    return np.random.default_rng(0).random((1, 3, 224, 224)).astype(np.float32)


def outputs_of(model: ModelProto, feeds: dict[str, Array]) -> list[Array]:
    return session(model).run(None, feeds)


def compare(want: list[Array], got: list[Array], share: float) -> None:
    """Equal up to this share of the largest value, with the same infinities and NaNs."""
    for w, g in zip(want, got, strict=True):
        assert w.shape == g.shape
        assert w.dtype == g.dtype
        if not np.issubdtype(w.dtype, np.floating):
            np.testing.assert_array_equal(g, w)
            continue
        scale = np.abs(w[np.isfinite(w)], dtype=np.float64).max(initial=0)
        np.testing.assert_allclose(
            g.astype(np.float64), w.astype(np.float64), rtol=0, atol=share * scale, equal_nan=True
        )


@pytest.mark.parametrize("name", LEFT_IN_LIGHT)
def test_light_models(name: str) -> None:
    model = load_light(name)
    result = bnfold.fold(model, verify=False)
    folded = result.model
    checker.check_model(folded)
    assert count(folded, "BatchNormalization") <= LEFT_IN_LIGHT[name]
    assert bnfold.fold(folded, verify=False).model.SerializeToString() == folded.SerializeToString()
    (data,) = [value.name for value in model.graph.input if value.name not in {t.name for t in model.graph.initializer}]
    shipped = onnx.TensorProto.FromString((LIGHT / f"light_{name}_output_0.pb").read_bytes())
    feeds = {
        data: np.arange(150528, dtype=np.float32).reshape(1, 3, 224, 224) / 150528
    }  # as onnx's own runner makes it
    compare([numpy_helper.to_array(shipped)], outputs_of(folded, feeds), 1e-4)
    compare(outputs_of(model, feeds), outputs_of(folded, feeds), 1e-5)


@pytest.mark.parametrize("name", LEFT_IN_LIGHT)
def test_light_models_with_random_weights(name: str) -> None:
    model = randomised(load_light(name))
    folded = bnfold.fold(model, verify=False).model
    assert count(folded, "BatchNormalization") <= LEFT_IN_LIGHT[name]
    stored = {t.name for t in model.graph.initializer}
    (data,) = [value.name for value in model.graph.input if value.name not in stored]
    feeds = {data: light_input()}
    compare(outputs_of(model, feeds), outputs_of(folded, feeds), 1e-4)


def randomised(model: ModelProto) -> ModelProto:
    """Replace the weights, expressions of zeros and ones, by random numbers that keep the signal's size."""
    random = np.random.default_rng(1)
    made = {name: node for node in model.graph.node for name in node.output}
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    }
    shapes |= {t.name: list(t.dims) for t in model.graph.initializer}
    replaced: dict[str, Array] = {}
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if (
                position
                and node.op_type in ("Conv", "Gemm", "BatchNormalization")
                and (name not in made or made[name].op_type == "ConstantOfShape")
            ):
                replaced.setdefault(name, weights(random, node.op_type, position, shapes[name]))
    kept = [node for node in model.graph.node if not set(node.output) & replaced.keys()]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    stored = [t for t in model.graph.initializer if t.name not in replaced]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*stored, *(numpy_helper.from_array(v, n) for n, v in replaced.items())])
    listed = {value.name for value in model.graph.input}
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(n, 1, v.shape) for n, v in replaced.items() if n not in listed
    )
    return model


def weights(random: np.random.Generator, op: str, position: int, shape: list[int]) -> Array:
    if op == "BatchNormalization":
        low, high = {1: (-1.5, 1.5), 2: (-0.5, 0.5), 3: (-0.5, 0.5), 4: (0.5, 2.0)}[position]
        return random.uniform(low, high, shape).astype(np.float32)
    return (random.standard_normal(shape) * np.sqrt(2.0 / max(1, np.prod(shape[1:])))).astype(np.float32)


# -- every model of the onnx package -----------------------------------------------------------------------------------

ALL = sorted(DATA.rglob("*.onnx")) if DATA.is_dir() else []
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_every_model_of_the_onnx_package(part: int) -> None:
    """Folded and equal on the shipped inputs, or left alone byte for byte, or refused in words."""
    for path in ALL[part::PARTS]:
        if path.parent == LIGHT:
            continue
        model = onnx.load(path, load_external_data=False)
        try:
            result = bnfold.fold(model, verify=False, base_dir=path.parent)
        except bnfold.BnfoldError:  # anything else is a bug
            continue
        if not result.report.folded:
            assert result.model.SerializeToString() == model.SerializeToString(), path
            continue
        valid(model, result.model, path)
        for folder in sorted(path.parent.glob("test_data_set_*")):
            same_on(model, result.model, folder, path)


def valid(model: ModelProto, folded: ModelProto, path: Path) -> None:
    try:
        checker.check_model(model)
    except checker.ValidationError:
        return
    checker.check_model(folded)


def same_on(model: ModelProto, folded: ModelProto, folder: Path, path: Path) -> None:
    feeds = {}
    for position, value in enumerate(model.graph.input):
        file = folder / f"input_{position}.pb"
        if not file.is_file() or not value.type.HasField("tensor_type"):
            return
        feeds[value.name] = numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes()))
    try:
        want = outputs_of(model, feeds)
    except Exception:  # onnxruntime has no kernel, or does not know the opset yet
        return
    assert path
    compare(want, outputs_of(folded, feeds), 1e-5)


def test_every_operator_example_of_the_onnx_package() -> None:
    """The examples that onnx makes from code: norms in training and inference, and every operator expanded into others."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case import node

        cases = node.collect_testcases(None)
    assert len(cases) > 1000
    for example in cases:
        result = bnfold.fold(example.model, verify=False)
        if not result.report.folded:
            assert result.model.SerializeToString() == example.model.SerializeToString(), example.name
            continue
        valid(example.model, result.model, Path(example.name))
        for inputs, _ in example.data_sets:
            feeds = {value.name: array for value, array in zip(example.model.graph.input, inputs, strict=True)}
            try:
                want = outputs_of(example.model, feeds)
            except Exception:  # onnxruntime has no kernel, or does not know the opset yet
                break
            compare(want, outputs_of(result.model, feeds), 1e-5)


# -- the exports -------------------------------------------------------------------------------------------------------

Expected = tuple[int, set[str]]
EXPECTED: dict[str, Expected] = {  # norms left, and why
    "bn_bn_affine_chain": (0, set()),
    "bn_through_commuting_ops": (2, {"padding", "shared-output"}),
    "bn_training_mode": (2, {"training-mode"}),
    "chainer_convnet": (5, {"parameters-not-constant"}),
    "convmixer_192_8": (16, {"shift"}),
    "convnext_bn": (0, set()),
    "convtranspose_zoo": (0, set()),
    "crnn_ctc": (0, set()),
    "dcgan_generator": (0, set()),
    "densenet_bc_100_12": (51, {"shared-output"}),
    "flax_resnet_small": (0, set()),
    "frozenbn_const_subgraph": (0, set()),
    "if_subgraph_bn": (0, set()),
    "inception_bn": (1, {"sign"}),
    "iresnet_arcface": (9, {"shared-output"}),
    "keras3_dense_bn_mlp": (0, set()),
    "keras3_mobilenet_v1_025_raw": (0, set()),
    "keras3_unet_tconv": (0, set()),
    "light_shufflenet_randomised": (0, set()),
    "mlp_gemm_bn": (0, set()),
    "mlp_matmul_add_bn": (0, set()),
    "mobilefacenet": (0, set()),
    "mxnet_arcface_small": (24, {"parameters-not-constant"}),
    "paddle_dbnet": (0, set()),
    "paddle_mobilenetv3_small_05": (0, set()),
    "pointnet_cls": (0, set()),
    "preact_resnet20_cifar": (9, {"shared-output"}),
    "repvgg_train_small": (7, {"shared-output"}),
    "resnet8_external_data": (0, set()),
    "resnet8_fp16_bnstats_fp32": (0, set()),
    "resnet8_function": (0, set()),
    "resnet8_qdq_static": (9, {"quantized"}),
    "siamese_shared_conv_split_bn": (0, set()),
    "ssdlite_heads": (0, set()),
    "stgcn_skeleton": (3, {"reshape", "axis"}),
    "tcn_chomp": (0, set()),
    "tfkeras2_conv3d_video_raw": (0, set()),
    "tfkeras2_resnet20_v2_raw": (5, {"shared-output"}),
    "timm_efficientvit_b0": (0, set()),
    "timm_lcnet_050": (0, set()),
    "timm_mobilenetv3_small_dynamo": (0, set()),
    "transformer_batchnorm": (3, {"shared-output"}),
    "unet_convtranspose": (0, set()),
    "yolox_nano_like": (0, set()),
}


def corpus_models() -> list[dict[str, Any]]:
    return json.loads((CORPUS / "manifest.json").read_text())["models"] if HAVE_CORPUS else []


@pytest.mark.corpus
@pytest.mark.skipif(not HAVE_CORPUS, reason="the exports are not here; BNFOLD_CORPUS says where they are")
@pytest.mark.parametrize("entry", corpus_models(), ids=lambda entry: entry["name"])
def test_exports(entry: dict[str, Any]) -> None:
    path = CORPUS / entry["file"]
    result = bnfold.fold(path, verify=False)
    norms, codes = EXPECTED[entry["name"]]
    assert count(result.model, "BatchNormalization") == norms
    assert {kept.code for kept in result.report.kept if kept.operator == "BatchNormalization"} == codes
    feeds = recipes().make_inputs(entry["recipe"])
    original = onnx.load(path)
    compare(outputs_of(original, feeds), outputs_of(result.model, feeds), 2e-2 if "fp16" in entry["name"] else 1e-4)
    assert bnfold.fold(result.model, verify=False).model.SerializeToString() == result.model.SerializeToString()


def recipes() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("corpus_recipes", CORPUS / "recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
