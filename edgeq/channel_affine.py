"""What scales and shifts a normalised value by numbers that are the same along its rows.

    y = normalised * gamma + beta            one gamma and one beta for all, or one for each channel

They stand in the normalisation itself, or in the Mul and Add by constants that alone read it: there
GroupNorm has them in exports, behind a Reshape that divides groups into channels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.dims import dim_product, same_dim
from edgeq.graph import constant
from edgeq.normalization import Normalization, tail_nodes
from edgeq.qdq import Result, result

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """What stands between a normalised value and the value that others read.

    Attributes:
        gamma: The factors: one for each channel, or one for all.
        beta: The summands, as many.
        output: The value that is read: the result of the normalisation, or of what follows it.
        y: How `output` is quantized; None where it is read as float32.
    """

    gamma: Float64
    beta: Float64
    output: ir.Value
    y: Result | None


def channel_affine(found: Normalization) -> ChannelAffine | None:
    """Return what scales and shifts `found`; None where that differs along a row.

    What follows the normalisation is taken in where a QuantizeLinear follows that.
    """
    gamma, beta = _numbers(found.gamma, 1.0), _numbers(found.beta, 0.0)
    if not found.groups and max(gamma.size, beta.size) > 1:
        return None
    output = found.node.outputs[0]
    own = _of(gamma, beta, output)
    return own if own.y is not None else _with_tail(found, own) or own


def _numbers(parameter: NDArray[np.float32] | None, default: float) -> Float64:
    """Return the numbers of a parameter; one number that is repeated is returned once."""
    if parameter is None:
        return np.array([default])
    numbers = parameter.astype(np.float64).reshape(-1)
    return numbers[:1] if np.all(numbers == numbers[0]) else numbers


def _of(gamma: Float64, beta: Float64, output: ir.Value) -> ChannelAffine:
    gamma, beta = np.broadcast_arrays(gamma, beta)
    y = result(output)
    if y is not None and y.qparams.axis is not None:
        y = None
    return ChannelAffine(gamma, beta, output, y)


def _with_tail(found: Normalization, own: ChannelAffine) -> ChannelAffine | None:
    """Return the same with all that follows up to codes; None if it has another form."""
    gamma, beta, value = own.gamma, own.beta, own.output
    for node in tail_nodes(found.node):
        source, value = value, node.outputs[0]
        if node.op_type == "Reshape":
            if not found.groups or not _keeps_samples(source, value):
                return None
            continue
        operands = [v for v in node.inputs if v is not source]
        numbers = _per_channel(constant(operands[0]), value, found.groups)
        if numbers is None:
            return None
        if node.op_type == "Mul":
            gamma, beta = gamma * numbers, beta * numbers
        else:
            beta = beta + numbers
    affine = _of(gamma, beta, value)
    return None if affine.y is None else affine


def _keeps_samples(before: ir.Value, after: ir.Value) -> bool:
    """Whether a sample has as many elements: then samples, and groups in them, stay in place."""
    sizes = [None if v.shape is None else dim_product(list(v.shape)[1:]) for v in (before, after)]
    old, new = sizes
    return old is not None and new is not None and same_dim(old, new)


def _per_channel(array: NDArray[Any] | None, value: ir.Value, groups: int) -> Float64 | None:
    """Return the numbers of an operand that has one for each channel of `value`, or one for all."""
    if array is None or value.shape is None:
        return None
    ndim = len(value.shape)
    channels = value.shape[1] if groups and ndim > 1 else 0
    shape = (channels, *(1,) * (ndim - 2))
    fits = isinstance(channels, int) and channels and channels % groups == 0
    if array.size != 1 and not (fits and array.shape in (shape, (1, *shape))):
        return None
    return _numbers(array, 0.0)
