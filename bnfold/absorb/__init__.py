"""The operators that absorb an affine, one file each: ``after`` (behind the operator), ``before`` (in front of it),
``rewrite``.

The tables below are all there is to register.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold.absorb import conv, conv_transpose, gemm, matmul
from bnfold.absorb.port import Port
from bnfold.graph import Node
from bnfold.refusals import Refusal

AFTER: dict[str, Callable[[Node], Port | Refusal]] = {
    "Conv": conv.after,
    "ConvTranspose": conv_transpose.after,
    "Gemm": gemm.after,
    "MatMul": matmul.after,
    "com.microsoft::FusedConv": conv.after,
    "com.microsoft::FusedGemm": gemm.after,
    "com.microsoft::FusedMatMul": matmul.after,
}

BEFORE: dict[str, Callable[[Node, int], Port | Refusal]] = {
    "Conv": conv.before,
    "ConvTranspose": conv_transpose.before,
    "Gemm": gemm.before,
    "MatMul": matmul.before,
    "com.microsoft::FusedConv": conv.before,
    "com.microsoft::FusedGemm": gemm.before,
    "com.microsoft::FusedMatMul": matmul.before,
}

__all__ = ["AFTER", "BEFORE", "Port"]
