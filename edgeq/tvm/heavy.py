"""Operators that are kernels of their own: one rule each."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx_ir as ir
from tvm import tirx
from tvm.ir import Expr

from edgeq.errors import UnsupportedOperatorError
from edgeq.graph import int_attribute
from edgeq.operators.binding import describe
from edgeq.tvm.arithmetic import const
from edgeq.tvm.gathers import GATHERS
from edgeq.tvm.joints import JOINTS
from edgeq.tvm.loops import Nest, nested
from edgeq.tvm.operands import Rule, constant_input, source
from edgeq.tvm.pools import POOLS
from edgeq.tvm.products import write_product
from edgeq.tvm.reductions import REDUCTIONS
from edgeq.tvm.views import View

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering


def _cumulative_sum(to: "Lowering", node: ir.Node) -> None:
    if int_attribute(node, "exclusive", 0) or int_attribute(node, "reverse", 0):
        raise UnsupportedOperatorError(f"{describe(node)}: exclusive or reverse")
    output, x = node.outputs[0], to.pointwise(source(node))
    along = constant_input(to, node, 1)
    assert along is not None
    axis = int(along.reshape(())) % len(x.shape)
    y = View.of(to.new(output))
    nest = Nest(to.builder.constant)
    order = [axis, *(a for a in range(len(x.shape)) if a != axis)]  # sums run beside each other

    def body(i: Sequence[Expr]) -> tirx.Stmt:
        where: list[Expr] = [const(0, "int32")] * len(order)
        for a, index in zip(order, i, strict=True):
            where[a] = index
        before = list(where)
        before[axis] = where[axis] - 1
        value = nest.value(x, where)
        if x.shape[axis] == 1:
            return nest.store(y, where, value)
        return tirx.IfThenElse(
            where[axis] > 0,
            nest.store(y, where, nest.load(y, before) + value),
            nest.store(y, where, value),
        )

    function = nest.function(nested([x.shape[a] for a in order], body))
    to.builder.add(function, nest.arguments, y.buffer, f"CumSum {output.name}")


def _matmul_integer(to: "Lowering", node: ir.Node) -> None:
    zeros = [constant_input(to, node, number) for number in (2, 3)]
    a, b = (0 if zero is None else int(zero.reshape(())) for zero in zeros)
    operands = source(node), source(node, 1)
    write_product(to, operands, node.outputs[0], (a, b), lambda acc: acc)


def _matmul(to: "Lowering", node: ir.Node) -> None:
    """A product of floats whose sums are exact: in any order the same."""
    operands = source(node), source(node, 1)
    write_product(to, operands, node.outputs[0], (0, 0), lambda total: total)


def _arg_max(to: "Lowering", node: ir.Node) -> None:
    raise UnsupportedOperatorError(
        f"{describe(node)}: not on devices; cut the graph in front of it"
    )


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **GATHERS,
        **JOINTS,
        **POOLS,
        **REDUCTIONS,
        "ArgMax": _arg_max,
        "CumSum": _cumulative_sum,
        "MatMul": _matmul,
        "MatMulInteger": _matmul_integer,
    }
)
