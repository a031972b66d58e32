"""Operators that treat each element alone, as functions of views.

    y = Op(a, b, ...)       single IEEE operations, row by row of `edgeq.tvm.scalars`
    y = f(DequantizeLinear(codes))      a table, where IEEE does not define f

A table is what the simulator's definition makes of every code: no second definition, and no libm.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tvm.ir import Expr

from edgeq.errors import UnsupportedOperatorError
from edgeq.operators import OPERATORS
from edgeq.operators import elementwise as definitions
from edgeq.operators.binding import bind, describe
from edgeq.tvm.pointwise import LookUp, Pointwise
from edgeq.tvm.scalars import SCALARS
from edgeq.tvm.views import View

Array = NDArray[Any]
Make = Callable[[Sequence[Expr | None]], Expr]
CODES = ("uint8", "int8", "uint16")


def combined(
    operands: Sequence[Pointwise | None],
    shape: tuple[int, ...],
    dtype: str,
    make: Make,
    evaluate: Callable[..., Array],
    cost: int,
) -> Pointwise:
    """Return `make` of operands that are broadcast to `shape`."""
    views: list[View] = []
    parts: list[tuple[Pointwise, int] | None] = []
    for operand in operands:
        parts.append(None if operand is None else (operand, len(views)))
        if operand is not None:
            views += [view.broadcast(shape) for view in operand.views]

    def compute(elements: Sequence[Expr], look_up: LookUp) -> Expr:
        return make(
            [
                None
                if part is None
                else part[0].compute(elements[part[1] : part[1] + len(part[0].views)], look_up)
                for part in parts
            ]
        )

    def together(arrays: Sequence[Array]) -> Array:
        return evaluate(
            *(
                None
                if part is None
                else part[0].evaluate(arrays[part[1] : part[1] + len(part[0].views)])
                for part in parts
            )
        )

    total = cost + sum(operand.cost for operand in operands if operand is not None)
    return Pointwise(shape, dtype, tuple(views), compute, together, total)


def tabulated(x: Pointwise, codes: View, count: int) -> Pointwise:
    """Return `x`, a function of `codes` alone, as a table of `count` entries."""
    kind = np.dtype(codes.buffer.dtype)
    every = np.arange(count).astype(f"u{kind.itemsize}").view(kind)

    def evaluate(arrays: Sequence[Array]) -> Array:
        return x.evaluate([arrays[0]] * len(x.views))

    def compute(elements: Sequence[Expr], look_up: LookUp) -> Expr:
        index = elements[0].astype(f"uint{8 * kind.itemsize}").astype("int32")
        return look_up(np.asarray(evaluate([every])), index)

    return Pointwise(x.shape, x.dtype, (codes,), compute, evaluate, 2, False)


def sole_codes(x: Pointwise) -> View | None:
    """Return the view of codes that `x` is a function of, if there is one and nothing else."""
    first, *others = x.views
    if first.buffer.kind == "constant" or first.buffer.dtype not in CODES:
        return None
    alike = all(
        view.buffer is first.buffer
        and view.base == first.base
        and all(map(np.array_equal, view.axes, first.axes))
        for view in others
    )
    return first if alike else None


def elementwise(
    node: ir.Node,
    operands: Sequence[Pointwise | None],
    shape: tuple[int, ...],
    dtype: str,
    count: Callable[[View], int],
) -> Pointwise:
    """Return what `node` computes.

    Args:
        node: An operator that treats each element alone.
        operands: Its inputs.
        shape: Of its output.
        dtype: Of its output.
        count: How many codes a view can hold, from 0 on.

    Raises:
        UnsupportedOperatorError: It does not treat each element alone; or IEEE does not define it,
            and its input is not codes.
    """
    scalar = SCALARS.get(node.op_type)
    definition = OPERATORS.get(node.op_type)
    alone = definition is not None and definition.function.__module__ == definitions.__name__
    if scalar is None and not alone:
        raise UnsupportedOperatorError(f"{describe(node)}: no kernel for {node.op_type}")
    kernel = bind(node, OPERATORS)

    def evaluate(*arrays: Array | None) -> Array:
        return kernel(*arrays)[0]

    def make(elements: Sequence[Expr | None]) -> Expr:
        assert scalar is not None
        return scalar(node, elements)

    found = combined(operands, shape, dtype, make, evaluate, 1)
    tables = [operand for operand in operands if operand is not None and not operand.known]
    if scalar is not None and not tables:
        return found
    codes = sole_codes(found)
    if codes is not None:
        return tabulated(found, codes, count(codes))
    if scalar is None:
        raise UnsupportedOperatorError(
            f"{describe(node)}: no device computes {node.op_type} to the same bits, and its input"
            " is not a function of codes, which a table could hold"
        )
    return found
