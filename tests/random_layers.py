"""The layers of random graphs: norms, affines, the operators that absorb them, and bodies that hold all of these."""

from __future__ import annotations

from typing import Any

import numpy as np
from growing_graph import RUNS, DoesNotApplyError, GrowingGraph, element
from helpers import Array, norm_parameters
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper


class Layers(GrowingGraph):
    """The steps that add a layer."""

    # -- norms, affines and what absorbs them --------------------------------------------------------------------

    def norm(self, data: str = "") -> str:
        data = data or self.tensor(2, 3, 4, 5)
        *shared, variance = self.parameters(self.size(data, 1))
        parameters = [*map(self.constant, shared), self.plain(variance, self.dtype)]
        return self.node("BatchNormalization", [data, *parameters], epsilon=0.0)

    def parameters(self, channels: int) -> list[Array]:
        kind = self.pick("", "", "pos", "scale", "posscale", "shift")
        values = norm_parameters(kind, channels, str(self.random.randint(0, 99)), self.dtype)
        if self.chance(0.1):
            values["gamma"][: self.pick(1, channels)] = 0
        return list(values.values())

    def affine(self, data: str = "") -> str:
        """Mul, Add, Sub or Div by a constant along one axis, along several, or larger than the tensor; or Neg."""
        data = data or self.tensor()
        op = self.pick("Mul", "Add", "Sub", "Div", "Neg", "Mul", "Add")
        if op == "Neg":
            return self.node(op, [data])
        shape = self.beside(data)
        operands = [data, self.constant(self.powers(*shape) if op in ("Mul", "Div") else self.small(*shape))]
        if op != "Div" and self.chance(0.4):
            operands.reverse()
        return self.node(op, operands)

    def beside(self, data: str) -> list[int]:
        """The shape of a constant beside a tensor."""
        rank, form = self.rank(data), self.random.random()
        if rank == 0 or form < 0.15:
            return []
        if form < 0.22:
            return [1] * self.random.randint(1, rank)
        if form < 0.8:
            axis = self.some_axis(rank)
            shape = [1] * rank
            shape[axis] = self.size(data, axis)
            return shape[axis if self.chance(0.6) else 0 :]
        if form < 0.9:
            return [self.maybe_size(data, i) or 1 for i in range(rank)][self.random.randrange(rank) :]
        return [self.pick(1, 1, 1, self.channels, 2) for _ in range(self.random.randint(1, min(rank + 1, 4)))]

    def followed(self, product: str) -> str:
        """Half of the time a norm or an affine behind a linear operator."""
        if self.rank(product) < 2 or not self.maybe_size(product, 1):
            return product
        if self.chance(0.5):
            return product
        return self.norm(product) if self.chance(0.5) else self.affine(product)

    def conv(self, data: str = "") -> str:
        data = data or self.tensor(3, 4)
        channels, space = self.size(data, 1), self.rank(data) - 2
        group = self.pick(1, 1, 1, channels, 2 if channels % 2 == 0 else 1)
        filters = group * self.pick(1, 2) if group > 1 else self.pick(1, 2, self.channels, self.channels, 4)
        kernel = [self.pick(1, 1, 1, 2, 3) for _ in range(space)]
        inputs = [data, self.weight((filters, channels // group, *kernel), 0)]
        inputs += [self.bias(filters)] if self.chance(0.5) else []
        return self.followed(self.node("Conv", inputs, **self.window(space, group=group)))

    def window(self, space: int, **attributes: Any) -> dict[str, Any]:
        """Pads or automatic padding, strides and dilations."""
        form = self.random.random()
        if form < 0.3:
            attributes["pads"] = [self.pick(0, 0, 1) for _ in range(2 * space)]
        elif form < 0.5:
            attributes["auto_pad"] = self.pick("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
        if self.chance(0.3):
            attributes["strides"] = [self.pick(1, 2) for _ in range(space)]
        if self.chance(0.15):
            attributes["dilations"] = [self.pick(1, 2) for _ in range(space)]
        return attributes

    def conv_transpose(self) -> None:
        data = self.tensor(3, 4)
        channels, space = self.size(data, 1), self.rank(data) - 2
        group, each = self.pick(1, 1, channels, 2 if channels % 2 == 0 else 1), self.pick(1, 2, self.channels)
        attributes = self.window(space, group=group)
        if self.chance(0.2):
            attributes["output_padding"] = [self.pick(0, 1) for _ in range(space)]
        kernel = [self.pick(1, 1, 2, 3) for _ in range(space)]
        inputs = [data, self.weight((channels, each, *kernel), 1 if each > 1 else 0)]
        inputs += [self.bias(each * group)] if self.chance(0.4) else []
        self.followed(self.node("ConvTranspose", inputs, **attributes))

    def gemm(self) -> None:
        data, flip, turn = self.tensor(2), self.chance(0.3), self.chance(0.5)
        depth, rows = self.size(data, 1 - flip), self.maybe_size(data, int(flip))
        columns = self.pick(1, 2, self.channels, self.channels)
        inputs = [data, self.weight((columns, depth) if turn else (depth, columns), 1 - turn)]
        addends: list[tuple[int, ...]] = [(1, columns), (), (1,), (1, 1)]
        addends += [(rows, 1), (rows, columns)] if rows else []
        form = self.random.random()
        if form < 0.4:
            inputs.append(self.bias(columns))
        elif form < 0.7 or self.opset < 11:
            inputs.append(self.constant(self.small(*self.pick(*addends))))
        alpha, beta = (self.pick(1.0, 1.0, 1.0, 0.5, 2.0, 0.0) for _ in range(2))
        self.followed(self.node("Gemm", inputs, alpha=alpha, beta=beta, transA=int(flip), transB=int(turn)))

    def matmul(self) -> None:
        """By a matrix on either side, a stack of them or a vector, or of two tensors; sometimes with a bias."""
        data, form, columns = self.tensor(1, 2, 3, 4), self.random.random(), self.pick(1, 2, 3, self.channels)
        stack = self.pick((), (), (), (), (1,), (2,), (1, 1))
        if form < 0.1:
            self.node("MatMul", [data, self.tensor(2, 3, 4)])
            return
        if form < 0.6:
            shape = self.pick((self.size(data, -1),), *[(*stack, self.size(data, -1), columns)] * 4)
            product = self.node("MatMul", [data, self.weight(shape, len(shape) - 1)])
            bias = [columns]
        else:
            depth = self.size(data, max(self.rank(data) - 2, 0))
            shape = self.pick((depth,), *[(*stack, columns, depth)] * 4)
            product = self.node("MatMul", [self.weight(shape, max(len(shape) - 2, 0)), data])
            bias = [columns, 1]
        if self.chance(0.4):
            operands = [product, self.constant(self.small(*bias))]
            self.random.shuffle(operands)
            product = self.node("Add", operands)
        self.followed(product)

    def quantize(self) -> None:
        """A tensor of small integers to int8 and back, which keeps it: data for a Conv between integers."""
        data = self.tensor(3, 4)
        whole = all((np.abs(v) < 100).all() and (v % 1 == 0).all() for v in self.values[data])
        if not self.quantizing or not self.exact or not whole:
            raise DoesNotApplyError
        scale = [self.plain(1.0, np.float32), self.plain(0, np.int8)]
        self.conv(self.node("DequantizeLinear", [self.node("QuantizeLinear", [data, *scale]), *scale]))

    # -- bodies --------------------------------------------------------------------------------------------------

    def layer(self, source: str, rank: int, channels: int) -> tuple[list[NodeProto], str]:
        """For a body: a linear operator that keeps the shape, a norm or an affine, an activation.

        Constants stand inside, or are captured.
        """
        nodes: list[NodeProto] = []
        inside = self.chance(0.5)

        def then(op: str, *inputs: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(op, inputs, [self.name("body")], **attributes))
            return str(nodes[-1].output[0])

        def constant(values: Array) -> str:
            return then("Constant", value=numpy_helper.from_array(values)) if inside else self.constant(values)

        each = [1] * (rank - 2)
        if self.chance(0.7):
            weight = constant(self.small(channels, channels, *each))
            source = then("Conv" if rank > 2 else "MatMul", source, weight)
        if self.chance(0.7):
            *shared, variance = self.parameters(channels)
            names = [*map(constant, shared), self.plain(variance, self.dtype)]
            source = then("BatchNormalization", source, *names, epsilon=0.0)
        elif self.chance(0.7):
            source = then(self.pick("Mul", "Add"), source, constant(self.powers(channels, *each)))
        return nodes, then(self.pick("Relu", "Identity", "Identity", "Neg"), source)

    def in_body(self, name: str, rank: int, channels: int) -> ValueInfoProto:
        """A tensor of a body: its rank and channels declared, or nothing but its type."""
        dims = [channels if i == 1 else None for i in range(rank)] if self.chance(0.7) else None
        return helper.make_tensor_value_info(name, element(self.dtype), dims)

    def branch(self) -> None:
        """An If whose bodies read tensors around it, sometimes a Conv that only they read."""
        data = self.conv() if self.chance(0.5) else self.tensor(2, 3, 4)
        rank, channels = self.rank(data), self.size(data, 1)
        flag = self.feed("flag", [np.array(self.chance(0.5)) for _ in range(RUNS)])
        bodies = []
        for _ in range(2):
            nodes, result = self.layer(data, rank, channels)
            bodies.append(helper.make_graph(nodes, result, [], [self.in_body(result, rank, channels)]))
        self.node("If", [flag], then_branch=bodies[0], else_branch=bodies[1])

    def loop(self) -> None:
        """A layer in every turn, or the sum of a layer of a captured tensor; no turn in some runs."""
        data = self.tensor(2, 3, 4)
        rank, channels, captured = self.rank(data), self.size(data, 1), self.chance(0.3)
        turn, going, state, gone, total = (self.name(stem) for stem in ("i", "going", "state", "gone", "total"))
        nodes, result = self.layer(data if captured else state, rank, channels)
        nodes.append(helper.make_node("Sum" if captured else "Identity", [result, state][: 1 + captured], [total]))
        nodes.append(helper.make_node("Identity", [going], [gone]))
        inputs = [_scalar(turn, np.int64), _scalar(going, np.bool_), self.in_body(state, rank, channels)]
        body = helper.make_graph(nodes, state, inputs, [_scalar(gone, np.bool_), self.in_body(total, rank, channels)])
        turns = [np.array(k, np.int64) for k in (1, 0, 2)]
        trips = self.feed("trips", turns) if self.chance(0.5) else self.plain(self.pick(1, 2))
        self.node("Loop", [trips, "", data], body=body)

    def scan(self) -> None:
        """A layer for each slice along an axis behind the channels."""
        data = self.tensor(3, 4)
        if self.opset < 9 or not all(value.size for value in self.values[data]):  # the runtime divides by an empty axis
            raise DoesNotApplyError
        rank, channels, piece = self.rank(data), self.size(data, 1), self.name("slice")
        nodes, result = self.layer(piece, rank - 1, channels)
        given, made = (self.in_body(name, rank - 1, channels) for name in (piece, result))
        body, along = helper.make_graph(nodes, piece, [given], [made]), [self.random.randrange(2, rank)]
        self.node("Scan", [data], body=body, num_scan_inputs=1, scan_input_axes=along, scan_output_axes=along)


def _scalar(name: str, dtype: Any) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element(dtype), [])
