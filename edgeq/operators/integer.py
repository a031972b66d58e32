"""Integer linear groups: codes in, codes out, with exact accumulators in between.

    acc = sum((x - zx) * (w - zw)) + bias          exact, within int32
    y = saturate(round_half_even(float32(acc) * M) + zy),  M = float32(float32(sx * sw) / sy)

The dtype that carries the accumulators is chosen per node, by proof, from its weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import ModelError, UnsupportedOperatorError
from edgeq.graph import int_attribute, ints_attribute, string_attribute
from edgeq.numerics import linear
from edgeq.numerics.affine import QParams
from edgeq.numerics.magnitudes import magnitude_sums
from edgeq.numerics.parallel import blocks, for_each
from edgeq.numerics.requantize import multiplier, requantize_in_place
from edgeq.numerics.windows import AutoPad, windows
from edgeq.operators.binding import Kernel, describe
from edgeq.operators.large_weights import is_large, multiply
from edgeq.qdq import LinearGroup

Array = NDArray[Any]
_CONV_ATTRIBUTES = {"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"}


@dataclass(frozen=True, eq=False)
class Finish:
    """What becomes of the accumulators.

    Attributes:
        scale: float32, `(rows, 1)`, `(1, columns)` or `(1, 1)`: M, or `sx * sw` for a float result.
        y: Where the codes go; None for a float32 result.
    """

    scale: NDArray[np.float32]
    y: QParams | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the result."""
        return np.dtype(np.float32) if self.y is None else self.y.qtype.dtype

    def __call__(self, acc: Array, rows: slice = slice(None)) -> Array:
        """Return what becomes of `acc` `(rows, ...)`, which may be destroyed, in float32.

        `rows` says which rows of `scale` these are.
        """
        scale = self.scale[rows] if len(self.scale) > 1 else self.scale
        scale = scale.reshape(scale.shape + (1,) * (acc.ndim - 2))
        if self.y is None:
            return acc.astype(np.float32, copy=False) * scale
        return requantize_in_place(acc, scale, int(self.y.zero_point), self.y.qtype)


def integer_kernel(group: LinearGroup, *, real: bool = False) -> Kernel:
    """Return the function that executes `group` on the codes of x (and of w, if not constant).

    Args:
        group: The integer linear op.
        real: Give `float32(acc) * float32(sx * sw)`, the value before it is quantized.

    Raises:
        ModelError: An accumulator may leave int32; the message names the node.
    """
    if real:
        return _when_called(group)
    return _kernel(group, real=False)


def _when_called(group: LinearGroup) -> Kernel:
    """Return the kernel of the float result, made on its first call: few are ever called."""
    made: list[Kernel] = []

    def kernel(*codes: Array) -> tuple[Array, ...]:
        if not made:
            made.append(_kernel(group, real=True))
        return made[0](*codes)

    return kernel


def _kernel(group: LinearGroup, *, real: bool) -> Kernel:
    maker = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul, "Mul": _mul}[group.node.op_type]
    run = maker(group, _finish(group, real=real))

    def kernel(*codes: Array) -> tuple[Array, ...]:
        return (run(*codes),)

    return kernel


def dynamic_operands(group: LinearGroup) -> list[ir.Value]:
    """Return the values of codes that the kernel takes, in order."""
    always = group.node.op_type == "Mul"
    operands = [group.x] + ([group.w] if always or group.w.array is None else [])
    return [operand.codes for operand in operands]


def _finish(group: LinearGroup, *, real: bool) -> Finish:
    x, w = group.x.qparams.scale, group.w.qparams.scale
    quantized = group.y is not None and not real
    scale = np.asarray(x * w, np.float32)
    if quantized:
        assert group.y is not None
        scale = multiplier(x, w, group.y.qparams.scale)
    shape = (-1, 1) if group.node.op_type == "Conv" else (1, -1)
    return Finish(scale.reshape(shape), group.y.qparams if quantized and group.y else None)


def _largest(qparams: QParams) -> int:
    """Return the largest `|code - zero_point|`."""
    zero = qparams.zero_point.astype(np.int64)
    return int(max(np.max(zero - qparams.qtype.qmin), np.max(qparams.qtype.qmax - zero)))


def _units(codes: Array, zero_point: Array, dtype: type[np.floating[Any]]) -> Array:
    units = codes.astype(dtype)
    if np.any(zero_point):
        units -= np.asarray(zero_point, dtype)
    return units


def _weight(group: LinearGroup) -> Array:
    codes = group.w.array
    assert codes is not None
    shape = [1] * codes.ndim
    if group.w.qparams.axis is not None:
        shape[group.w.qparams.axis] = -1
    return codes.astype(np.int32) - group.w.qparams.zero_point.reshape(shape)


def _magnitudes(bias: Array | None) -> Array | int:
    return 0 if bias is None else np.abs(bias.astype(np.int64))


def _bias(group: LinearGroup) -> Array | None:
    return None if group.bias is None else group.bias.array


def _dtype(
    group: LinearGroup, products: Array | int, bias: Array | int
) -> type[np.float32] | type[np.float64]:
    """Choose by the bounds per channel; of all channels, the largest sum must fit int32."""
    total = np.asarray(products, np.int64) + np.asarray(bias, np.int64)
    largest = int(np.max(products, initial=0))
    try:
        return linear.exact_dtype(largest, int(total.max(initial=0)) - largest)
    except OverflowError as error:
        raise ModelError(
            f"{describe(group.node)}: {error}; keep it float, or use smaller weights"
        ) from None


