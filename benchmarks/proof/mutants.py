"""Wrong folds: a correctly folded model with one thing broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from hosts import Array, Host, attribute, constants, factor_of, label, norm_of, shift
from onnx import numpy_helper

from bnfold.report import Folded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Change = tuple[Array | None, Array | None]  # new weight and new bias, None where it stays


def scale(host: Host, random: np.random.Generator) -> Change | None:
    """One channel's scale off by one per cent."""
    factor = np.ones(host.channels)
    factor[random.integers(host.channels)] = 1.01 if random.random() < 0.5 else 0.99
    return host.scaled(factor), None


def input_scale(host: Host, random: np.random.Generator) -> Change | None:
    """For folds into consumers: one input channel's scale off by one per cent."""
    if not host.before or host.node.op_type != "Conv":
        return None
    weight = host.weight.copy()
    weight[:, random.integers(weight.shape[1])] *= 1.01
    return weight, None


def swap(host: Host, random: np.random.Generator) -> Change | None:
    """Two channels exchanged."""
    if host.channels < 2:
        return None
    i, j = map(int, random.choice(host.channels, 2, replace=False))
    weight = host.swapped(i, j)
    if weight is None:
        return None
    bias = host.bias.copy() if host.bias is not None else None
    if bias is not None:
        bias[[i, j]] = bias[[j, i]]
    return weight, bias


def shift_sign(host: Host, random: np.random.Generator) -> Change | None:
    """One channel's shift with the wrong sign."""
    if host.bias is None or host.norm is None or host.before:
        return None
    k = int(random.integers(host.channels))
    bias = host.bias.astype(np.float64)
    bias[k] -= 2 * shift(host.norm)[k]
    return None, bias


def no_epsilon(host: Host, _random: np.random.Generator) -> Change | None:
    """Epsilon forgotten."""
    if host.norm is None or host.bias is None or host.before or np.any(host.norm["var"] <= 0):
        return None
    wrong = dict(host.norm, epsilon=np.float64(0))
    return rescaled(host, wrong)


def neighbour_gamma(host: Host, random: np.random.Generator) -> Change | None:
    """Gamma taken from another norm."""
    if host.norm is None or host.bias is None or host.before or np.any(host.norm["gamma"] == 0):
        return None
    size = len(host.norm["gamma"])
    others = [n for n in host.norms if n is not host.norm and len(n["gamma"]) == size]
    if not others:
        return None
    wrong = dict(host.norm, gamma=others[int(random.integers(len(others)))]["gamma"])
    return rescaled(host, wrong)


def unscaled_bias(host: Host, _random: np.random.Generator) -> Change | None:
    """The operator's own bias left as it was."""
    if host.norm is None or host.bias is None or host.before or host.original_bias is None:
        return None
    if not np.any(host.original_bias):
        return None
    return None, host.original_bias.astype(np.float64) + shift(host.norm)


def group_offset(host: Host, _random: np.random.Generator) -> Change | None:
    """The scales of one group used for the next."""
    if host.norm is None or host.group < 2 or host.before or host.bias is None:
        return None
    s = factor_of(host.norm)
    if np.any(s == 0):
        return None
    return host.scaled(np.roll(s, len(s) // host.group) / s), None


def twice(host: Host, _random: np.random.Generator) -> Change | None:
    """The scale rounded to the weight's type, then the product again: to be passed."""
    if host.norm is None or host.before or host.original_weight is None:
        return None
    stored = factor_of(host.norm).astype(host.weight.dtype).astype(np.float64)
    if not np.all(np.isfinite(stored)) or host.original_weight.shape != host.weight.shape:
        return None
    return host.scaled(stored, host.original_weight.astype(np.float64)), None


def rescaled(host: Host, wrong: dict[str, Array]) -> Change | None:
    """What folding another norm would have given."""
    assert host.norm is not None
    assert host.bias is not None
    s, r = factor_of(host.norm), factor_of(wrong)
    if np.any(s == 0):
        return None
    own = (host.bias.astype(np.float64) - shift(host.norm)) / s  # the operator's own bias
    return host.scaled(r / s), r * own + shift(wrong)


KINDS: dict[str, Callable[[Host, np.random.Generator], Change | None]] = {
    "one channel's scale off by 1%": scale,
    "one input channel's scale off by 1%": input_scale,
    "two channels swapped": swap,
    "shift sign flipped": shift_sign,
    "epsilon dropped": no_epsilon,
    "bias left unscaled": unscaled_bias,
    "group offset off by one": group_offset,
    "gamma of a neighbour norm": neighbour_gamma,
    "rounded twice (must pass)": twice,
}


def applied(folded: onnx.ModelProto, host: Host, change: Change) -> onnx.ModelProto:
    """The folded model with the new values stored, each rounded to its own type."""
    result = onnx.ModelProto()
    result.CopyFrom(folded)
    new = {}
    if change[0] is not None:
        new[host.node.input[1]] = change[0].astype(host.weight.dtype)
    if change[1] is not None and host.bias is not None:
        new[host.node.input[2]] = np.asarray(change[1]).astype(host.bias.dtype)
    for number, (name, value) in enumerate(new.items()):
        own = f"mutant_{number}"
        result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), own))
        if result.ir_version < 4:
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            result.graph.input.append(onnx.helper.make_tensor_value_info(own, kind, value.shape))
        for node in result.graph.node:
            if label(node) == label(host.node):
                for place, read in enumerate(node.input):
                    if read == name:
                        node.input[place] = own
    return result


def ignoring_padding(original: onnx.ModelProto) -> Iterator[tuple[onnx.ModelProto, Folded]]:
    """Norms folded into a padded Conv behind them as if the padding were not there: wrong at the border only."""
    values = constants(original)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in original.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in original.graph.output}
    for norm in original.graph.node:
        found = norm_of(norm, values)
        after = readers.get(norm.output[0], []) if found is not None else []
        if found is None or len(after) != 1 or after[0].op_type != "Conv" or norm.output[0] in outputs:
            continue
        conv, weight = after[0], values.get(after[0].input[1])
        if weight is None or attribute(conv, "group", 1) != 1 or not any(attribute(conv, "pads", [])):
            continue
        s, t = factor_of(found), shift(found)
        shape = (1, -1, *[1] * (weight.ndim - 2))
        wide = weight.astype(np.float64)
        bias = values[conv.input[2]].astype(np.float64) if len(conv.input) > 2 and conv.input[2] else 0.0
        bias = bias + (wide * t.reshape(shape)).sum(axis=tuple(range(1, weight.ndim)))
        yield (
            _without(original, norm, conv, wide * s.reshape(shape), bias),
            Folded(label(norm), norm.op_type, (label(conv),), "before Conv", (conv.output[0],)),
        )


def _without(
    original: onnx.ModelProto, norm: onnx.NodeProto, conv: onnx.NodeProto, weight: Array, bias: Array
) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(original)
    for name, value in (("mutant_w", weight), ("mutant_b", bias)):
        result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        if result.ir_version < 4:
            result.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, value.shape))
    for node in result.graph.node:
        if label(node) == label(conv):
            del node.input[:]
            node.input.extend([norm.input[0], "mutant_w", "mutant_b"])
    kept = [n for n in result.graph.node if label(n) != label(norm)]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    return result
