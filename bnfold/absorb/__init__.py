"""The operators that absorb an affine, one file each: ``after`` (behind the operator), ``before`` (in front of it),
``rewrite``.

The tables below are all there is to register.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold.absorb import conv, conv_transpose, gemm, matmul, quantized, quantized_input
from bnfold.absorb.port import Port
from bnfold.graph import Node
from bnfold.refusals import Refusal

_AFTER: dict[str, Callable[[Node], Port | Refusal]] = {
    "Conv": conv.after,
    "ConvTranspose": conv_transpose.after,
    "Gemm": gemm.after,
    "MatMul": matmul.after,
    "com.microsoft::FusedConv": conv.after,
    "com.microsoft::FusedGemm": gemm.after,
    "com.microsoft::FusedMatMul": matmul.after,
}

_BEFORE: dict[str, Callable[[Node, int], Port | Refusal]] = {
    "Conv": conv.before,
    "ConvTranspose": conv_transpose.before,
    "Gemm": gemm.before,
    "MatMul": matmul.before,
    "com.microsoft::FusedConv": conv.before,
    "com.microsoft::FusedGemm": gemm.before,
    "com.microsoft::FusedMatMul": matmul.before,
}


def behind(node: Node) -> Port | Refusal | None:
    """Where an affine enters an operator from behind, or why it does not; None for operators that are not linear."""
    if node.op == "Add":
        unit = matmul.unit_of(node)
        if unit is None:
            return None
        return matmul.after(node) if matmul.quantized_side(unit) is None else quantized.after(node)
    rule = _AFTER.get(node.op)
    port = None if rule is None else rule(node)
    if isinstance(port, Refusal) and port.code == "quantized" and quantized.stands_at(node):
        return quantized.after(node)
    return port


def in_front(node: Node, position: int) -> Port | Refusal | None:
    """Where an affine enters an operator at an input, or why it does not; None for operators that are not linear."""
    rule = _BEFORE.get(node.op)
    port = None if rule is None else rule(node, position)
    if isinstance(port, Refusal) and port.code == "quantized" and quantized.stands_at(node):
        return quantized_input.before(node, position)
    return port


__all__ = ["Port", "behind", "in_front"]
