"""ONNX Runtime's fused operators on quantized tensors, as each kind of CPU computes them.

They are what ONNX Runtime makes of a QDQ model (`edgeq.optimized`): one function for each, whose
parameters are the operator's inputs. The formulas are those of `edgeq.numerics.ort_kernels`; where
the accumulator of a product saturates, `edgeq.numerics.saturating`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.cpus import Cpu
from edgeq.errors import UnpredictableError
from edgeq.numerics import ort_kernels as k
from edgeq.numerics.fma import fma
from edgeq.numerics.requantize import multiplier, requantize
from edgeq.numerics.saturating import lost_products
from edgeq.numerics.windows import AutoPad, Windows, at, pad, windows
from edgeq.operators.binding import Operator
from edgeq.operators.pooling import window_counts
from edgeq.operators.runtime_functions import FUNCTIONS, of_result, per_tensor

Array = NDArray[Any]


def kernels(cpu: Cpu) -> Mapping[str, Operator]:
    """Return the fused operators as `cpu` computes them, by name."""
    return {
        "MatMulIntegerToFloat": Operator(_with(cpu, _matmul_to_float)),
        "QGemm": Operator(_with(cpu, _gemm)),
        "QLinearAdd": Operator(_with(_kinds(k.ADD_KERNELS, cpu), _binary)),
        "QLinearAveragePool": Operator(_average_pool),
        "QLinearConcat": Operator(_concat),
        "QLinearConv": Operator(_with(cpu, _conv)),
        "QLinearGlobalAveragePool": Operator(_global_average_pool),
        "QLinearMatMul": Operator(_with(cpu, _matmul)),
        "QLinearMul": Operator(_with(_kinds(k.MUL_KERNELS, cpu), _binary)),
        **{name: Operator(function) for name, function in FUNCTIONS.items()},
    }


def _with(first: object, function: Callable[..., Array]) -> Callable[..., Array]:
    """Return `function` with its first parameter given; the others keep their types."""
    bound = partial(function, first)
    bound.__dict__.update(__annotations__=function.__annotations__)
    return bound


def _kinds(rows: tuple[k.BinaryKernel, ...], cpu: Cpu) -> Mapping[str, k.Binary]:
    return {row.order: row.compute for row in rows if row.cpu == cpu.kernels}


# -- products --------------------------------------------------------------------------------------


def product(cpu: Cpu, a: Array, za: Array | None, b: Array, zb: Array | None) -> Array:
    """Return the accumulators of `(a - za) @ (b - zb)` as `cpu` adds them up, in float64.

    Args:
        cpu: The CPU.
        a: Codes `(..., rows, depth)`.
        za: Their zero point, per tensor, or None.
        b: Codes `(..., depth, columns)`.
        zb: Their zero points, per tensor or per column, or None.

    Raises:
        UnpredictableError: The sum of two products may overflow.
    """
    if cpu.overflows and _overflows(a, b):
        raise UnpredictableError("two products of -128 * -128 may overflow 16 bits there")
    zero_a = 0 if za is None else int(np.asarray(za).reshape(-1)[0])
    zero_b = np.zeros(1) if zb is None else zb.astype(np.float64)
    acc = np.matmul(a.astype(np.float64) - zero_a, b.astype(np.float64) - zero_b)
    if cpu.saturates and a.dtype == np.uint8 and b.dtype == np.int8:
        acc += _lost(a, b)
    return np.asarray(acc)


def _overflows(a: Array, b: Array) -> bool:
    """Whether -128 meets -128; uint8 activations are moved to int8 first."""
    least = -128 if a.dtype == np.int8 else 0
    return bool(b.dtype == np.int8 and np.any(b == -128) and np.any(a == least))


def _lost(a: Array, b: Array) -> Array:
    if b.ndim <= 2:
        rows = a.reshape(-1, a.shape[-1])
        return lost_products(rows, b).reshape(*a.shape[:-1], b.shape[-1])
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (np.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (a, b))
    parts = [lost_products(a[i], b[i]) for i in np.ndindex(*lead)]
    return np.stack(parts).reshape(*lead, a.shape[-2], b.shape[-1])


def _matmul(
    cpu: Cpu, a: Array, sa: Array, za: Array, b: Array, sb: Array, zb: Array, sy: Array, zy: Array
) -> Array:
    acc = product(cpu, a, za, b, zb)
    y = of_result(sy, zy, a)
    return requantize(acc, multiplier(_flat(sa), _flat(sb), y.scale), y.zero_point, y.qtype, -1)


def _matmul_to_float(
    cpu: Cpu,
    a: Array,
    b: Array,
    sa: Array,
    sb: Array,
    za: Array | None = None,
    zb: Array | None = None,
    bias: Array | None = None,
) -> Array:
    acc = product(cpu, a, za, b, zb).astype(np.float32)
    scale = np.asarray(_flat(sa) * _flat(sb), np.float32)
    if bias is None:
        return np.asarray(acc * scale)
    return fma(acc, scale, bias) if cpu.arm else np.asarray(acc * scale + bias)


def _gemm(
    cpu: Cpu,
    a: Array,
    sa: Array,
    za: Array,
    b: Array,
    sb: Array,
    zb: Array,
    c: Array | None = None,
    sy: Array | None = None,
    zy: Array | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    a, b = (a.T if transA else a), (b.T if transB else b)
    acc = product(cpu, a, za, b, zb)
    if c is not None:
        acc = acc + c
    scale = np.asarray(np.float32(alpha) * _flat(sa) * _flat(sb), np.float32)
    if sy is None:
        return np.asarray(acc.astype(np.float32) * scale)
    y = of_result(sy, zy, a)
    return requantize(acc, np.asarray(scale / y.scale), y.zero_point, y.qtype, -1)


def _flat(scale: Array) -> Array:
    return scale.reshape(()) if scale.size == 1 else scale.reshape(-1)


def _conv(
    cpu: Cpu,
    x: Array,
    sx: Array,
    zx: Array,
    w: Array,
    sw: Array,
    zw: Array,
    sy: Array,
    zy: Array,
    bias: Array | None = None,
    *,
    auto_pad: AutoPad = "NOTSET",
    channels_last: int = 0,
    dilations: tuple[int, ...] = (),
    group: int = 1,
    kernel_shape: tuple[int, ...] = (),
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Array:
    del kernel_shape, channels_last
    layout = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    patches = _patches(x, layout, int(zx))
    depth, made = w.shape[1], len(w) // group
    acc = np.empty((len(x), len(w), int(np.prod(layout.output))))
    # A kernel of its own multiplies channel by channel, in 16 bits that hold each product.
    depthwise = depth == 1 and made == 1
    exact = replace(cpu, saturates=False, overflows=cpu.arm) if depthwise else cpu
    zeros = np.broadcast_to(zw.reshape(-1), len(w))
    for g in range(group):
        rows = patches[..., g * depth : (g + 1) * depth].reshape(-1, w[0].size)
        mine = slice(g * made, (g + 1) * made)
        columns = np.moveaxis(w[mine], 1, -1).reshape(made, -1).T
        found = product(exact, rows, zx, columns, zeros[mine])
        acc[:, mine] = found.reshape(len(x), -1, made).swapaxes(1, 2)
    if bias is not None:
        acc += bias[:, None]
    y = of_result(sy, zy, x)
    codes = requantize(acc, multiplier(_flat(sx), _flat(sw), y.scale), y.zero_point, y.qtype, 1)
    return np.asarray(codes).reshape(len(x), len(w), *layout.output)


def _patches(x: Array, layout: Windows, zero_point: int) -> Array:
    """Return `(samples, places, elements of the window, channels)`: what a kernel multiplies."""
    padded = pad(x, layout, zero_point)
    views = [at(padded, offset).reshape(*x.shape[:2], -1) for offset in layout.offsets()]
    return np.moveaxis(np.stack(views, 2), (1, 3), (3, 1))


# -- elementwise -----------------------------------------------------------------------------------


def _binary(
    kinds: Mapping[str, k.Binary],
    a: Array,
    sa: Array,
    za: Array | None,
    b: Array,
    sb: Array,
    zb: Array | None,
    sy: Array,
    zy: Array | None = None,
) -> Array:
    compute = kinds.get(_order(a.shape, b.shape), kinds[""])
    a_params, b_params = per_tensor(sa, za, a.dtype), per_tensor(sb, zb, b.dtype)
    return compute(a, a_params, b, b_params, of_result(sy, zy, a))


def _order(a: tuple[int, ...], b: tuple[int, ...]) -> str:
    """Return which operand the kernel reads as one number at a time: the innermost axis decides."""
    ndim = max(len(a), len(b))
    sizes = ((1,) * (ndim - len(shape)) + shape for shape in (a, b))
    for one, other in reversed(list(zip(*sizes, strict=True))):
        if one != other:
            return f"{'first' if one == 1 else 'second'} operand broadcast"
        if one > 1:
            break
    return ""


def _concat(sy: Array, zy: Array, *operands: Array, axis: int) -> Array:
    y = per_tensor(sy, zy, zy.dtype)
    parts = [
        k.qlinear_concat(codes, per_tensor(scale, zero_point, codes.dtype), y)
        for codes, scale, zero_point in zip(
            operands[::3], operands[1::3], operands[2::3], strict=True
        )
    ]
    return np.concatenate(parts, axis)


# -- pools -----------------------------------------------------------------------------------------


def _average_pool(
    x: Array,
    sx: Array,
    zx: Array | None,
    sy: Array,
    zy: Array | None = None,
    *,
    kernel_shape: tuple[int, ...],
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    pads: tuple[int, ...] = (),
    strides: tuple[int, ...] = (),
) -> Array:
    if tuple(x.shape[2:]) == tuple(kernel_shape) and not any(pads):
        return _global_average_pool(x, sx, zx, sy, zy)
    del channels_last
    params, y = per_tensor(sx, zx, x.dtype), of_result(sy, zy, x)
    layout = windows(x.shape[2:], kernel_shape, strides, (), pads, auto_pad, bool(ceil_mode))
    padded = pad(params.dequantize(x), layout)
    first, *others = layout.offsets()
    total = at(padded, first).copy()
    for offset in others:
        total += at(padded, offset)
    counts = window_counts(layout, bool(count_include_pad)).astype(np.float32)
    mean = np.asarray(total / counts, np.float32)
    return k.qlinear_average_pool(mean, y)


def _global_average_pool(
    x: Array,
    sx: Array,
    zx: Array | None,
    sy: Array,
    zy: Array | None = None,
    *,
    channels_last: int = 0,
) -> Array:
    del channels_last
    params, y = per_tensor(sx, zx, x.dtype), of_result(sy, zy, x)
    count = int(np.prod(x.shape[2:]))
    axes = tuple(range(2, x.ndim))
    acc = x.astype(np.int64).sum(axes, keepdims=True) - count * int(params.zero_point)
    return k.qlinear_global_average_pool(acc, count, params, y)
