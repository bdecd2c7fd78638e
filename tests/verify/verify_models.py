"""Small networks with norms, folded by ten lines of NumPy that share nothing with bnfold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from bnfold.report import Folded

Array = np.ndarray[Any, Any]

HEADS = {
    "plain": "y = Identity(n)",
    "relu": "y = Relu(n)",
    "pooled": "r = Relu(n)\n y = GlobalAveragePool(r)",
    "softmax": "r = Relu(n)\n p = GlobalAveragePool(r)\n y = Softmax<axis=1>(p)",
    "sigmoid": "y = Sigmoid(n)",
}


@dataclass
class Pair:
    """A network with one Conv-BN, and what folding it needs.

    ``folded()`` is right, ``folded(scale=...)`` and its like need not be.
    """

    kind: str = "Conv"
    group: int = 1
    head: str = "softmax"
    dtype: Any = np.float32
    seed: int = 0
    values: dict[str, Array] = field(default_factory=dict)
    channels: int = 8

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        inputs = 4 if self.group < 8 else 8
        shape = (self.channels, inputs // self.group, 3, 3)
        if self.kind == "ConvTranspose":
            shape = (inputs, self.channels // self.group, 3, 3)
        self.inputs = inputs
        made = {
            "w": random.standard_normal(shape) * 0.4,
            "b": random.standard_normal(self.channels),
            "gamma": random.uniform(0.5, 1.5, self.channels) * random.choice([-1, 1], self.channels),
            "beta": random.standard_normal(self.channels),
            "mean": random.standard_normal(self.channels),
            "var": random.uniform(0.2, 2.0, self.channels),
        }
        self.values = {name: value.astype(self.dtype) for name, value in made.items()} | self.values
        self.epsilon = 1e-2

    @property
    def element(self) -> str:
        return {np.dtype(np.float16): "float16", np.dtype(np.float64): "double"}.get(np.dtype(self.dtype), "float")

    def original(self) -> onnx.ModelProto:
        attributes = f"<pads=[1,1,1,1], group={self.group}>"
        nodes = (
            f"c = {self.kind}{attributes}(x, w, b)\n n = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var)"
        )
        return self._model(nodes, self.values)

    def scale(self) -> Array:
        v = {name: value.astype(np.float64) for name, value in self.values.items()}
        return v["gamma"] / np.sqrt(v["var"] + np.float64(np.float32(self.epsilon)))

    def shift(self) -> Array:
        return self.values["beta"].astype(np.float64) - self.values["mean"].astype(np.float64) * self.scale()

    def folded(
        self, scale: Array | None = None, shift: Array | None = None, bias: Array | None = None
    ) -> onnx.ModelProto:
        """Fold with this scale, shift and own bias instead of the right ones."""
        s = self.scale() if scale is None else scale
        t = self.shift() if shift is None else shift
        w = self.values["w"].astype(np.float64)
        if self.kind == "ConvTranspose":
            grid = s.reshape(self.group, 1, -1, 1, 1)
            weight = (w.reshape(self.group, -1, *w.shape[1:]) * grid).reshape(w.shape)
        else:
            weight = w * s.reshape(-1, 1, 1, 1)
        own = self.values["b"].astype(np.float64) * s if bias is None else bias
        return self.with_weights(weight, own + t)

    def with_weights(self, weight: Array, bias: Array) -> onnx.ModelProto:
        nodes = f"n = {self.kind}<pads=[1,1,1,1], group={self.group}>(x, w, b)"
        return self._model(nodes, {"w": weight.astype(self.dtype), "b": bias.astype(self.dtype)})

    def _model(self, nodes: str, values: dict[str, Array]) -> onnx.ModelProto:
        return model(
            f"{self.element}[N,{self.inputs},9,9] x", f"{self.element}[] y", f"{nodes}\n{HEADS[self.head]}", values
        )

    def fold(self) -> Folded:
        return Folded("BatchNormalization:n", "BatchNormalization", (f"{self.kind}:n",), f"after {self.kind}", ("n",))


def model(inputs: str, outputs: str, nodes: str, values: dict[str, Array], opset: int = 17) -> onnx.ModelProto:
    """A model from ONNX text and its initializers; the shapes of outputs are inferred."""
    made = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]>\ng ({inputs}) => ({outputs}) {{\n{nodes}\n}}'
    )
    for name, value in values.items():
        made.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    for value in made.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(made).graph.output
    for value, found in zip(made.graph.output, inferred, strict=True):
        value.CopyFrom(found)
    return made
