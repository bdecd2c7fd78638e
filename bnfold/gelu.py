"""Written-out Gelu: ``0.5 * x * (1 + erf(x / sqrt(2)))``, whose affine operators belong to an activation.

Runtimes and compilers replace the whole of it by one fused operator, and they find it by its shape. With a factor moved
into the next layer it has one operator less and runs slower, so its operators are left where they are.
"""

from __future__ import annotations

from bnfold.graph import Node, Scope

__all__ = ["members"]


def members(scope: Scope) -> dict[int, Node]:
    """Indices of the affine operators that are part of a Gelu, each with the Erf in the middle of it."""
    found: dict[int, Node] = {}
    for erf in scope.nodes:
        if erf.op == "Erf":
            found.update(dict.fromkeys(_around(erf), erf))
    return found


def _around(erf: Node) -> list[int]:
    """The division in front of Erf, the addition behind it, and the product with a half; none if one is missing."""
    scope = erf.scope
    division, addition = scope.producer(erf.inputs[0]), _only_reader(scope, erf.outputs[0])
    if division is None or division.op not in ("Div", "Mul") or addition is None or addition.op != "Add":
        return []
    data, plus = _moving(division), _moving(addition)
    product = _only_reader(scope, addition.outputs[0])
    if data is None or plus is None or product is None or product.op != "Mul":
        return []
    for half in (scope.producer(name) for name in product.inputs):  # 0.5 * x in front of the product
        if half is not None and half.op == "Mul" and _moving(half) == data:
            return [division.index, addition.index, half.index]
    behind = _only_reader(scope, product.outputs[0])
    if _moving(product) is not None:  # 0.5 * (1 + erf)
        whole = behind is not None and behind.op == "Mul" and data in behind.inputs
        return [division.index, addition.index, product.index] if whole else []
    if data in product.inputs and behind is not None and behind.op == "Mul" and _moving(behind) is not None:
        return [division.index, addition.index, behind.index]
    return []


def _moving(node: Node) -> str | None:
    """The operand beside a constant number; None where there is no such constant."""
    if len(node.inputs) != 2:
        return None
    for name, constant in zip(node.inputs, reversed(node.inputs), strict=True):
        value = node.scope.constants.get(constant)
        if value is not None and value.size == 1:
            return name
    return None


def _only_reader(scope: Scope, name: str) -> Node | None:
    readers = scope.readers(name)
    return readers[0].node if len(readers) == 1 and name not in scope.output_set else None
