"""What the lowering rules read of a node."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import UnsupportedOperatorError
from edgeq.operators.binding import describe

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering

Rule = Callable[["Lowering", ir.Node], None]


def source(node: ir.Node, number: int = 0) -> ir.Value:
    """Return an input that the operator needs."""
    value = node.inputs[number]
    assert value is not None
    return value


def constant_input(to: "Lowering", node: ir.Node, number: int) -> NDArray[Any] | None:
    """Return an input that is known; None if there is none.

    Raises:
        UnsupportedOperatorError: It is computed.
    """
    value = node.inputs[number] if len(node.inputs) > number else None
    if value is None:
        return None
    if str(value.name) not in to.constants:
        raise UnsupportedOperatorError(f"{describe(node)}: input {number} is not constant")
    return to.constants[str(value.name)]
