"""QuantizeLinear, DequantizeLinear and integer products as functions of views."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.ir import Expr

from edgeq.errors import UnsupportedOperatorError
from edgeq.numerics.qtype import QType
from edgeq.tvm.arithmetic import const, divided, dtype_of, saturated
from edgeq.tvm.elementwise import combined
from edgeq.tvm.pointwise import Pointwise

Array = NDArray[Any]
Along = Callable[[Array], Pointwise]  # a parameter for each channel, as a tensor that broadcasts


def dequantized(
    codes: Pointwise, scale: Array, zero_point: Array, along: Along, evaluate: Callable[..., Array]
) -> Pointwise:
    """Return `float32(codes - zero_point) * scale`."""
    if codes.dtype not in ("uint8", "int8", "uint16", "int16", "int32"):
        raise UnsupportedOperatorError(f"DequantizeLinear of {codes.dtype}")
    wide = "int64" if codes.dtype == "int32" and zero_point.any() else "int32"

    def make(x: Sequence[Expr | None]) -> Expr:
        units, factor, *zero = x
        assert units is not None and factor is not None
        units = units.astype(wide)
        if zero:
            assert zero[0] is not None
            units = units - zero[0].astype(wide)
        return units.astype("float32") * factor

    parameters = [along(scale)] + ([along(zero_point)] if zero_point.any() else [])
    return combined(
        [codes, *parameters], codes.shape, "float32", make, lambda x, *rest: evaluate(x), 2
    )


def quantized(
    x: Pointwise,
    scale: Pointwise | np.float32,
    zero_point: Pointwise | int,
    qtype: QType,
    evaluate: Callable[..., Array],
) -> Pointwise:
    """Return `saturate(round_half_even(x / scale) + zero_point)`."""
    if qtype.bits > 16:
        raise UnsupportedOperatorError(f"QuantizeLinear to {qtype.name}")
    operands, dtype = [x], qtype.dtype.name
    if isinstance(scale, Pointwise):
        operands.append(scale)
    if isinstance(zero_point, Pointwise):
        operands.append(zero_point)

    def make(v: Sequence[Expr | None]) -> Expr:
        assert v[0] is not None and v[-1] is not None
        ratio = v[0] / v[1] if isinstance(scale, Pointwise) else divided(v[0], scale)
        zero = v[-1].astype("int32") if isinstance(zero_point, Pointwise) else zero_point
        return saturated(ratio, zero, qtype.qmin, qtype.qmax, dtype)

    return combined(operands, x.shape, dtype, make, evaluate, 5)


def product(
    a: Pointwise,
    b: Pointwise,
    zeros: tuple[int, int],
    finish: Callable[[Expr], Expr],
    shape: tuple[int, ...],
    dtype: str,
    evaluate: Callable[..., Array],
) -> Pointwise:
    """Return `finish((a - za) * (b - zb))`, the product in int32."""

    def make(x: Sequence[Expr | None]) -> Expr:
        units = []
        for codes, zero in zip(x, zeros, strict=True):
            assert codes is not None
            wide = codes.astype("int32")
            units.append(wide - const(zero, "int32") if zero else wide)
        return finish(units[0] * units[1])

    return combined([a, b], shape, dtype, make, evaluate, 5)


def requantized(acc: Expr, multiplier: Expr, zero_point: int, qtype: QType) -> Expr:
    """Return `saturate(round_half_even(float32(acc) * multiplier) + zero_point)`."""
    assert dtype_of(acc) == "int32"
    real = acc.astype("float32") * multiplier
    return saturated(real, zero_point, qtype.qmin, qtype.qmax, qtype.dtype.name)
