"""Written-out Gelu: ``0.5 * x * (1 + erf(x / sqrt(2)))``, whose affine operators belong to an activation.

Runtimes and compilers replace the whole of it by one fused operator, and they find it by its shape. With a factor moved
into the next layer it has one operator less and runs slower, so its operators are left where they are.
"""

from __future__ import annotations

import math

from bnfold.graph import Node, Scope

__all__ = ["members"]


def members(scope: Scope) -> dict[int, Node]:
    """Indices of the affine operators that are part of a Gelu, each with the Erf in the middle of it."""
    found: dict[int, Node] = {}
    for erf in scope.nodes:
        if erf.op == "Erf" and erf.inputs and erf.outputs:
            found.update(dict.fromkeys(_around(erf), erf))
    return found


def _around(erf: Node) -> list[int]:
    """The division in front of Erf, the addition behind it, and the product with a half; none if one is missing."""
    scope = erf.scope
    division, addition = scope.producer(erf.inputs[0]), _only_reader(scope, erf.outputs[0])
    product = None if addition is None else _only_reader(scope, addition.outputs[0])
    if division is None or addition is None or product is None or product.op != "Mul":
        return []
    data = _beside(division, "Div", 2**0.5) or _beside(division, "Mul", 0.5**0.5)
    if data is None or _beside(addition, "Add", 1.0) is None:
        return []
    for half in (scope.producer(name) for name in product.inputs):  # 0.5 * x in front of the product
        if half is not None and _beside(half, "Mul", 0.5) == data:
            return [division.index, addition.index, half.index]
    behind = _only_reader(scope, product.outputs[0])
    if behind is None or behind.op != "Mul":
        return []
    if _beside(product, "Mul", 0.5) is not None:  # 0.5 * (1 + erf)
        return [division.index, addition.index, product.index] if data in behind.inputs else []
    if data in product.inputs and _beside(behind, "Mul", 0.5) is not None:
        return [division.index, addition.index, behind.index]
    return []


def _beside(node: Node, op: str, number: float) -> str | None:
    """What a node of this type divides by a constant number, adds to it or multiplies with it; None for any other."""
    if node.op != op:
        return None
    for name, constant in list(zip(node.inputs, reversed(node.inputs), strict=True))[: 1 if op == "Div" else None]:
        value = node.scope.constants.get(constant)
        if value is not None and value.size == 1 and math.isclose(value.float64().item(), number, rel_tol=1e-3):
            return name
    return None


def _only_reader(scope: Scope, name: str) -> Node | None:
    readers = scope.readers(name)
    return readers[0].node if len(readers) == 1 and name not in scope.output_set else None
