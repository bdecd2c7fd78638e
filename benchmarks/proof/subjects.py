"""Models to break: the trained ones, light models with random weights, the corpus, and a few made on the spot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, parser

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent.parent
LIGHT = ("light_resnet50", "light_densenet121", "light_inception_v2", "light_shufflenet")


def corpus() -> Path | None:
    """The folder of exports, where there is one."""
    for place in (os.environ.get("BNFOLD_CORPUS"), ROOT.parent / "shared" / "corpus"):
        if place and Path(place).is_dir():
            return Path(place)
    return None


def subjects(groups: tuple[str, ...]) -> Iterator[tuple[str, str, onnx.ModelProto]]:
    """Yield group, name and model."""
    if "trained" in groups:
        for path in sorted((ROOT / "models").glob("*.onnx")):
            model = onnx.load(str(path))
            yield "trained", path.stem, model
            half = halved(model)
            if half is not None:
                yield "trained, float16", f"{path.stem}_fp16", half
    if "made" in groups:
        for name, model in made():
            yield "made", name, model
    folder = corpus()
    if "corpus" in groups and folder is not None:
        for path in sorted(folder.glob("*.onnx")):
            yield "corpus", path.stem, onnx.load(str(path))
    if "light" in groups:
        for name in LIGHT:
            yield "light", name, randomised(name)


def halved(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model in float16 throughout; None for one with casts or other things that fix a type."""
    if any(node.op_type in ("Cast", "Constant", "ConstantOfShape") for node in model.graph.node):
        return None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del result.graph.value_info[:]
    return result


def made() -> Iterator[tuple[str, onnx.ModelProto]]:
    """Grouped and transposed convolutions with biases, tiny variances, large means, zero and negative gammas."""
    for seed, (kind, shape, extra, channels) in enumerate(
        (
            ("Conv", (8, 3, 3, 3), "pads=[1,1,1,1]", 8),
            ("Conv", (12, 2, 3, 3), "group=4, pads=[1,1,1,1]", 12),
            ("Conv", (8, 1, 3, 3), "group=8", 8),
            ("ConvTranspose", (8, 6, 3, 3), "strides=[2,2]", 6),
            ("ConvTranspose", (8, 3, 2, 2), "group=2", 6),
            ("Conv", (6, 4, 5), "strides=[2]", 6),
            ("Conv", (5, 4, 1, 1), "", 5),
            ("Conv", (4, 3, 3, 3), "pads=[1,1,1,1], dilations=[2,2]", 4),
        )
    ):
        for trait in ("plain", "hard"):
            yield f"{kind.lower()}_{seed}_{trait}", _small(kind, shape, extra, channels, trait, seed)


def _small(kind: str, shape: tuple[int, ...], extra: str, channels: int, trait: str, seed: int) -> onnx.ModelProto:
    random = np.random.default_rng(seed)
    group = int(extra.split("group=")[1].split(",", maxsplit=1)[0]) if "group=" in extra else 1
    inputs = shape[1] * group if kind == "Conv" else shape[0]
    pixels = ",".join(["11"] * (len(shape) - 2))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,{inputs},{pixels}] x) => (float[] y) {{
        c = {kind}<{extra}>(x, w, b)
        n = BatchNormalization<epsilon=0.00001>(c, gamma, beta, mean, var)
        r = Relu(n)
        d = Conv(r, v)
        m = BatchNormalization<epsilon=0.001>(d, gamma2, beta2, mean2, var2)
        p = GlobalAveragePool(m)
        y = Softmax<axis=1>(p)
    }}"""
    model = parser.parse_model(text.replace("<>", ""))
    values = {"w": random.standard_normal(shape) * 0.3, "b": random.standard_normal(channels)}
    values["v"] = random.standard_normal((channels, channels, *[1] * (len(shape) - 2))) * 0.4
    for suffix in ("", "2"):
        values[f"gamma{suffix}"] = random.uniform(0.5, 1.5, channels) * random.choice([-1, 1], channels)
        values[f"beta{suffix}"] = random.standard_normal(channels) * 0.5
        values[f"mean{suffix}"] = random.standard_normal(channels) * 0.5
        values[f"var{suffix}"] = random.uniform(0.3, 2.0, channels)
    if trait == "hard":
        values["var"][:2] = (1e-12, 1e-7)
        values["gamma"][1], values["gamma"][2] = 0.0, 1e-4
        values["mean"][3] = 300.0
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in model.graph.node:
        node.name = f"{node.op_type.lower()}_{node.output[0]}"
    return model


def randomised(name: str) -> onnx.ModelProto:
    """A light model with random weights in place of the constants that it makes with ConstantOfShape."""
    model = onnx.load(str(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"{name}.onnx"))
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT64}
    readers = {read: (node.op_type, place) for node in graph.node for place, read in enumerate(node.input)}
    random = np.random.default_rng(0)
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        array = _parameter(readers.get(node.output[0], ("", 0)), shape, random).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        if model.ir_version < 4:
            graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
    del graph.node[:]
    graph.node.extend(kept)
    return model


def _parameter(reader: tuple[str, int], shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    operator, place = reader
    if operator in ("BatchNormalization", "Mul") and place in (1, 4):
        return random.uniform(0.6, 1.4, shape)
    if len(shape) > 1 and operator in ("Conv", "Gemm", "MatMul"):
        return random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return random.standard_normal(shape) * 0.1
