"""Random graphs with symbolic dimensions: computed shapes, quantized weights, bodies.

``RandomShapes(random)`` makes one graph with the values of its tensors at three sets of sizes, so that a broadcast or a
reshape that means something else when a dimension happens to be 1 is caught by one of them. ``RandomGraph`` knows every
shape beforehand; here a shape is what the values have, so steps may compute shapes, pads and sizes in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
from growing_graph import DoesNotApplyError, element, powers_of_two
from random_layers import Layers

AFFINES = "norm norm affine".split()
LINEAR = "conv conv conv conv_transpose gemm matmul matmul quantize".split()
CARRIERS = """
elementwise two two bound shuffle transpose transpose reshape reshape reshape_computed squeeze concat split slice gather
space pool pool reduce reduce resize pad pad expand
""".split()
OTHERS = "branch branch loop scan shape".split()
"""Steps; what is listed more often is drawn more often."""

Part = int | str
"""A dimension: a number, or the name of a tensor with one element."""


class RandomShapes(Layers):
    """One random graph."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        for _ in range(random.randint(1, 5)):
            if self.chance(0.5):
                self.chain()
            else:
                self.attempt(getattr(self, self.pick(*AFFINES, *LINEAR, *CARRIERS, *OTHERS)))

    def chain(self) -> None:
        """What a fold is about: two layers, and between them operators that may let an affine pass."""
        first, last = self.pick((LINEAR, AFFINES), (LINEAR, AFFINES), (AFFINES, LINEAR))
        steps = [self.pick(*first), *self.random.choices(CARRIERS, k=self.pick(0, 1, 1, 1, 2)), self.pick(*last)]
        self.straight = True
        for step in steps:
            self.attempt(getattr(self, step))
        self.straight = False

    # -- elementwise operators -----------------------------------------------------------------------------------

    def elementwise(self) -> None:
        data = self.tensor()
        op = self.pick(*"Relu Relu LeakyRelu Abs Identity Dropout PRelu Floor Cast Sigmoid Softmax Clip".split())
        if op == "Floor" and not self.exact:  # it would turn a rounding error into a whole one
            raise DoesNotApplyError
        inputs = [data]
        attributes: dict[str, Any] = {}
        match op:
            case "PRelu":
                inputs.append(self.constant(self.small(*self.beside(data))))
            case "Clip" if self.opset >= 11:
                inputs += [self.plain(-2, self.dtype), self.plain(2, self.dtype)]
            case "Clip":
                attributes = {"min": -2.0, "max": 2.0}
            case "Cast":
                attributes = {"to": element(self.dtype)}
            case "Softmax" | "LeakyRelu":
                attributes = {"axis": 1} if op == "Softmax" else {"alpha": 0.5}
        self.node(op, inputs, **attributes)

    def two(self) -> None:
        """Two or three computed tensors that broadcast in every run, or a tensor with itself."""
        first = self.tensor()
        fitting = [name for name in self.floats() if self.broadcast(first, name)]
        op = self.pick("Add", "Add", "Add", "Sub", "Mul", "Mul", "Max", "Min", "Sum")
        operands = [first, self.pick(*fitting[-4:])]
        if op in ("Max", "Min", "Sum") and self.chance(0.4):
            operands.append(self.pick(*fitting))
        self.random.shuffle(operands)
        self.node(op, operands)

    def broadcast(self, one: str, other: str) -> bool:
        try:
            for a, b in zip(self.values[one], self.values[other], strict=True):
                np.broadcast_shapes(a.shape, b.shape)
        except ValueError:
            return False
        return True

    def bound(self) -> None:
        """Max, Min, Sum or Mean with a constant, or a choice between the tensor and one."""
        data = self.tensor()
        operands = [data, self.constant(self.small(*self.beside(data)))]
        self.random.shuffle(operands)
        op = self.pick("Max", "Max", "Min", "Min", "Sum", "Mean", "Where")
        self.node(op, operands if op != "Where" else [self.plain(self.pick(True, False), np.bool_), *operands])

    # -- shapes inside the graph ---------------------------------------------------------------------------------

    def dimension(self, data: str, axis: int) -> str:
        """One dimension as it is when the model runs."""
        if self.opset >= 15 and self.chance(0.3):
            return self.node("Shape", [data], start=axis, end=axis + 1)
        shape = self.node("Shape", [data])
        if self.opset < 10 or self.chance(0.5):
            return self.node("Gather", [shape, self.plain([axis])], axis=0)
        return self.node("Slice", [shape, self.plain([axis]), self.plain([axis + 1])])

    def arithmetic(self, data: str) -> str:
        """A number computed from a dimension."""
        dimension = self.dimension(data, self.random.randrange(max(self.rank(data), 1)))
        return self.node(self.pick("Mul", "Div", "Sub"), [dimension, self.plain([self.pick(1, 2)])])

    def vector(self, parts: Sequence[Part]) -> str:
        """Numbers as one tensor: a constant if none of them is computed."""
        if not any(isinstance(part, str) for part in parts):
            return self.plain(parts)
        return self.node("Concat", [part if isinstance(part, str) else self.plain([part]) for part in parts], axis=0)

    def shape(self) -> None:
        """A shape or size as an output: no fold may change it."""
        self.node(self.pick("Shape", "Shape", "Size"), [self.tensor()])

    def shuffle(self) -> None:
        """Channels split into two axes, exchanged, and put together again; affines before, between and behind."""
        data = self.tensor(3, 4)
        channels, space = self.size(data, 1), range(2, self.rank(data))
        group = self.pick(*[g for g in (1, 2, 3) if channels % g == 0])
        behind: list[Part] = [self.maybe_size(data, i) or self.dimension(data, i) for i in space]
        batch: Part = 0 if self.chance(0.5) else self.dimension(data, 0)
        data = self.followed(data)
        data = self.node("Reshape", [data, self.vector([batch, group, channels // group, *behind])])
        data = self.followed(self.node("Transpose", [data], perm=[0, 2, 1, *[i + 1 for i in space]]))
        self.followed(self.node("Reshape", [data, self.vector([batch, self.pick(channels, -1), *behind])]))

    def reshape(self) -> None:
        """Zeros, numbers and -1 for the axes as they are; two of them merged, or one split or inserted."""
        data, form = self.tensor(1, 2, 3, 4, 5), self.random.random()
        rank = self.rank(data)
        axis = self.random.randrange(rank)
        if form < 0.15:
            self.node("Flatten", [data], axis=self.signed(axis, rank))
            return
        sizes = [self.maybe_size(data, i) for i in range(rank)]
        parts = [self.pick(0, 0, size, size, -1) for size in sizes]
        if form < 0.4 and axis + 1 < rank:
            parts[axis : axis + 2] = [sizes[axis] * sizes[axis + 1] or -1]
        elif form < 0.7 and sizes[axis] and sizes[axis] % 2 == 0:
            half = sizes[axis] // 2
            parts[axis : axis + 1] = self.pick((2, half), (half, 2), (1, 2 * half), (-1, 2))
        elif form < 0.8:
            parts.insert(axis, 1)
        while parts.count(-1) > 1:
            parts[parts.index(-1)] = 0
        allow = {"allowzero": 1} if self.opset >= 14 and self.chance(0.1) else {}
        self.node("Reshape", [data, self.plain(parts)], **allow)

    def reshape_computed(self) -> None:
        """To the shape of another tensor, or to numbers of which some come from a Shape."""
        data, other = self.tensor(1, 2, 3, 4), self.tensor()
        if self.chance(0.4):
            self.node("Reshape", [data, self.node("Shape", [other])])
            return
        source = self.pick(data, data, other)
        parts: list[Part] = [self.pick(-1, self.channels, 1, 0, 2)]
        for _ in range(self.random.randint(0, 3)):
            parts.append(self.dimension(source, self.random.randrange(max(self.rank(source), 1))))
        self.random.shuffle(parts)
        self.node("Reshape", [data, self.vector(parts)])

    def expand(self) -> None:
        """An Expand, perhaps to the shape of another tensor, or a Tile."""
        data = self.tensor()
        sizes = [self.pick(1, 1, 1, 2, self.channels) for _ in range(self.random.randint(1, 4))]
        if self.chance(0.4):
            self.node("Tile", [data, self.plain([self.pick(1, 1, 1, 2) for _ in range(self.rank(data))])])
        else:
            self.node("Expand", [data, self.plain(sizes) if self.chance(0.6) else self.node("Shape", [self.tensor()])])

    # -- layout and selection ------------------------------------------------------------------------------------

    def transpose(self) -> None:
        data = self.tensor(2, 3, 4, 5)
        order = self.random.sample(range(self.rank(data)), self.rank(data))
        attributes: dict[str, Any] = {} if self.chance(0.2) else {"perm": order}
        self.node("Transpose", [data], **attributes)

    def with_axes(self, op: str, data: str, axes: list[int], since: int, **attributes: int) -> str:
        """Axes are an attribute before opset ``since`` and an input from there on."""
        if self.opset < since:
            return self.node(op, [data], axes=axes, **attributes)
        return self.node(op, [data, self.plain(axes)], **attributes)

    def squeeze(self) -> None:
        data = self.tensor()
        rank = self.rank(data)
        ones = [i for i in range(rank) if self.maybe_size(data, i) == 1]
        if rank < 4 and self.chance(0.5):
            more = rank + self.random.randint(1, min(2, 4 - rank))
            axes = sorted(self.random.sample(range(more), more - rank))
            self.with_axes("Unsqueeze", data, [self.signed(a, more) for a in axes], 13)
        elif ones and self.chance(0.8):
            axes = self.random.sample(ones, self.random.randint(1, len(ones)))
            axes = sorted(axes) if self.opset < 11 else axes  # shape inference gets others wrong, and opens no Gemm then
            self.with_axes("Squeeze", data, [self.signed(a, rank) for a in axes], 13)
        else:
            self.node("Squeeze", [data])

    def concat(self) -> None:
        """One to four tensors, perhaps one of them constant."""
        data = self.tensor(1, 2, 3, 4)
        rank = self.rank(data)
        axis = self.some_axis(rank)

        def others(name: str) -> list[tuple[int, ...]]:
            return [(*v.shape[:axis], *v.shape[axis + 1 :]) for v in self.values[name]]

        fitting = [n for n in self.floats() if self.rank(n) == rank and others(n) == others(data)]
        parts = [data, *self.random.choices(fitting[-5:], k=self.pick(0, 1, 1, 2))]
        if self.chance(0.3):
            shape = [self.pick(1, 2) if i == axis else self.size(data, i) for i in range(rank)]
            parts.append(self.constant(self.small(*shape)))
        self.random.shuffle(parts)
        self.node("Concat", parts, axis=self.signed(axis, rank))

    def split(self) -> None:
        data = self.tensor(1, 2, 3, 4)
        axis = self.some_axis(self.rank(data))
        size, at = self.size(data, axis), {"axis": self.signed(axis, self.rank(data))}
        first = self.random.randint(1, max(size - 1, 1))
        sizes = [first, size - first, *([0] if self.chance(0.1) else [])]
        if self.opset >= 18 and self.chance(0.4):
            count = self.pick(2, 3)
            self.node("Split", [data], count, num_outputs=count, **at)
        elif self.opset >= 13:
            self.node("Split", [data, self.plain(sizes)], len(sizes), **at)
        else:
            self.node("Split", [data], len(sizes), split=sizes, **at)

    def slice(self) -> None:
        """Some axes, with bounds from either end, beyond either end, and steps of both signs."""
        data = self.tensor(1, 2, 3, 4)
        axes = self.random.sample(range(self.rank(data)), self.random.randint(1, self.rank(data)))
        starts = [self.pick(0, 0, 1, -1, -2, 100, -100) for _ in axes]
        ends = [self.pick(1, 2, 3, -1, 100, 2**31 - 1, 2**63 - 1, -(2**63), -100) for _ in axes]
        if self.opset < 10:
            self.node("Slice", [data], starts=starts, ends=ends, axes=axes)
            return
        named = self.plain([self.signed(a, self.rank(data)) for a in axes]) if self.chance(0.8) else ""
        steps = [self.plain([self.pick(1, 1, 1, 2, -1, -2) for _ in axes])] if self.chance(0.6) else []
        self.node("Slice", [data, self.plain(starts), self.plain(ends), named, *steps])

    def gather(self) -> None:
        """Indices of any rank, repeated or a permutation."""
        data = self.tensor(1, 2, 3, 4)
        axis = self.some_axis(self.rank(data))
        size = min(value.shape[axis] for value in self.values[data])
        if not size:
            raise DoesNotApplyError
        low = -size if self.opset >= 11 and self.chance(0.4) else 0
        shape = self.pick((), (1,), (2,), (size,), (size + 1,), (2, 2))
        indices = self.numbers.permutation(size) if self.chance(0.4) else self.numbers.integers(low, size, shape)
        self.node("Gather", [data, self.plain(indices)], axis=self.signed(axis, self.rank(data)))

    # -- space ---------------------------------------------------------------------------------------------------

    def space(self) -> None:
        op = self.pick("DepthToSpace", "DepthToSpace", "SpaceToDepth")
        mode: dict[str, Any] = {"mode": self.pick("DCR", "CRD")} if self.opset >= 11 and op == "DepthToSpace" else {}
        self.node(op, [self.tensor(4)], blocksize=2, **mode)

    def pool(self) -> None:
        data = self.tensor(3, 4)
        op = self.pick("MaxPool", "AveragePool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool")
        if op.startswith("Global"):
            self.node(op, [data])
            return
        kernel = [self.pick(1, 2, 2, 3) for _ in range(self.rank(data) - 2)]
        attributes = self.window(len(kernel), kernel_shape=kernel)
        reach = 2 if "dilations" in attributes else 1
        if any(size < reach * k for v in self.values[data] for size, k in zip(v.shape[2:], kernel, strict=True)):
            raise DoesNotApplyError
        if self.opset >= 22 and self.chance(0.3):
            attributes["ceil_mode"] = 1
        if op == "AveragePool" and self.chance(0.4):
            attributes["count_include_pad"] = 1
        self.node(op, [data], **attributes)

    def reduce(self) -> None:
        data, attributes = self.tensor(1, 2, 3, 4), {"keepdims": self.pick(0, 1)}
        op = self.pick("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceSum", "ReduceL1", "ReduceProd")
        since = 13 if op == "ReduceSum" else 18
        if self.chance(0.15):
            attributes |= {"noop_with_empty_axes": 1} if self.opset >= since and self.chance(0.5) else {}
            reduced = self.node(op, [data], **attributes)
        else:
            axes = self.random.sample(range(self.rank(data)), self.random.randint(1, self.rank(data)))
            reduced = self.with_axes(op, data, [self.signed(a, self.rank(data)) for a in axes], since, **attributes)
        if op == "ReduceSum":  # a shift that moves in front of the sum is divided by the number of its terms
            pairs = zip(self.values[data], self.values[reduced], strict=True)
            self.exact = self.exact and all(powers_of_two(np.array(v.size / max(r.size, 1))) for v, r in pairs)

    def resize(self) -> None:
        """By factors, or to sizes of which some are computed."""
        data = self.tensor(3, 4)
        space = self.rank(data) - 2
        scales = self.plain([1, self.pick(1, 1, 1, 2), *[self.pick(1, 1, 2, 1.5) for _ in range(space)]], np.float32)
        mode = self.pick("nearest", "nearest", "linear", "cubic" if self.opset >= 11 else "nearest")
        if mode != "nearest":  # weights such as a third, and as align_corners has them, sum to one only in real numbers
            self.exact = self.exact and powers_of_two(self.constants[scales]) and self.opset < 11
        if self.opset < 9:
            self.node("Upsample", [data], scales=self.constants[scales].tolist(), mode=mode)
        elif self.opset < 11:
            self.node("Upsample" if self.opset < 10 else "Resize", [data, scales], mode=mode)
        elif self.chance(0.4):
            kept: list[Part] = [self.maybe_size(data, i) or self.dimension(data, i) for i in (0, 1)]
            sizes: list[Part] = [self.arithmetic(data) if self.chance(0.4) else self.pick(2, 3) for _ in range(space)]
            self.node("Resize", [data, "", "", self.vector(kept + sizes)], mode="nearest")
        else:
            places = self.pick("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
            self.node("Resize", [data, "", scales], mode=mode, coordinate_transformation_mode=places)

    def pad(self) -> None:
        """Constants of either sign, sometimes for some axes only, sometimes computed for one of them."""
        data = self.tensor(1, 2, 3, 4)
        axes = list(range(self.rank(data)))
        mode, value = self.pick("constant", "constant", "constant", "edge", "reflect"), self.pick(0, 0, 0, 2, -1)
        if mode == "reflect" and min(size for v in self.values[data] for size in v.shape) < 3:
            mode = "constant"
        named = self.opset >= 18 and self.chance(0.4)
        if named:
            axes = self.random.sample(axes, self.random.randint(1, len(axes)))
        pads: list[Part] = [self.pick(0, 0, 1, 2, -1) if axis > 1 or self.chance(0.2) else 0 for axis in axes * 2]
        if self.opset < 11:
            self.node("Pad", [data], pads=pads, mode=mode, value=float(value))
            return
        if self.chance(0.3):
            pads[self.random.randrange(len(pads))] = self.arithmetic(data)
        inputs = [data, self.vector(pads), self.pick("", self.plain(value, self.dtype))]
        inputs += [self.plain([self.signed(axis, self.rank(data)) for axis in axes])] if named else []
        self.node("Pad", inputs, mode=mode)
