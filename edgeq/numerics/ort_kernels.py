"""Formulas of ONNX Runtime 1.31's fused 8-bit kernels, per kind of CPU.

Where QDQ nodes surround one of these operators, ONNX Runtime replaces them by a kernel whose
arithmetic is not that of the nodes, and not the same on every CPU. Here each kernel is written down
as measured: 0 of 3.9 million pairs differ on x86 with AVX2 (tests/test_ort_kernels.py repeats this
on the host's CPU); the Arm and SSE forms were compared with the same wheels under emulation.

    kernel                     formula (float32, every operation rounded, unless it says fma)
    QLinearAdd, AVX2           ra = sa / sy, rb = sb / sy, fixed = zy - fma(ra, za, rb * zb)
                               q = rint(fma(a, ra, fma(b, rb, fixed)))
    QLinearAdd, SSE            fixed = zy - (ra * za + rb * zb); q = rint((fixed + a * ra) + b * rb)
    QLinearAdd, Arm            22-bit integer multipliers, rounding shift, half away from zero
    QLinearMul, x86            M = (sa * sb) / sy; q = rint(f32((a - za) * (b - zb)) * M + zy)
    QLinearMul, Arm            q = rint(fma(f32((a - za) * (b - zb)), M, zy))
    QLinearAveragePool         q = rint(mean / sy + zy), the mean of dequantized values in float32
    QLinearGlobalAveragePool   M = sx / (sy * count); q = rint(f32(sum (x - zx)) * M) + zy

The first kernels add the zero point before they round; the definition adds it after. An operand
that is broadcast changes the order: the kernel runs with the operands swapped where the first one
has fewer elements, and SSE adds the broadcast one first.
"""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import Codes, Float32, QParams
from edgeq.numerics.fma import fma
from edgeq.numerics.requantize import multiplier, requantize

AVX2, SSE, ARM = "x86 AVX2", "x86 SSE", "Arm"
CPUS = (AVX2, SSE, ARM)

Binary = Callable[[Codes, QParams, Codes, QParams, QParams], Codes]


@dataclass(frozen=True)
class BinaryKernel:
    """A kernel of two quantized operands on one kind of CPU.

    Attributes:
        cpu: One of `CPUS`.
        order: What the formula depends on besides the CPU: `""`, or the operands' broadcast.
        compute: `(a codes, a, b codes, b, y) -> y codes`; all parameters per tensor.
    """

    cpu: str
    order: str
    compute: Binary