def _conv(group: LinearGroup, finish: Finish) -> Callable[..., Array]:
    node, w, bias = group.node, _weight(group), _bias(group)
    unknown = sorted(set(node.attributes) - _CONV_ATTRIBUTES)
    if unknown:
        raise UnsupportedOperatorError(f"{describe(node)}: attribute {unknown[0]!r}")
    if ints_attribute(node, "kernel_shape", w.shape[2:]) != w.shape[2:]:
        raise ModelError(f"{describe(node)}: kernel_shape does not fit the weight {w.shape}")
    dtype = _dtype(group, linear.product_bound(w, _largest(group.x.qparams)), _magnitudes(bias))
    matrices = linear.conv_weights(w.astype(dtype), int_attribute(node, "group", 1))
    offset = None if bias is None else linear.Bias.of(bias, dtype)
    zero = int(group.x.qparams.zero_point)
    auto_pad: AutoPad = string_attribute(node, "auto_pad", "NOTSET")  # type: ignore[assignment]  # windows() reads unknown text as ONNX's default
    pads, strides, dilations = (
        ints_attribute(node, name, ()) for name in ("pads", "strides", "dilations")
    )

    def run(x: Array) -> Array:
        layout = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
        out = np.empty((len(x), len(w), *layout.output), finish.dtype)

        def store(samples: slice, channels: slice, rows: slice, acc: Array) -> None:
            if offset is not None:
                offset.add_to(acc, channels)
            linear.put(out, samples, channels, rows, finish(acc, channels))

        linear.conv_blocks(x, zero, matrices, layout, store)
        return out

    return run


def _gemm(group: LinearGroup, finish: Finish) -> Callable[..., Array]:
    transposed = bool(int_attribute(group.node, "transB", 0))
    return _product(group, finish, transposed)


def _matmul(group: LinearGroup, finish: Finish) -> Callable[..., Array]:
    return _product(group, finish, False)


def _product(group: LinearGroup, finish: Finish, transposed: bool) -> Callable[..., Array]:
    """Gemm and MatMul: rows of the result are independent, channels are its last axis."""
    zero_x, zero_w = group.x.qparams.zero_point, group.w.qparams.zero_point
    x_max, w_max = _largest(group.x.qparams), _largest(group.w.qparams)
    bias = _bias(group)
    fixed: Array | None = None
    large = is_large(group.w)
    dtype: type[np.floating[Any]] | None = None
    if group.w.array is not None:
        codes = group.w.array
        depth = 1 if transposed else max(0, codes.ndim - 2)
        products = magnitude_sums(codes, zero_w, group.w.qparams.axis, (depth,)) * x_max
        dtype = _dtype(group, products, _magnitudes(bias))
        if not large:
            fixed = np.ascontiguousarray(_weight(group).T if transposed else _weight(group), dtype)

    def run(x: Array, w_codes: Array | None = None) -> Array:
        kind, w = dtype, fixed
        if large and kind is not None:
            acc = multiply(_units(x, zero_x, kind), group.w, transposed=transposed)
            return _finished(acc if bias is None else _biased(acc, bias), finish)
        if kind is None or w is None:
            assert w_codes is not None
            kind = _dtype(group, x.shape[-1] * x_max * w_max, _magnitudes(bias))
            w = _units(w_codes, zero_w, kind)
            w = w.T if transposed else w
        acc = np.asarray(np.matmul(_units(x, zero_x, kind), w))
        if bias is not None:
            acc = _biased(acc, bias)
        return _finished(acc, finish)

    return run


def _biased(acc: Array, bias: Array) -> Array:
    """Add the bias of a Gemm `(M, N)`: one for all, one per column, or one per element."""
    if bias.ndim == 2 and bias.shape[0] > 1:
        return acc.astype(np.float64) + bias
    per_column = np.broadcast_to(bias.reshape(-1), acc.shape[-1:])
    linear.Bias.of(per_column, acc.dtype.type).add_to(acc.T)
    return acc


def _finished(acc: Array, finish: Finish) -> Array:
    """Return what becomes of `acc`, whose last axis counts the channels."""
    out = np.empty(acc.shape, finish.dtype)
    shape = (int(np.prod(acc.shape[:-1])), acc.shape[-1]) if acc.ndim else (1, 1)
    source, target = acc.reshape(shape), out.reshape(shape)
    pieces = blocks(*shape)

    def one(index: int) -> None:
        np.copyto(target[pieces[index]], finish(source[pieces[index]]), casting="unsafe")

    for_each(len(pieces), one)
    return out


def _mul(group: LinearGroup, finish: Finish) -> Callable[..., Array]:
    zero_a, zero_b = group.x.qparams.zero_point, group.w.qparams.zero_point
    # Two 8-bit operands: every product is below 2**17.
    scale = Finish(finish.scale.reshape(1, 1), finish.y)

    def run(a: Array, b: Array) -> Array:
        acc = np.asarray(_units(a, zero_a, np.float32) * _units(b, zero_b, np.float32))
        return _finished(acc, scale)

    return run
