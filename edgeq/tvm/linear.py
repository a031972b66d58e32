"""Integer Conv and Gemm for a device: which kernel, and what it needs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import UnsupportedOperatorError
from edgeq.tvm.dense import lower_dense
from edgeq.tvm.depthwise import lower_depthwise
from edgeq.tvm.depthwise_dot import lower_depthwise_dot
from edgeq.tvm.dot import ISAS, Isa
from edgeq.tvm.linear_problem import Codes, LinearProblem
from edgeq.tvm.lowered_linear import LoweredLinear, Step
from edgeq.tvm.plain_linear import lower_plain

__all__ = ["ISAS", "Codes", "Isa", "LinearProblem", "LoweredLinear", "Step", "lower_linear"]


def lower_linear(
    symbol: str,
    problem: LinearProblem,
    weight: NDArray[Any],
    weight_zero: NDArray[Any],
    bias: NDArray[Any] | None,
    multiplier: NDArray[Any],
    isa: Isa,
) -> LoweredLinear:
    """Return the code and the data of a linear operator.

    `y = requantize(sum((x - x_zero) * weight) + bias, multiplier)`; the caller has proven that no
    accumulator leaves int32.

    Args:
        symbol: Its name in C; prefix of all symbols.
        problem: What is computed.
        weight: int8, `(out_c, in_c / groups, kernel_h, kernel_w)`.
        weight_zero: Zero points of the weights; 0.
        bias: int32, `(out_c,)`.
        multiplier: float32, `(out_c,)` or `(1,)`.
        isa: How to multiply.

    Raises:
        UnsupportedOperatorError: A weight's zero point is not 0.
    """
    if np.any(weight_zero):
        raise UnsupportedOperatorError(f"{symbol}: weights with a zero point other than 0")
    shape = (problem.out_c, problem.depth, problem.kernel_h, problem.kernel_w)
    assert weight.dtype == np.int8 and weight.shape == shape, (weight.dtype, weight.shape, shape)
    assert min(problem.pads) >= 0 and problem.out_h > 0 and problem.out_w > 0, problem
    if bias is None:
        bias = np.zeros(problem.out_c, np.int32)
    multiplier = multiplier.reshape(-1)
    if isa.is_scalar or (problem.groups > 1 and not problem.is_depthwise):
        return lower_plain(symbol, problem, weight, bias, multiplier)
    if problem.is_depthwise:
        if isa.lanes >= 8 and isa.form != "widen":
            made = lower_depthwise_dot(symbol, problem, weight, bias, multiplier, isa)
            if made is not None:
                return made
        return lower_depthwise(symbol, problem, weight, bias, multiplier, isa)
    return lower_dense(symbol, problem, weight, bias, multiplier, isa)