def host_cpu() -> str | None:
    """Return which of `CPUS` this machine is; `None` if its kernels are not known here."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return ARM
    if machine not in ("x86_64", "amd64"):
        return None
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return AVX2 if "avx2" in flags and "fma" in flags else SSE


def _store(real: Float32, y: QParams) -> Codes:
    """Round half to even and saturate; the zero point is already in `real`."""
    return np.clip(np.rint(real), y.qtype.qmin, y.qtype.qmax).astype(y.qtype.dtype)


def _ratios(a: QParams, b: QParams, y: QParams) -> tuple[Float32, Float32]:
    return np.asarray(a.scale / y.scale), np.asarray(b.scale / y.scale)


def qlinear_add_avx2(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
    """Return QLinearAdd as x86 with AVX2 and FMA computes it: a chain of fused multiply-adds."""
    ra, rb = _ratios(a, b, y)
    zero_b = np.asarray(rb * b.zero_point.astype(np.float32))
    fixed = y.zero_point.astype(np.float32) - fma(ra, a.zero_point, zero_b)
    return _store(fma(qa, ra, fma(qb, rb, fixed)), y)


def qlinear_add_sse(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
    """Return QLinearAdd as x86 without FMA computes it."""
    ra, rb = _ratios(a, b, y)
    return _store((_fixed_part(a, b, y) + _f32(qa) * ra) + _f32(qb) * rb, y)


def qlinear_add_sse_broadcast(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
    """Return QLinearAdd as x86 without FMA computes it where `qb` is broadcast: it comes first."""
    ra, rb = _ratios(a, b, y)
    return _store((_fixed_part(a, b, y) + _f32(qb) * rb) + _f32(qa) * ra, y)


def _fixed_part(a: QParams, b: QParams, y: QParams) -> Float32:
    ra, rb = _ratios(a, b, y)
    zero = ra * a.zero_point.astype(np.float32) + rb * b.zero_point.astype(np.float32)
    return np.asarray(y.zero_point.astype(np.float32) - zero)


def arm_add_multipliers(a: QParams, b: QParams, y: QParams) -> tuple[int, int, int] | None:
    """Return `(multiplier a, multiplier b, shift)` of the Arm kernel, `None` where it falls back.

    The greater ratio gets a multiplier of 22 bits; ratios lie in [2**-14, 2**8).
    """
    ra, rb = _ratios(a, b, y)
    if not all(2.0**-14 <= float(r) < 2.0**8 for r in (ra, rb)):
        return None
    exponent = int(np.frexp(max(ra, rb))[1]) - 1
    shift = 21 - exponent
    factor = np.float32(2.0**shift)
    ma, mb = (int(np.rint(r * factor)) for r in (ra, rb))
    fits = max(ma, mb) < 2**22 and max(ma, mb) >= 2**21
    return (ma, mb, shift) if 13 <= shift <= 31 and fits else None


def qlinear_add_arm(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
    """Return QLinearAdd as Arm NEON computes it: fixed point, half away from zero.

    Outside the range of `arm_add_multipliers` it computes in float32 (its compiler may fuse, which
    `arm_add_fallbacks` covers); this function then returns the unfused form.
    """
    fixed = arm_add_multipliers(a, b, y)
    if fixed is None:
        return arm_add_fallbacks(qa, a, qb, b, y)[0]
    ma, mb, shift = fixed
    acc = (_i64(qa) - int(a.zero_point)) * ma + (_i64(qb) - int(b.zero_point)) * mb
    acc -= acc < 0  # the sign is added, so that the rounding shift sends halves away from zero
    rounded = np.clip((acc + (1 << (shift - 1))) >> shift, -(2**15), 2**15 - 1)
    total = np.clip(rounded + int(y.zero_point), y.qtype.qmin, y.qtype.qmax)
    return np.asarray(total, y.qtype.dtype)


def arm_add_fallbacks(
    qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams
) -> tuple[Codes, Codes, Codes]:
    """Return the plain C++ form of QLinearAdd: unfused, and with either product fused."""
    da, db = a.dequantize(qa), b.dequantize(qb)
    ua, ub = _f32(_i64(qa) - int(a.zero_point)), _f32(_i64(qb) - int(b.zero_point))
    low = np.float32(y.qtype.qmin - int(y.zero_point))
    high = np.float32(y.qtype.qmax - int(y.zero_point))
    zero = y.zero_point.astype(np.float32)

    def quantized(total: Float32) -> Codes:
        return _store(np.clip(total / y.scale, low, high) + zero, y)

    return (
        quantized(da + db),
        quantized(fma(ua, a.scale, db)),
        quantized(fma(ub, b.scale, da)),
    )


def _arm_fallback(index: int) -> Binary:
    def compute(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
        if arm_add_multipliers(a, b, y) is not None:
            return qlinear_add_arm(qa, a, qb, b, y)
        return arm_add_fallbacks(qa, a, qb, b, y)[index]

    return compute


def swapped(kernel: Binary) -> Binary:
    """Return `kernel` with its operands exchanged: what runs where the first one is broadcast."""

    def compute(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
        return kernel(qb, b, qa, a, y)

    return compute


def qlinear_mul_x86(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
    """Return QLinearMul as x86 computes it: the product rounds, then the sum rounds."""
    product = _f32((_i64(qa) - int(a.zero_point)) * (_i64(qb) - int(b.zero_point)))
    scaled = product * multiplier(a.scale, b.scale, y.scale)
    return _store(scaled + y.zero_point.astype(np.float32), y)


def qlinear_mul_arm(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
    """Return QLinearMul as Arm computes it: one fused multiply-add."""
    product = _f32((_i64(qa) - int(a.zero_point)) * (_i64(qb) - int(b.zero_point)))
    return _store(fma(product, multiplier(a.scale, b.scale, y.scale), y.zero_point), y)


ADD_KERNELS = (
    BinaryKernel(AVX2, "", qlinear_add_avx2),
    BinaryKernel(AVX2, "first operand broadcast", swapped(qlinear_add_avx2)),
    BinaryKernel(SSE, "", qlinear_add_sse),
    BinaryKernel(SSE, "second operand broadcast", qlinear_add_sse_broadcast),
    BinaryKernel(SSE, "first operand broadcast", swapped(qlinear_add_sse_broadcast)),
    BinaryKernel(ARM, "", qlinear_add_arm),
)
# Only where the ratios are out of range does Arm leave fixed point; then either product may fuse.
ADD_FALLBACKS = (
    BinaryKernel(ARM, "first product fused", _arm_fallback(1)),
    BinaryKernel(ARM, "second product fused", _arm_fallback(2)),
)
MUL_KERNELS = (
    BinaryKernel(AVX2, "", qlinear_mul_x86),
    BinaryKernel(SSE, "", qlinear_mul_x86),
    BinaryKernel(ARM, "", qlinear_mul_arm),
)


def qlinear_average_pool(mean: Float32, y: QParams) -> Codes:
    """Return what QLinearAveragePool makes of the means of its windows, on every CPU.

    Args:
        mean: float32: dequantized values summed in float32, window order, divided by their count.
        y: Parameters of the result, per tensor.
    """
    return _store(mean / y.scale + y.zero_point.astype(np.float32), y)


def qlinear_global_average_pool(acc: NDArray[Any], count: int, x: QParams, y: QParams) -> Codes:
    """Return QLinearGlobalAveragePool, on every CPU.

    Also what QLinearAveragePool computes where one window covers the whole image.

    Args:
        acc: `sum(codes - zero_point)` of each image, exact.
        count: How many elements an image has.
        x: Parameters of the input, per tensor.
        y: Parameters of the result, per tensor.
    """
    reciprocal = np.asarray(x.scale / (y.scale * np.float32(count)), np.float32)
    return requantize(acc, reciprocal, y.zero_point, y.qtype)


def qlinear_concat(codes: Codes, x: QParams, y: QParams) -> Codes:
    """Return one operand of QLinearConcat: a table whose entries are the nodes' own arithmetic."""
    return y.quantize(x.dequantize(codes))


def lookup_table(function: Callable[[Float32], Float32], x: QParams, y: QParams) -> Codes:
    """Return the table of QLinearSigmoid or QLinearLeakyRelu: the nodes, for every code.

    The function is ONNX Runtime's float32 kernel: exact for LeakyRelu, not defined by IEEE for
    Sigmoid (`edgeq.proofs.certify_unary`). Entry `i` belongs to code `qmin + i`.
    """
    codes = np.arange(x.qtype.qmin, x.qtype.qmax + 1).astype(x.qtype.dtype)
    return y.quantize(function(x.dequantize(codes)))


def _f32(values: NDArray[Any]) -> Float32:
    return values.astype(np.float32)


def _i64(values: NDArray[Any]) -> NDArray[np.int64]:
    return values.astype(np.int64)
