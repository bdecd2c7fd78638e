"""A graph that is evaluated while it grows, for random graphs whose shapes nobody has to work out.

``GrowingGraph(random)`` has inputs with symbolic dimensions and the values of every tensor at three sets of sizes.
``node`` proposes an operator and the runtime says what comes out of it; what it does not run is dropped, with the whole
step that it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, TypeVar

import numpy as np
from helpers import Array, session
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper, shape_inference

T = TypeVar("T")

RUNS = 3
SIZES = {"B": (1, 2, 3), "H": (1, 1, 2, 4), "W": (1, 2, 3, 4), "M": (1, 2)}
INPUTS = "BC BCH BCHW BCHW BCHW BHWC BHC 1CHW B1HW C HC BC11 MC22 2C33 BCHH BMC".split()
"""A letter is a dimension of ``SIZES``, C the number of channels, a digit itself."""

GRID, ROOM, LARGEST = 2.0**-9, 2.0**10, 1e4
BIAS_STEP = 2.0**-18


class DoesNotApplyError(Exception):
    """The step has nothing to act on, or the runtime refuses what it made."""


class GrowingGraph:
    """``values`` maps each tensor to what it is in each run, ``constants`` each constant to what it is.

    Attributes:
        exact: every value is a multiple of ``GRID`` below ``ROOM``: float32 rounds none of them, folded or not.
        largest: the largest magnitude of any value.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self.numbers = np.random.default_rng(random.getrandbits(32))
        self.opset = self.pick(7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23)
        self.dtype = np.dtype(self.pick(np.float32, np.float32, np.float32, np.float64))
        self.channels = self.pick(1, 2, 4, 4, 6)
        self.sizes = [{name: self.pick(*sizes) for name, sizes in SIZES.items()} for _ in range(RUNS)]
        self.may_be_empty = self.chance(0.1)
        self.quantizing = self.dtype == np.float32 and self.opset >= 10 and self.chance(0.4)
        self.nodes: list[NodeProto] = []
        self.inputs: dict[str, ValueInfoProto] = {}
        self.values: dict[str, list[Array]] = {}
        self.constants: dict[str, Array] = {}
        self.stored: dict[str, Array] = {}
        self.exact, self.largest, self.number, self.straight = True, 1.0, 0, False
        for _ in range(self.pick(1, 1, 2, 3)):
            self.add_input()

    def pick(self, *options: T) -> T:
        return self.random.choice(options)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def name(self, stem: str) -> str:
        self.number += 1
        return f"{stem}{self.number}"

    def attempt(self, step: Callable[[], object]) -> None:
        """A step; one that cannot be finished leaves nothing behind."""
        count, exact, largest = len(self.nodes), self.exact, self.largest
        kept = [dict(known) for known in (self.inputs, self.values)]
        try:
            step()
        except DoesNotApplyError:
            del self.nodes[count:]
            self.exact, self.largest = exact, largest
            self.inputs, self.values = kept
            made = {name for node in self.nodes for name in node.output}
            self.constants = {n: v for n, v in self.constants.items() if n in made or n in self.stored}

    # -- inputs and tensors --------------------------------------------------------------------------------------

    def add_input(self) -> None:
        """An input whose dimensions are named, fixed or undeclared; the channels in second place are always known."""
        channels = self.pick(self.channels, self.channels, self.channels, 1)
        shape = [channels if d == "C" else int(d) if d.isdigit() else d for d in self.pick(*INPUTS)]
        declared = [d if i == 1 and isinstance(d, int) else self.pick(d, d, d, None) for i, d in enumerate(shape)]
        runs = [[d if isinstance(d, int) else sizes[d] for d in shape] for sizes in self.sizes]
        self.feed("x", [self.numbers.integers(-3, 4, dims).astype(self.dtype) for dims in runs], declared)

    def feed(self, stem: str, values: list[Array], declared: Sequence[int | str | None] = ()) -> str:
        name = self.name(stem)
        self.values[name] = values
        self.inputs[name] = helper.make_tensor_value_info(name, element(values[0].dtype), declared)
        return name

    def tensor(self, *ranks: int) -> str:
        """A computed tensor of one of these ranks, mostly a recent one; always the last one while ``straight``."""
        fitting = [n for n in self.floats() if not ranks or self.rank(n) in ranks]
        if not fitting:
            raise DoesNotApplyError
        return fitting[-1] if self.straight or self.chance(0.65) else self.pick(*fitting)

    def floats(self) -> list[str]:
        return [name for name, values in self.values.items() if values[0].dtype == self.dtype]

    def rank(self, name: str) -> int:
        return self.values[name][0].ndim

    def maybe_size(self, name: str, axis: int) -> int:
        """The size of an axis that is the same in all runs, declared or not; else 0."""
        found = {value.shape[axis] for value in self.values[name]}
        return found.pop() if len(found) == 1 else 0

    def size(self, name: str, axis: int) -> int:
        found = self.maybe_size(name, axis)
        if not found:
            raise DoesNotApplyError
        return found

    def some_axis(self, rank: int) -> int:
        """Mostly the axis of the channels."""
        return self.pick(min(1, rank - 1), self.random.randrange(rank))

    def signed(self, axis: int, rank: int) -> int:
        """The same axis, sometimes counted from the end."""
        return axis - rank if self.opset >= 11 and self.chance(0.3) else axis

    # -- constants -----------------------------------------------------------------------------------------------

    def small(self, *shape: int) -> Array:
        return self.numbers.choice((-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0), shape).astype(self.dtype)

    def powers(self, *shape: int) -> Array:
        return self.numbers.choice((-2.0, 0.5, 2.0, 1.0, -1.0, 4.0, 0.25), shape).astype(self.dtype)

    def plain(self, values: Any, dtype: Any = np.int64) -> str:
        """An initializer."""
        name = self.name("k")
        self.stored[name] = self.constants[name] = np.asarray(values, dtype)
        return name

    def constant(self, values: Array) -> str:
        """A constant in one of its many forms; sometimes one that is there already, powers of two for powers of two."""
        like, exact = (values.shape, values.dtype), powers_of_two(values)
        same = [n for n, v in self.constants.items() if (v.shape, v.dtype) == like and powers_of_two(v) >= exact]
        if same and self.chance(0.2):
            return self.pick(*same)
        form = self.random.random()
        if form < 0.75:
            return self.plain(values, values.dtype)
        if form < 0.9:
            return self.computed("Constant", [], values, value=numpy_helper.from_array(values))
        if form < 0.95:
            return self.computed("Neg", [self.plain(-values, values.dtype)], values)
        return self.computed("Identity", [self.plain(values, values.dtype)], values)

    def computed(self, op: str, inputs: list[str], values: Array, **attributes: Any) -> str:
        """A constant that a node makes."""
        name = self.name("c")
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        self.constants[name] = values
        return name

    def weight(self, shape: tuple[int, ...], axis: int) -> str:
        """A weight of floats, or of integers behind a DequantizeLinear; ``axis`` has the output channels."""
        if not self.quantizing or self.chance(0.3):
            return self.constant(self.small(*shape))
        kind = np.dtype(self.pick(np.int8, np.uint8))
        axis = axis if self.chance(0.9) else self.random.randrange(len(shape))
        each = self.opset >= 13 and self.chance(0.6)
        spread = [d if each and i == axis else 1 for i, d in enumerate(shape)]
        dims = (shape[axis],) if each else ()
        pointed = self.chance(0.6)
        scale = self.numbers.choice((0.25, 0.5, 1.0), spread)
        zero = self.numbers.integers(-2, 3, spread) * pointed + (128 if kind == np.uint8 and pointed else 0)
        integers = zero + self.numbers.integers(-3 if pointed or kind == np.int8 else 0, 4, shape)
        if self.chance(0.1):  # the end of the range, which has no negative
            integers.flat[0], scale = np.iinfo(kind).min, scale / 64
        inputs = [self.plain(integers, kind), self.plain(scale.reshape(dims), np.float32)]
        inputs += [self.plain(zero.reshape(dims), kind)] if pointed else []
        along = {"axis": self.signed(axis, len(shape))} if each else {}
        values = ((integers - zero) * scale).astype(np.float32)
        return self.computed("DequantizeLinear", inputs, values, **along)

    def bias(self, size: int) -> str:
        """A bias of floats, or of int32 in steps of ``BIAS_STEP``.

        A fold quantizes the latter again in steps of ``BIAS_STEP * |scale|`` and may round shifts to those. Scales are
        powers of two and shifts multiples of small ones, so that every shift is a whole number of steps as fine as
        these: equality can be asked here, too.
        """
        values = self.small(size)
        if not self.quantizing or self.chance(0.4):
            return self.constant(values)
        inputs = [self.plain(values / BIAS_STEP, np.int32), self.plain(BIAS_STEP, np.float32)]
        return self.computed("DequantizeLinear", inputs, values)

    # -- nodes ---------------------------------------------------------------------------------------------------

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> str:
        """One operator, kept if it runs and its values are usable; the name of its first output."""
        names = [self.name(op[:2].lower()) for _ in range(outputs)]
        node = helper.make_node(op, inputs, names, name=self.pick("", names[0] + "_node"), **attributes)
        runs = self.evaluate(node)
        self.judge([value for run in runs for value in run])
        if any(value.ndim != first.ndim for run in runs for value, first in zip(run, runs[0], strict=True)):
            raise DoesNotApplyError
        self.nodes.append(node)
        self.values.update({name: [run[i] for run in runs] for i, name in enumerate(names)})
        return names[0]

    def evaluate(self, node: NodeProto) -> list[list[Array]]:
        """The outputs of a node in every run."""
        sources = list(dict.fromkeys(_reads([node])))
        inputs = [name for name in sources if name in self.values]
        graph = helper.make_graph(
            [node],
            "step",
            [self.described(name) for name in inputs],
            [ValueInfoProto(name=name) for name in node.output],
            [numpy_helper.from_array(self.constants[name], name) for name in sources if name in self.constants],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        try:
            runner = session(model)
            return [runner.run(list(node.output), {n: self.values[n][k] for n in inputs}) for k in range(RUNS)]
        except Exception as error:
            raise DoesNotApplyError from error

    def judge(self, values: list[Array]) -> None:
        """Drop what is too large to be compared; note what is too large or too fine to be exact."""
        if any(v.size > 3000 or (not v.size and not self.may_be_empty) for v in values):
            raise DoesNotApplyError
        floats = [v for v in values if v.dtype == self.dtype]
        largest = max((float(np.abs(v).max(initial=0)) for v in floats), default=0.0)
        if not largest <= LARGEST:
            raise DoesNotApplyError
        self.largest = max(self.largest, largest)
        self.exact = self.exact and largest < ROOM and all((v % GRID == 0).all() for v in floats)

    def described(self, name: str) -> ValueInfoProto:
        """Type and rank."""
        return helper.make_tensor_value_info(name, element(self.values[name][0].dtype), [None] * self.rank(name))

    # -- the model -----------------------------------------------------------------------------------------------

    def model(self) -> ModelProto:
        """The graph with all unread tensors, and some others, as outputs; sometimes with the inferred shapes."""
        read = set(_reads(self.nodes))
        outputs = [n for n in self.values if n not in self.inputs and (n not in read or self.chance(0.06))]
        stored = [numpy_helper.from_array(values, name) for name, values in self.stored.items() if name in read]
        graph = helper.make_graph(
            self.nodes, "g", list(self.inputs.values()), [self.described(name) for name in outputs], stored
        )
        ir = 10 if self.opset > 11 else self.pick(4, 7, 10)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir)
        if self.chance(0.25):
            model.graph.value_info.extend(shape_inference.infer_shapes(model).graph.value_info)
        return model

    def feeds(self) -> list[dict[str, Array]]:
        """The inputs of each run."""
        return [{name: self.values[name][k] for name in self.inputs} for k in range(RUNS)]


def element(dtype: Any) -> int:
    """The ONNX element type."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def powers_of_two(values: Array) -> bool:
    """Whether every element is one, of either sign, or zero."""
    return bool(np.isin(np.frexp(np.abs(values))[0], (0.0, 0.5)).all())


def _reads(nodes: Iterable[NodeProto]) -> list[str]:
    """Every name that nodes and their bodies read."""
    found = [name for node in nodes for name in node.input if name]
    for node in nodes:
        for attribute in node.attribute:
            found += _reads(attribute.g.node) if attribute.HasField("g") else []
    return found
