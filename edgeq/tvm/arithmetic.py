"""Scalar arithmetic as TIR: IEEE operations, rounding and saturation that every CPU can do.

Rounding to nearest, ties to even, is done by addition: `x + 1.5 * 2**23` has a unit of 1 in its
last place. LLVM and C compilers keep the addition as it is, for reassociation is never allowed.
"""

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr

MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds |x| <= 2**22 to an integer, held in the low bits
MAGIC_BITS = 0x4B400000
EXACT = 8388608.0  # 2**23: floats from here on are integers


def dtype_of(x: Expr) -> str:
    """Return the dtype of a scalar, by numpy's name."""
    return str(x.ty.dtype)


def const(value: float | int | np.generic, dtype: str) -> Expr:
    """Return a constant."""
    return tirx.const(np.dtype(dtype).type(value).item(), dtype)


def clip(x: Expr, low: Expr, high: Expr) -> Expr:
    """Return `x` within limits; NaN becomes `low`."""
    return tirx.min(tirx.max(x, low), high)


def round_to_int(x: Expr) -> Expr:
    """Return float32 `x`, at most 2**22 in magnitude, as int32: to nearest, ties to even."""
    shifted = x + const(MAGIC, "float32")
    return tirx.reinterpret("int32", shifted) - const(MAGIC_BITS, "int32")


def absolute(x: Expr) -> Expr:
    """Return the magnitude; of a float by its bits, for C's `fabs` is no intrinsic of TVM."""
    dtype = dtype_of(x)
    if not dtype.startswith("float"):
        return tirx.Select(x < const(0, dtype), -x, x)
    bits = np.finfo(dtype).bits
    magnitude = const((1 << (bits - 1)) - 1, f"uint{bits}")
    return tirx.reinterpret(dtype, tirx.bitwise_and(tirx.reinterpret(f"uint{bits}", x), magnitude))


def rint(x: Expr) -> Expr:
    """Return float32 `x` rounded to an integer, ties to even, with the sign that it had."""
    bits = tirx.reinterpret("uint32", x)
    sign = tirx.bitwise_and(bits, const(0x80000000, "uint32"))
    size = absolute(x)
    rounded = (size + const(EXACT, "float32")) - const(EXACT, "float32")
    signed = tirx.bitwise_or(tirx.reinterpret("uint32", rounded), sign)
    return tirx.Select(size < const(EXACT, "float32"), tirx.reinterpret("float32", signed), x)


def saturated(real: Expr, zero_point: Expr | int, low: int, high: int, dtype: str) -> Expr:
    """Return `clip(rint(real) + zero_point, low, high)` in `dtype`; NaN becomes `low`.

    The limits are integers: clipping first is the same, and keeps what is rounded small.
    """
    if isinstance(zero_point, int):
        limits = [const(limit - zero_point, "float32") for limit in (low, high)]
        units = round_to_int(clip(real, *limits))
        if not zero_point:
            return units.astype(dtype)
        return (units + const(zero_point, "int32")).astype(dtype)
    limits = [(const(limit, "int32") - zero_point).astype("float32") for limit in (low, high)]
    return (round_to_int(clip(real, *limits)) + zero_point).astype(dtype)


def divided(x: Expr, scale: NDArray[np.float32] | np.float32) -> Expr:
    """Return `x / scale`; a product where that is the same."""
    fraction, exponent = np.frexp(np.float32(scale))
    if fraction == 0.5 and -126 < exponent < 126:
        return x * const(np.float32(1) / np.float32(scale), "float32")
    return x / const(np.float32(scale), "float32")


def lowest(dtype: str) -> Expr:
    """Return the smallest number: of floats, minus infinity."""
    kind = np.dtype(dtype)
    return const(-np.inf if kind.kind == "f" else np.iinfo(kind).min, dtype)


def highest(dtype: str) -> Expr:
    """Return the largest number: of floats, infinity."""
    kind = np.dtype(dtype)
    return const(np.inf if kind.kind == "f" else np.iinfo(kind).max, dtype)
