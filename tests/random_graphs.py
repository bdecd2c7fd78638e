"""Random small graphs from the operators that bnfold knows, with integer weights and power-of-two norms.

``RandomGraph(random).model()`` makes one. Sizes coincide often (batch, channels, height, width are mostly 2), so that a rule that
guesses from sizes is caught; values stay small, so that results are exact.
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from helpers import norm_parameters
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper, shape_inference

Shape = tuple[int, ...]


class RandomGraph:
    """One random graph; ``tensors`` maps each computed tensor to its shape."""

    def __init__(self, random: Random, steps: int | None = None) -> None:
        self.random = random
        self.opset = random.choice((7, 9, 11, 13, 17, 18, 21))
        self.ir = random.choice((3, 7, 10)) if self.opset <= 11 else 10
        self.tensors: dict[str, Shape] = {}
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {}
        self.overridable: set[str] = set()
        self.symbolic = random.random() < 0.4
        self.inputs: dict[str, Shape] = {}
        self.needs_flag = False
        self.number = 0
        for _ in range(random.choice((1, 1, 2))):
            self.add_input()
        drawn = random.randint(2, 9)
        for _ in range(drawn if steps is None else steps):
            self.step()

    # -- pieces --------------------------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        self.number += 1
        return f"{stem}{self.number}"

    def add_input(self) -> None:
        size = self.random.choice
        shape = size(((2, 2, 2, 2), (2, 4, 4, 4), (1, 4, 2, 2), (2, 3, 4, 2), (2, 4), (3, 2), (2, 4, 3), (2, 2, 4)))
        name = self.name("x")
        self.inputs[name] = self.tensors[name] = shape

    def node(self, op: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        output = self.name(op[:2].lower())
        self.nodes.append(
            helper.make_node(op, inputs, [output], name=self.random.choice(("", output + "_node")), **attributes)
        )
        self.tensors[output] = shape
        return output

    def constant(self, values: np.ndarray[Any, Any], stem: str = "k", *, plain: bool = False) -> str:
        """A constant in one of its many forms; sometimes one that is there already."""
        if not plain and self.random.random() < 0.25:
            same = [
                n
                for n, v in self.constants.items()
                if v.shape == values.shape and v.dtype == values.dtype and n not in self.overridable
            ]
            if same:
                return self.random.choice(same)
        name, form = self.name(stem), self.random.random()
        if plain or form < 0.6:
            self.constants[name] = values
            if not plain and form < 0.04 and self.ir >= 4:
                self.overridable.add(name)
        elif form < 0.8:
            self.nodes.append(
                helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values, name + "_value"))
            )
        elif form < 0.9:
            self.constants[name + "_source"] = values
            self.nodes.append(helper.make_node("Identity", [name + "_source"], [name]))
        else:
            self.constants[name + "_source"] = np.negative(values)
            self.nodes.append(helper.make_node("Neg", [name + "_source"], [name]))
        return name

    def integers(self, shape: Shape, low: int = -2, high: int = 2) -> np.ndarray[Any, Any]:
        values = [self.random.randint(low, high) or 1 for _ in range(int(np.prod(shape)))]
        return np.array(values, np.float32).reshape(shape)

    def tensor(self, *ranks: int) -> str | None:
        """A computed tensor of one of these ranks, mostly a recent one."""
        fitting = [n for n, s in self.tensors.items() if not ranks or len(s) in ranks]
        if not fitting:
            return None
        return fitting[-1] if self.random.random() < 0.7 else self.random.choice(fitting)

    def axes(self, op: str, data: str, axes: list[int], shape: Shape, since: int, **attributes: Any) -> str:
        """A node whose axes are an attribute before opset ``since`` and an input from there on."""
        if self.opset < since:
            return self.node(op, [data], shape, axes=axes, **attributes)
        return self.node(op, [data, self.constant(np.array(axes, np.int64), plain=True)], shape, **attributes)

    # -- steps ---------------------------------------------------------------------------------------------------

    def step(self) -> None:
        group = self.random.random()
        if group < 0.27:
            self.random.choice((self.norm, self.norm, self.affine, self.affine, self.norm_formula))()
        elif group < 0.5:
            self.random.choice((self.conv, self.conv, self.conv_transpose, self.gemm, self.matmul, self.matmul))()
        elif group < 0.62:
            self.random.choice((self.elementwise, self.elementwise, self.two, self.two, self.branch))()
        else:
            choices = (self.transpose, self.reshape, self.squeeze, self.concat, self.split, self.slice, self.gather,
                       self.space, self.pool, self.reduce, self.resize, self.pad, self.expand, self.tile, self.shape_of)  # fmt: skip
            self.random.choice(choices)()

    def norm(self) -> None:
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        channels = self.tensors[data][1]
        kind = self.random.choice(("", "pos", "scale", "posscale", "shift", "pos"))
        seeded = norm_parameters(kind, channels, str(self.random.randint(0, 99)))
        names = [self.constant(seeded[part], part) for part in ("gamma", "beta", "mean")]
        names.append(self.constant(seeded["var"], "var", plain=True))
        self.node("BatchNormalization", [data, *names], self.tensors[data], epsilon=0.0)

    def affine(self) -> None:
        data = self.tensor()
        if data is None:
            return
        shape = self.tensors[data]
        op = self.random.choice(("Mul", "Add", "Sub", "Div", "Neg"))
        if op == "Neg":
            self.node("Neg", [data], shape)
            return
        axis = self.random.randrange(len(shape)) if shape else 0
        form = self.random.random()
        dims = (
            ()
            if form < 0.15 or not shape
            else (1,)
            if form < 0.2
            else tuple(d if i == axis else 1 for i, d in enumerate(shape))
        )
        dims = dims[axis:] if form > 0.5 and dims else dims
        if op in ("Mul", "Div"):
            powers = [self.random.choice((-2.0, 0.5, 2.0, 1.0, -1.0)) for _ in range(int(np.prod(dims)))]
            values = np.array(powers, np.float32).reshape(dims)
        else:
            values = self.integers(dims)
        operands = [data, self.constant(values, plain=op == "Div")]
        if op != "Div" and self.random.random() < 0.4:
            operands.reverse()
        self.node(op, operands, shape)

    def norm_formula(self) -> None:
        """``(x - mean) * scale + beta`` with the scale as an unfolded expression."""
        data = self.tensor(3, 4)
        if data is None:
            return
        shape = self.tensors[data]
        dims = (shape[1], *[1] * (len(shape) - 2))
        spread = self.constant(np.full(dims, 4.0, np.float32), plain=True)
        root = self.name("sd")
        self.nodes.append(helper.make_node("Sqrt", [spread], [root]))
        centred = self.node("Sub", [data, self.constant(self.integers(dims))], shape)
        scaled = self.node("Div", [centred, root], shape)
        self.node("Add", [self.constant(self.integers(dims)), scaled], shape)

    def conv(self) -> None:
        data = self.tensor(3, 4)
        if data is None:
            return
        n, c, *space = self.tensors[data]
        kernel = [self.random.choice((1, 1, 2)) for _ in space]
        pads = [self.random.choice((0, 0, 0, 1)) for _ in space] * 2
        if any(s + 2 * p < k for s, p, k in zip(space, pads, kernel, strict=False)):
            return
        group = self.random.choice((1, 1, c, 2 if c % 2 == 0 else 1))
        filters = group * self.random.choice((1, 2)) if group > 1 else self.random.choice((2, 2, 3, 4))
        inputs = [data, self.constant(self.integers((filters, c // group, *kernel)), "w")]
        inputs += self.random.choice(([], [self.constant(self.integers((filters,)), "b")], [""]))
        if self.opset < 9 and inputs[-1] == "":
            inputs.pop()
        shape = (n, filters, *[s + 2 * p - k + 1 for s, p, k in zip(space, pads, kernel, strict=False)])
        self.node("Conv", inputs, shape, pads=pads, group=group)

    def conv_transpose(self) -> None:
        data = self.tensor(3, 4)
        if data is None:
            return
        n, c, *space = self.tensors[data]
        if max(space) > 6:
            return
        kernel = [self.random.choice((1, 1, 2)) for _ in space]
        stride = self.random.choice((1, 1, 2))
        group = self.random.choice((1, c))
        each = self.random.choice((1, 2, 2))
        inputs = [data, self.constant(self.integers((c, each, *kernel)), "w")]
        if self.random.random() < 0.5:
            inputs.append(self.constant(self.integers((each * group,)), "b"))
        shape = (n, each * group, *[(s - 1) * stride + k for s, k in zip(space, kernel, strict=True)])
        self.node("ConvTranspose", inputs, shape, group=group, strides=[stride] * len(space))

    def gemm(self) -> None:
        data = self.tensor(2)
        if data is None:
            return
        a, b = self.tensors[data]
        flip, turn = self.random.random() < 0.2, self.random.random() < 0.5
        rows, depth = (b, a) if flip else (a, b)
        columns = self.random.choice((2, 2, 3, 4))
        inputs = [data, self.constant(self.integers((columns, depth) if turn else (depth, columns)), "w")]
        shapes: list[Shape | None] = [(columns,), (1, columns), (rows, 1), (rows, columns), (), (1,)]
        if self.opset >= 11:
            shapes.append(None)
        if self.symbolic:
            shapes = [(columns,), (1, columns), ()]
        addend = self.random.choice(shapes)
        if addend is not None:
            inputs.append(self.constant(self.integers(addend), "b"))
        alpha, beta = self.random.choice((1.0, 1.0, 0.5)), self.random.choice((1.0, 1.0, 2.0, 0.0))
        self.node("Gemm", inputs, (rows, columns), alpha=alpha, beta=beta, transA=int(flip), transB=int(turn))

    def matmul(self) -> None:
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        shape, size = self.tensors[data], self.random.choice((2, 2, 3))
        if self.random.random() < 0.65:
            weight = self.constant(self.integers((shape[-1], size)), "w")
            product, dims = self.node("MatMul", [data, weight], (*shape[:-1], size)), (size,)
        else:
            weight = self.constant(self.integers((size, shape[-2])), "w")
            product, dims = self.node("MatMul", [weight, data], (*shape[:-2], size, shape[-1])), (size, 1)
        if self.random.random() < 0.4:
            operands = [product, self.constant(self.integers(dims), "b")]
            self.random.shuffle(operands)
            self.node("Add", operands, self.tensors[product])

    def elementwise(self) -> None:
        data = self.tensor()
        if data is None:
            return
        shape = self.tensors[data]
        op = self.random.choice(("Relu", "Relu", "LeakyRelu", "Abs", "Identity", "Dropout", "PRelu", "Floor", "Cast"))
        if op == "PRelu":
            axis = self.random.randrange(len(shape)) if shape else 0
            slope = tuple(d if i == axis else 1 for i, d in enumerate(shape))[axis:]
            self.node(op, [data, self.constant(self.integers(slope))], shape)
        elif op == "LeakyRelu":
            self.node(op, [data], shape, alpha=0.5)
        elif op == "Cast":
            self.node(op, [data], shape, to=TensorProto.FLOAT)
        else:
            self.node(op, [data], shape)

    def two(self) -> None:
        """Two computed tensors that broadcast, or a tensor with itself."""
        first = self.tensor()
        if first is None:
            return
        shape, fitting = self.tensors[first], []
        for name, other in self.tensors.items():
            try:
                np.broadcast_shapes(shape, other)
            except ValueError:
                continue
            fitting.append(name)
        second = self.random.choice(fitting)
        op = self.random.choice(("Add", "Add", "Sub", "Mul", "Max", "Min", "Sum"))
        if op in ("Max", "Min", "Sum") and self.opset < 8 and shape != self.tensors[second]:
            op = "Add"
        result = np.broadcast_shapes(shape, self.tensors[second])
        operands = [first, second]
        self.random.shuffle(operands)
        if op == "Sum" and self.random.random() < 0.3:
            operands.append(first)
        self.node(op, operands, result)

    def branch(self) -> None:
        """An If whose bodies capture tensors and constants of the graph around them."""
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        self.needs_flag = True
        shape = self.tensors[data]
        bodies = []
        for _ in range(2):
            inner, source = self.name("body"), data
            nodes = []
            if self.random.random() < 0.7 and len(shape) in (3, 4):
                weight = self.constant(self.integers((shape[1], shape[1], *[1] * (len(shape) - 2))), "w")
                source = inner + "_c"
                nodes.append(helper.make_node("Conv", [data, weight], [source]))
            if self.random.random() < 0.7:
                seeded = norm_parameters("", shape[1], str(self.random.randint(0, 99)))
                names = [self.constant(seeded[part], part, plain=True) for part in ("gamma", "beta", "mean", "var")]
                nodes.append(helper.make_node("BatchNormalization", [source, *names], [inner + "_n"], epsilon=0.0))
                source = inner + "_n"
            nodes.append(helper.make_node(self.random.choice(("Identity", "Relu", "Neg")), [source], [inner]))
            value = helper.make_tensor_value_info(inner, TensorProto.FLOAT, self.declared(shape))
            bodies.append(helper.make_graph(nodes, inner, [], [value]))
        self.node("If", ["flag"], shape, then_branch=bodies[0], else_branch=bodies[1])

    def transpose(self) -> None:
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        shape = self.tensors[data]
        order = list(range(len(shape)))
        self.random.shuffle(order)
        self.node("Transpose", [data], tuple(shape[i] for i in order), perm=order)

    def reshape(self) -> None:
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        shape = list(self.tensors[data])
        form = self.random.random()
        if form < 0.3:
            axis = self.random.choice((0, 1, 1, len(shape)))
            self.node("Flatten", [data], (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))), axis=axis)
            return
        axis = self.random.randrange(len(shape) - 1)
        if form < 0.65:
            target = [*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :]]
        elif shape[axis] % 2 == 0:
            target = [
                *shape[:axis],
                *self.random.choice(((2, shape[axis] // 2), (shape[axis] // 2, 2))),
                *shape[axis + 1 :],
            ]
        else:
            target = [shape[1], shape[0], *shape[2:]]
        if len(target) > 4:
            return
        wanted = list(target)
        for i, d in enumerate(wanted):
            if i < len(shape) and d == shape[i] and self.random.random() < 0.3:
                wanted[i] = 0
        place = self.random.randrange(len(wanted))
        if self.symbolic or self.random.random() < 0.5:
            wanted[place] = -1
        self.node("Reshape", [data, self.constant(np.array(wanted, np.int64), plain=True)], tuple(target))

    def squeeze(self) -> None:
        data = self.tensor()
        if data is None:
            return
        shape = self.tensors[data]
        ones = [i for i, d in enumerate(shape) if d == 1]
        if ones and self.random.random() < 0.6:
            axis = self.random.choice(ones)
            self.axes("Squeeze", data, [axis], (*shape[:axis], *shape[axis + 1 :]), 13)
        elif len(shape) < 4:
            axis = self.random.randrange(len(shape) + 1)
            self.axes("Unsqueeze", data, [axis], (*shape[:axis], 1, *shape[axis:]), 13)

    def concat(self) -> None:
        first = self.tensor(2, 3, 4)
        if first is None:
            return
        shape = self.tensors[first]
        axis = self.random.choice((1, 1, self.random.randrange(len(shape))))
        fitting = [
            n
            for n, s in self.tensors.items()
            if len(s) == len(shape) and all(i == axis or d == e for i, (d, e) in enumerate(zip(s, shape, strict=True)))
        ]
        parts = [first, self.random.choice(fitting)]
        sizes = [self.tensors[p][axis] for p in parts]
        if self.random.random() < 0.2 and not self.symbolic:
            parts.append(self.constant(self.integers(shape)))
            sizes.append(shape[axis])
        if sum(sizes) <= 8:
            self.node(
                "Concat",
                parts,
                (*shape[:axis], sum(sizes), *shape[axis + 1 :]),
                axis=axis - self.random.choice((0, len(shape))) if self.opset >= 11 else axis,
            )

    def split(self) -> None:
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        shape = self.tensors[data]
        axis = self.random.choice((1, 1, self.random.randrange(len(shape))))
        if shape[axis] < 2 or (axis == 0 and self.symbolic):
            return
        first = self.random.randint(1, shape[axis] - 1)
        sizes = [first, shape[axis] - first]
        outputs = [self.name("sp"), self.name("sp")]
        if self.opset < 13:
            self.nodes.append(helper.make_node("Split", [data], outputs, axis=axis, split=sizes))
        else:
            self.nodes.append(
                helper.make_node(
                    "Split", [data, self.constant(np.array(sizes, np.int64), plain=True)], outputs, axis=axis
                )
            )
        for output, size in zip(outputs, sizes, strict=True):
            self.tensors[output] = (*shape[:axis], size, *shape[axis + 1 :])

    def slice(self) -> None:
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        shape = self.tensors[data]
        axis = self.random.choice((1, 1, self.random.randrange(len(shape))))
        if axis == 0 and self.symbolic:
            return
        start = self.random.randrange(shape[axis])
        stop = self.random.randint(start + 1, shape[axis])
        result = (*shape[:axis], stop - start, *shape[axis + 1 :])
        if self.opset < 10:
            self.node("Slice", [data], result, axes=[axis], starts=[start], ends=[stop])
            return
        bounds = [[start], [stop], [axis]]
        if self.random.random() < 0.3:
            bounds = [[-1], [-shape[axis] - 1], [axis - len(shape)], [-1]]
            result = shape
        self.node("Slice", [data, *[self.constant(np.array(b, np.int64), plain=True) for b in bounds]], result)

    def gather(self) -> None:
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        shape = self.tensors[data]
        axis = self.random.choice((1, 1, self.random.randrange(len(shape))))
        if axis == 0 and self.symbolic:
            return
        if len(shape) > 2 and self.random.random() < 0.3:
            indices = np.array(self.random.randrange(shape[axis]), np.int64)
            result = (*shape[:axis], *shape[axis + 1 :])
        else:
            count = self.random.choice((shape[axis], shape[axis], 1, 2))
            picked = [self.random.randrange(shape[axis]) for _ in range(count)]
            if self.random.random() < 0.6:
                picked = self.random.sample(range(shape[axis]), shape[axis])
            indices = np.array(picked, np.int64)
            result = (*shape[:axis], len(picked), *shape[axis + 1 :])
        self.node("Gather", [data, self.constant(indices, plain=True)], result, axis=axis)

    def space(self) -> None:
        data = self.tensor(4)
        if data is None:
            return
        n, c, h, w = self.tensors[data]
        if c % 4 == 0 and self.random.random() < 0.6:
            mode = {"mode": self.random.choice(("DCR", "CRD"))} if self.opset >= 11 else {}
            self.node("DepthToSpace", [data], (n, c // 4, h * 2, w * 2), blocksize=2, **mode)
        elif h % 2 == w % 2 == 0 and c <= 2:
            self.node("SpaceToDepth", [data], (n, c * 4, h // 2, w // 2), blocksize=2)

    def pool(self) -> None:
        data = self.tensor(3, 4)
        if data is None:
            return
        n, c, *space = self.tensors[data]
        op = self.random.choice(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"))
        if op.startswith("Global"):
            if all(s in (1, 2, 4) for s in space):
                self.node(op, [data], (n, c, *[1] * len(space)))
            return
        if min(space) < 2:
            return
        padding = {"pads": [1] * 2 * len(space)} if self.random.random() < 0.3 else {}
        include = {"count_include_pad": self.random.choice((0, 1))} if op == "AveragePool" and padding else {}
        if op == "AveragePool" and padding and not include.get("count_include_pad") and len(space) == 2:
            pass
        extra = 2 if padding else 0
        self.node(
            op, [data], (n, c, *[s + extra - 1 for s in space]), kernel_shape=[2] * len(space), **padding, **include
        )

    def reduce(self) -> None:
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        shape = self.tensors[data]
        chosen = [i for i in range(len(shape)) if self.random.random() < 0.5] or [len(shape) - 1]
        op = self.random.choice(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"))
        if op in ("ReduceMean", "ReduceSum") and np.prod([shape[i] for i in chosen]) not in (1, 2, 4, 8, 16):
            return
        keep = self.random.choice((0, 1))
        result = tuple(1 if i in chosen else d for i, d in enumerate(shape) if keep or i not in chosen)
        if result or keep:
            self.axes(op, data, chosen, result, 13 if op == "ReduceSum" else 18, keepdims=keep)

    def resize(self) -> None:
        data = self.tensor(4)
        if data is None or max(self.tensors[data]) > 4 or self.opset < 10:
            return
        shape = self.tensors[data]
        scales = [self.random.choice((1, 2)) for _ in shape]
        scales[0] = 1
        factors = self.constant(np.array(scales, np.float32), plain=True)
        if self.opset == 10:
            inputs = [data, factors]
        elif self.opset < 13:
            inputs = [data, self.constant(np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32), plain=True), factors]
        else:
            inputs = [data, "", factors]
        self.node("Resize", inputs, tuple(d * s for d, s in zip(shape, scales, strict=True)), mode="nearest")

    def pad(self) -> None:
        data = self.tensor(3, 4)
        if data is None:
            return
        shape = self.tensors[data]
        pads = [self.random.choice((0, 1)) if i >= self.random.choice((1, 2, 2)) else 0 for i in range(len(shape))]
        mode = self.random.choice(("constant", "constant", "constant", "edge", "reflect"))
        if mode == "reflect" and any(p >= d for p, d in zip(pads, shape, strict=True)):
            return
        result = tuple(d + p for d, p in zip(shape, pads, strict=True))
        both = [0] * len(shape) + pads
        if self.opset < 11:
            self.node("Pad", [data], result, pads=both, mode=mode, value=float(self.random.choice((0, 0, 3))))
            return
        inputs = [data, self.constant(np.array(both, np.int64), plain=True)]
        if mode == "constant" and self.random.random() < 0.6:
            inputs.append(
                self.constant(np.array(self.random.choice((0, 0, 2)), np.float32), plain=self.random.random() < 0.5)
            )
        self.node("Pad", inputs, result, mode=mode)

    def expand(self) -> None:
        data = self.tensor()
        if data is None or self.opset < 8:
            return
        shape = self.tensors[data]
        target = [2 if d == 1 else d for d in shape]
        if self.random.random() < 0.3 and len(shape) < 4:
            target = [2, *target]
        if self.symbolic:
            return
        self.node("Expand", [data, self.constant(np.array(target, np.int64), plain=True)], tuple(target))

    def tile(self) -> None:
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        shape = self.tensors[data]
        repeats = [self.random.choice((1, 1, 1, 2)) if d <= 2 else 1 for d in shape]
        self.node(
            "Tile",
            [data, self.constant(np.array(repeats, np.int64), plain=True)],
            tuple(d * r for d, r in zip(shape, repeats, strict=True)),
        )

    def shape_of(self) -> None:
        """A reshape to the shape of another tensor of the same size."""
        data = self.tensor(2, 3, 4)
        if data is None:
            return
        size = int(np.prod(self.tensors[data]))
        other = self.random.choice([n for n, s in self.tensors.items() if int(np.prod(s)) == size])
        dims = self.name("shape")
        self.nodes.append(helper.make_node("Shape", [other], [dims]))
        self.node("Reshape", [data, dims], self.tensors[other])

    # -- the model -----------------------------------------------------------------------------------------------

    def declared(self, shape: Shape) -> list[int | str | None]:
        return [None if self.symbolic else d for d in shape]

    def model(self) -> ModelProto:
        """The graph with all unread tensors, and some others, as outputs; sometimes inside a body or a function."""
        read = {name for node in self.nodes for name in node.input}
        made = [name for name in self.tensors if name not in self.inputs]
        outputs = [name for name in made if name not in read or self.random.random() < 0.08]
        wrap = self.random.random()
        if not outputs:
            made.append(self.node("Identity", [next(iter(self.inputs))], next(iter(self.inputs.values()))))
            outputs = made[-1:]
        inputs = [self.value(name, shape) for name, shape in self.inputs.items()]
        if self.needs_flag or wrap < 0.1:
            inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
        stored = [numpy_helper.from_array(values, name) for name, values in self.constants.items()]
        functions = []
        nodes, results = self.nodes, outputs
        if wrap < 0.1:
            nodes, results = self.in_branches(outputs)
        elif wrap < 0.16 and self.ir >= 8 and not self.overridable and not self.needs_flag:
            nodes, functions, stored = self.in_function(outputs)
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(self.tensors[out]))
            for name, out in zip(results, outputs, strict=True)
        ]
        graph = helper.make_graph(nodes, "g", inputs, values, stored)
        listed = [t.name for t in stored] if self.ir < 4 else self.overridable
        for name in listed:
            tensor = self.constants[name]
            graph.input.append(
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.dtype), tensor.shape)
            )
        imports = [helper.make_opsetid("", self.opset)] + ([helper.make_opsetid("local", 1)] if functions else [])
        model = helper.make_model(graph, opset_imports=imports, ir_version=self.ir, functions=functions)
        if self.random.random() < 0.3 and not self.symbolic:
            model.graph.value_info.extend(shape_inference.infer_shapes(model).graph.value_info)
        return model

    def value(self, name: str, shape: Shape) -> ValueInfoProto:
        dims: list[int | str] = list(shape)
        if self.symbolic:
            dims[0] = f"N{shape[0]}"
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    def in_branches(self, outputs: list[str]) -> tuple[list[NodeProto], list[str]]:
        """Everything in both branches of an If; constants and inputs stay outside."""
        bodies = []
        for prefix in ("then_", "else_"):
            made = {name for node in self.nodes for name in node.output}
            copies = [_renamed(node, made, prefix) for node in self.nodes]
            values = [
                helper.make_tensor_value_info(prefix + name, TensorProto.FLOAT, [None] * len(self.tensors[name]))
                for name in outputs
            ]
            bodies.append(helper.make_graph(copies, prefix, [], values))
        results = [f"{name}_result" for name in outputs]
        return [helper.make_node("If", ["flag"], results, then_branch=bodies[0], else_branch=bodies[1])], results

    def in_function(self, outputs: list[str]) -> tuple[list[NodeProto], list[Any], list[TensorProto]]:
        """Everything in a model-local function that is called once; constants become nodes."""
        inner = [
            helper.make_node("Constant", [], [n], value=numpy_helper.from_array(v, n))
            for n, v in self.constants.items()
        ]
        imports = [helper.make_opsetid("", self.opset)]
        body = helper.make_function("local", "Body", list(self.inputs), outputs, [*inner, *self.nodes], imports)
        return [helper.make_node("Body", list(self.inputs), outputs, domain="local")], [body], []


def _renamed(node: NodeProto, made: set[str], prefix: str) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    for names in (copy.input, copy.output):
        for i, name in enumerate(names):
            if name in made:
                names[i] = prefix + name
    for attribute in copy.attribute:
        if attribute.HasField("g"):
            own = made | {name for inner in attribute.g.node for name in inner.output}
            inner_nodes = [_renamed(inner, own, prefix) for inner in attribute.g.node]
            del attribute.g.node[:]
            attribute.g.node.extend(inner_nodes)
            for value in attribute.g.output:
                value.name = prefix + value.name
    return copy
