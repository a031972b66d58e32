"""Nodes that treat each element alone, their constants being numbers: evaluated in float64."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.functions import float64_function
from edgeq.graph import float_attribute, rank

Array = NDArray[Any]  # float64, or bool
Kernel = Callable[..., Array]  # of the node and its operands


def is_elementwise(node: ir.Node) -> bool:
    """Whether `node` makes each element of elements at the same place and of single numbers.

    Constants have one element, and no more axes than the rest. The result is float32 or bool.
    """
    if node.domain or node.outputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.BOOL):
        return False
    if node.op_type not in _ARITHMETIC and float64_function(node) is None:
        return False
    ranks = [rank(value) or 0 for value in variables(node)]
    constants = filter(None, map(_tensor, node.inputs))
    return bool(ranks) and all(t.size == 1 and len(t.shape) <= max(ranks) for t in constants)


def is_function(node: ir.Node) -> bool:
    """Whether `node` is elementwise, but computes what IEEE does not define."""
    return not node.domain and (node.op_type == "Pow" or float64_function(node) is not None)


def variables(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of `node` that are no constants, each once."""
    return list(dict.fromkeys(v for v in node.inputs if v is not None and _tensor(v) is None))


def evaluate(node: ir.Node, operands: Sequence[Array | None]) -> Array:
    """Return what an elementwise node makes of its operands, each in float64.

    Where it is not defined the result is what IEEE says: infinities and NaN.
    """
    numbers = [None if array is None else _number(array) for array in operands]
    function = float64_function(node)
    with np.errstate(all="ignore"):
        if function is None:
            return np.asarray(_ARITHMETIC[node.op_type](node, *numbers))
        assert numbers[0] is not None
        return function(numbers[0])


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the constant `value`, not read if it lies in a file; None if it is no constant."""
    return None if value is None else ir.convenience.get_const_tensor(value)


def _number(array: Array) -> Array:
    """Return `array` in float64, truth values as they are; one element has no axes."""
    wide = array if array.dtype == np.bool_ else array.astype(np.float64)
    return wide.reshape(()) if wide.size == 1 else wide


def _of(function: Callable[..., Any]) -> Kernel:
    return lambda node, *operands: np.asarray(function(*operands))


def _clip(node: ir.Node, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _leaky(node: ir.Node, x: Array) -> Array:
    slope = np.float64(np.float32(float_attribute(node, "alpha", 0.01)))
    return np.where(x < 0, slope * x, x)


def _thresholded(node: ir.Node, x: Array) -> Array:
    return np.where(x > np.float32(float_attribute(node, "alpha", 1.0)), x, 0.0)


def _reduce(function: np.ufunc) -> Kernel:
    return lambda node, *operands: function.reduce(np.broadcast_arrays(*operands))


_ARITHMETIC: Mapping[str, Kernel] = MappingProxyType(
    {
        "Abs": _of(np.abs),
        "Add": _of(np.add),
        "And": _of(np.logical_and),
        "Ceil": _of(np.ceil),
        "Clip": _clip,
        "Div": _of(np.divide),
        "Equal": _of(np.equal),
        "Floor": _of(np.floor),
        "Greater": _of(np.greater),
        "GreaterOrEqual": _of(np.greater_equal),
        "LeakyRelu": _leaky,
        "Less": _of(np.less),
        "LessOrEqual": _of(np.less_equal),
        "Max": _reduce(np.maximum),
        "Min": _reduce(np.minimum),
        "Mul": _of(np.multiply),
        "Neg": _of(np.negative),
        "Not": _of(np.logical_not),
        "Or": _of(np.logical_or),
        "PRelu": _of(lambda x, slope: np.where(x < 0, x * slope, x)),
        "Pow": _of(np.power),
        "Relu": _of(lambda x: np.maximum(x, 0.0)),
        "Round": _of(np.rint),
        "Sign": _of(np.sign),
        "Sqrt": _of(np.sqrt),
        "Sub": _of(np.subtract),
        "Sum": _reduce(np.add),
        "ThresholdedRelu": _thresholded,
        "Where": _of(np.where),
    }
)
