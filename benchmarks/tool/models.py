"""Make the models that the tools are timed on: ``python models.py KIND COUNT PATH``.

* ``nodes``: COUNT times Conv(7, 7, 1x1) - BatchNormalization - Relu, so that only the graph is large.
* ``inline``: COUNT times Conv(512, 512, 3x3) - BatchNormalization, 9.4 MB of weights each, inside the model file.
* ``external``: the same with the weights in ``PATH.data``.
* ``bytes``, ``bytes-external``: inline or external, with about COUNT million bytes of weights.

Weights of the large models are one block of random numbers, scaled anew for every layer, and are written as they are
made: it takes a few hundred megabytes of memory whatever the size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

CHANNELS = 512
SMALL = 7  # channels of the small ones: 30,000 nodes make 6 MB
LAYER = CHANNELS * CHANNELS * 9 * 4  # bytes of one large weight


def norm_parameters(random: np.random.Generator, channels: int, prefix: str) -> list[TensorProto]:
    """Gamma, beta, mean and variance of one norm, none of them trivial."""
    values = {
        "gamma": random.uniform(0.5, 1.5, channels),
        "beta": random.normal(0, 0.1, channels),
        "mean": random.normal(0, 0.1, channels),
        "var": random.uniform(0.5, 1.5, channels),
    }
    return [numpy_helper.from_array(v.astype(np.float32), f"{prefix}.{name}") for name, v in values.items()]


def layer(number: int, source: str, target: str, pads: int) -> list[NodeProto]:
    """Conv and its norm."""
    prefix = f"l{number}"
    parameters = [f"{prefix}.{name}" for name in ("gamma", "beta", "mean", "var")]
    conv = helper.make_node("Conv", [source, f"{prefix}.w"], [f"{prefix}.c"], name=f"{prefix}.conv", pads=[pads] * 4)
    norm = helper.make_node("BatchNormalization", [f"{prefix}.c", *parameters], [target], name=f"{prefix}.bn")
    return [conv, norm]


def finish(nodes: list[NodeProto], weights: list[TensorProto], channels: int) -> onnx.ModelProto:
    """A model around the nodes, with one input and one output of shape [N, channels, H, W]."""
    shape = ["N", channels, "H", "W"]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "benchmark", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def many_nodes(count: int, path: Path) -> None:
    """COUNT small triples of Conv, norm and Relu."""
    random = np.random.default_rng(0)
    nodes, weights, source = [], [], "x"
    for number in range(count):
        target = "y" if number == count - 1 else f"l{number}.r"
        nodes += layer(number, source, f"l{number}.b", 0)
        nodes.append(helper.make_node("Relu", [f"l{number}.b"], [target], name=f"l{number}.relu"))
        weight = random.normal(0, 0.4, (SMALL, SMALL, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"l{number}.w"))
        weights += norm_parameters(random, SMALL, f"l{number}")
        source = target
    onnx.save(finish(nodes, weights, SMALL), str(path))


def large(count: int, path: Path, *, external: bool, kernel: int = 3) -> None:
    """COUNT layers of Conv(512, 512, kernel x kernel) and norm, weights inline or in one file beside the model."""
    random = np.random.default_rng(0)
    block = random.normal(0, 0.02, (CHANNELS, CHANNELS, kernel, kernel)).astype(np.float32)
    nodes, weights = [], []
    for number in range(count):
        source, target = ("x" if number == 0 else f"l{number - 1}.b"), ("y" if number == count - 1 else f"l{number}.b")
        nodes += layer(number, source, target, kernel // 2)
        weight = TensorProto(name=f"l{number}.w", data_type=TensorProto.FLOAT, dims=block.shape)
        weights.append(weight)
        if external:
            entries = {"location": path.name + ".data", "offset": number * block.nbytes, "length": block.nbytes}
            for key, value in entries.items():
                weight.external_data.add(key=key, value=str(value))
            weight.data_location = TensorProto.EXTERNAL
        else:
            weight.raw_data = scaled(block, number)
        weights += norm_parameters(random, CHANNELS, f"l{number}")
    if external:
        with path.with_name(path.name + ".data").open("wb") as file:
            for number in range(count):
                file.write(scaled(block, number))
    with path.open("wb") as file:
        file.write(finish(nodes, weights, CHANNELS).SerializeToString())


def scaled(block: np.ndarray, number: int) -> bytes:
    """The block for one layer: other numbers, the same spread."""
    return (np.roll(block, number, axis=0) * np.float32(1 + number % 7 / 16)).tobytes()


def by_bytes(millions: int, path: Path, *, external: bool) -> None:
    """About that many million bytes of weights."""
    kernel = 3 if millions * 1e6 >= 4 * LAYER else 1
    count = max(1, round(millions * 1e6 / (LAYER if kernel == 3 else LAYER / 9)))
    large(count, path, external=external, kernel=kernel)


def main() -> int:
    """Entry point of the process."""
    kind, count, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    makers = {
        "nodes": many_nodes,
        "inline": lambda n, p: large(n, p, external=False),
        "external": lambda n, p: large(n, p, external=True),
        "bytes": lambda n, p: by_bytes(n, p, external=False),
        "bytes-external": lambda n, p: by_bytes(n, p, external=True),
    }
    makers[kind](count, path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
