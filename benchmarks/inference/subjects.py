"""The models whose speed is compared, and the inputs they get."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from bnfold.bench import BenchOptions
from bnfold.bench.runner import feeds_for
from bnfold.errors import OptionError
from bnfold.inputs import input_specs

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "tool"))

from check import by_name, make_inputs  # noqa: E402 - the path above
from collection import entries  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

LIGHT = ("light_resnet50", "light_densenet121", "light_inception_v2", "light_shufflenet")


@dataclass(frozen=True, slots=True)
class Subject:
    """One model: its file, the group it is listed under, and its recipe when it has one."""

    name: str
    group: str
    path: Path
    recipe: dict[str, Any] = field(default_factory=dict)

    def feeds(self, batch: int, seed: int = 0) -> dict[str, Any] | None:
        """Inputs of one batch size; None when the model does not take it. A fixed batch stands for 1."""
        specs = input_specs(onnx.load(str(self.path), load_external_data=False))
        if not self.recipe:
            try:
                return feeds_for(specs, BenchOptions(seed=seed), None if batch == 1 else batch)
            except OptionError:
                return None
        recipe = {**self.recipe, "seed": seed, "inputs": {}}
        for spec in specs:
            entry = self.recipe["inputs"][spec.name]
            first = spec.shape[0] if spec.shape else None
            if spec.shape and not isinstance(first, int):
                entry = {**entry, "shape": [batch, *entry["shape"][1:]]}
            elif spec.shape and batch not in (first, 1):
                return None
            recipe["inputs"][spec.name] = entry
        return make_inputs(recipe)


def all_subjects(folder: Path, groups: tuple[str, ...]) -> Iterator[Subject]:
    """The models of these groups, in that order; some are made or unpacked in ``folder``.

    Groups: ``trained``, ``light`` (of the onnx package, with random weights), ``packages`` and ``corpus``.
    """
    for group in groups:
        if group == "light":
            for name in LIGHT:
                yield Subject(name, group, randomised(name, folder))
        for entry in entries((group,), folder):
            recipe = {} if group == "trained" else by_name(entry.recipe, str(entry.path))
            yield Subject(entry.name, group, entry.path, recipe)


def randomised(name: str, folder: Path) -> Path:
    """A light model with random weights in place of the constants that it makes with ConstantOfShape.

    Convolutions get variance 2 / fan-in, norms parameters near 1 and 0, so that values stay in range through any depth
    and no time goes into denormals.
    """
    path = folder / f"{name}.onnx"
    if path.exists():
        return path
    model = onnx.load(str(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"{name}.onnx"))
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT64}
    readers = {name: (node.op_type, place) for node in graph.node for place, name in enumerate(node.input)}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        shape = tuple(int(size) for size in shapes[node.input[0]])
        array = random_parameter(readers.get(node.output[0], ("", 0)), shape, node.output[0])
        graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        if model.ir_version < 4:
            graph.input.append(onnx.helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
    del graph.node[:]
    graph.node.extend(kept)
    onnx.save(model, str(path))
    return path


def random_parameter(reader: tuple[str, int], shape: tuple[int, ...], name: str) -> np.ndarray:
    """Random numbers that suit the operator and input position that reads them."""
    random = np.random.default_rng(list(name.encode()))
    operator, place = reader
    if operator in ("BatchNormalization", "Mul") and place in (1, 4):
        return random.uniform(0.6, 1.4, shape).astype(np.float32)
    if len(shape) > 1 and operator in ("Conv", "Gemm", "MatMul"):
        fan_in = np.prod(shape[1:])
        return (random.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    return (random.standard_normal(shape) * 0.1).astype(np.float32)
