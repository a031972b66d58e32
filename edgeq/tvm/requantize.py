"""From accumulators to codes: `edgeq.numerics.requantize` as TIR.

The real value is clamped to integers first, so it is below 2**22 and adding 1.5 * 2**23 rounds it
half to even in the last bits of the sum: no CPU needs an instruction for it.
"""

from edgeq.tvm import emit
from edgeq.tvm.emit import Buffer, Expr
from edgeq.tvm.linear_problem import Codes

_MAGIC = 12582912.0
_MAGIC_BITS = 0x4B400000


def requantize(acc: Expr, multiplier: Expr, y: Codes | None, lanes: int) -> Expr:
    """Return codes, or `float32(acc) * multiplier` where `y` is None."""
    real = emit.bind(emit.cast(acc, "float32", lanes) * multiplier)
    if y is None:
        return real
    low, high = (emit.constant(q - y.zero_point, "float32", lanes) for q in (y.qmin, y.qmax))
    real = emit.bind(emit.minimum(real, high))
    real = emit.bind(emit.maximum(real, low))
    bits = emit.reinterpret(real + emit.constant(_MAGIC, "float32", lanes), "int32", lanes)
    code = bits + emit.constant(y.zero_point - _MAGIC_BITS, "int32", lanes)
    return emit.bind(emit.cast(code, y.dtype, lanes))


def store_first(y: Buffer, start: Expr, value: Expr, lanes: int, count: int) -> None:
    """Write the first `count` of `lanes` lanes, and nothing behind them."""
    if count == lanes:
        emit.store(y, start, value, lanes)
        return
    for at, size in emit.pieces(count, lanes):
        emit.store(y, start + at, emit.part(value, at, size), size)
