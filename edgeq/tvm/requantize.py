"""From accumulators to codes: `edgeq.numerics.requantize` as TIR.

The real value is clamped to integers first, so it is below 2**22 and adding 1.5 * 2**23 rounds it
half to even in the last bits of the sum: no CPU needs an instruction for it.
"""

from edgeq.tvm import emit
from edgeq.tvm.arithmetic import MAGIC, MAGIC_BITS
from edgeq.tvm.emit import Buffer, Expr
from edgeq.tvm.linear_problem import Codes

_TOGETHER = 16


def requantize(acc: Expr, multiplier: Expr, y: Codes | None, lanes: int) -> Expr:
    """Return codes in int32, or `float32(acc) * multiplier` where `y` is None."""
    real = emit.bind(emit.cast(acc, "float32", lanes) * multiplier)
    if y is None:
        return real
    low, high = (emit.constant(q - y.zero_point, "float32", lanes) for q in (y.qmin, y.qmax))
    real = emit.bind(emit.minimum(real, high))
    real = emit.bind(emit.maximum(real, low))
    bits = emit.reinterpret(real + emit.constant(MAGIC, "float32", lanes), "int32", lanes)
    return emit.bind(bits + emit.constant(y.zero_point - MAGIC_BITS, "int32", lanes))


def store_first(y: Buffer, start: Expr, values: list[Expr], lanes: int, count: int) -> None:
    """Narrow and write the first `count` lanes of vectors that follow each other.

    Vectors are joined up to `_TOGETHER` lanes: CPUs narrow several to one. Nothing is written
    behind the last.
    """
    each = max(1, _TOGETHER // lanes)
    for first in range(0, len(values), each):
        group = values[first : first + each]
        wide = lanes * len(group)
        joined = group[0] if len(group) == 1 else emit.joined(group, lanes)
        value = emit.bind(emit.cast(joined, str(y.dtype), wide))
        at = start + first * lanes
        used = min(wide, count - first * lanes)
        if used == wide:
            emit.store(y, at, value, wide)
            continue
        for place, size in emit.pieces(used, wide):
            emit.store(y, at + place, emit.part(value, place, size), size)
