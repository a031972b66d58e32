"""Proofs by enumeration: is a fused kernel equal to the definition, for every input there is?

Two 8-bit operands have 65,536 pairs, and a pool of `count` elements has `255 * count + 1` sums. So
the definition and the formula of every CPU (`edgeq.numerics.ort_kernels`) are computed for all of
them and compared. Results are kept by the parameters: the same question is answered once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import Codes, Float32, QParams
from edgeq.numerics.ort_kernels import (
    ADD_FALLBACKS,
    ADD_KERNELS,
    CPUS,
    MUL_KERNELS,
    BinaryKernel,
    arm_add_multipliers,
    qlinear_average_pool,
    qlinear_global_average_pool,
)
from edgeq.numerics.qtype import QTYPES, QType
from edgeq.numerics.requantize import multiplier, requantize

EXACT = 2**24  # up to here, float32 holds every integer
TIE_MARGIN = 1 / 64  # LSB; far above the error of any float32 exp, erf or tanh in one LSB
# Of the largest of 1, the argument and the result: 8 float32 ulps, where ONNX Runtime errs by 3.
FUNCTION_ERROR = 2.0**-20


@dataclass(frozen=True)
class Disagreement:
    """Where one CPU leaves the definition.

    Attributes:
        cpu: One of `edgeq.numerics.ort_kernels.CPUS`.
        order: The form of its kernel, `""` for the usual one.
        count: For how many inputs.
        first: The first of them: a pair of codes, or (sum, count).
        expected: The code that the definition gives there.
        found: The code that the CPU gives.
    """

    cpu: str
    order: str
    count: int
    first: tuple[int, int]
    expected: int
    found: int


@dataclass(frozen=True)
class FusionProof:
    """The outcome of an enumeration.

    Attributes:
        kernel: Name of the fused kernel.
        compared: How many inputs were enumerated, each with every form of the kernel.
        disagreements: Where forms leave the definition, in the order of the CPUs.
        obstacle: Why nothing could be enumerated; empty otherwise.
    """

    kernel: str
    compared: int
    disagreements: tuple[Disagreement, ...] = ()
    obstacle: str = ""

    @property
    def equal(self) -> bool:
        """Whether every CPU gives the bits of the definition, for every input."""
        return not self.obstacle and not self.disagreements

    @property
    def detail(self) -> str:
        """One line for a report."""
        if self.obstacle:
            return f"{self.kernel}: {self.obstacle}"
        if self.equal:
            everywhere = ", ".join(CPUS)
            return f"{self.kernel} is the definition for all {self.compared} inputs on {everywhere}"
        parts = []
        for cpu in dict.fromkeys(d.cpu for d in self.disagreements):
            worst = max((d for d in self.disagreements if d.cpu == cpu), key=lambda d: d.count)
            parts.append(
                f"{cpu} differs for {worst.count} of {self.compared} inputs"
                f" (first {worst.first}: {worst.found} instead of {worst.expected})"
            )
        return f"{self.kernel}: {'; '.join(parts)}"


# The key of a tensor's parameters: QParams hold arrays, which cannot be compared or hashed.
_Key = tuple[str, float, int]


def _key(qparams: QParams) -> _Key:
    return qparams.qtype.name, float(qparams.scale), int(qparams.zero_point)


def _params(key: _Key) -> QParams:
    name, scale, zero_point = key
    return QParams(QTYPES[name], np.array(scale, np.float32), np.array(zero_point, np.int32))


def _codes(qtype: QType) -> Codes:
    return np.arange(qtype.qmin, qtype.qmax + 1).astype(qtype.dtype)


def define_add(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
    """Return the definition of Add: dequantize both, one float32 addition, quantize."""
    return y.quantize(a.dequantize(qa) + b.dequantize(qb))


def define_mul(qa: Codes, a: QParams, qb: Codes, b: QParams, y: QParams) -> Codes:
    """Return the definition of Mul: the exact integer product, requantized."""
    acc = (qa.astype(np.int64) - a.zero_point) * (qb.astype(np.int64) - b.zero_point)
    return requantize(acc, multiplier(a.scale, b.scale, y.scale), y.zero_point, y.qtype)


def define_mean(total: NDArray[Any], count: int, x: QParams, y: QParams) -> Codes:
    """Return the definition of a mean: the sum in float32, one IEEE division, quantize.

    `total` is the exact sum of `codes - zero_point`; the scale of `x` is a power of two.
    """
    return y.quantize(_mean(total, count, x))


def _mean(total: NDArray[Any], count: int, x: QParams) -> Float32:
    return np.asarray(total.astype(np.float32) * x.scale / np.float32(count), np.float32)


def prove_add(a: QParams, b: QParams, y: QParams) -> FusionProof:
    """Compare QLinearAdd with the definition for all pairs of codes.

    Args:
        a: Parameters of the first operand, per tensor, 8 bits or fewer.
        b: Of the second.
        y: Of the result.
    """
    return _prove_add(_key(a), _key(b), _key(y))


def prove_mul(a: QParams, b: QParams, y: QParams) -> FusionProof:
    """Compare QLinearMul with the definition for all pairs of codes; arguments as `prove_add`."""
    return _prove_mul(_key(a), _key(b), _key(y))


@lru_cache(maxsize=4096)
def _prove_add(a: _Key, b: _Key, y: _Key) -> FusionProof:
    kernels: tuple[BinaryKernel, ...] = ADD_KERNELS
    if arm_add_multipliers(_params(a), _params(b), _params(y)) is None:
        kernels += ADD_FALLBACKS
    return _prove_binary("QLinearAdd", define_add, kernels, (_params(a), _params(b), _params(y)))


@lru_cache(maxsize=4096)
def _prove_mul(a: _Key, b: _Key, y: _Key) -> FusionProof:
    operands = (_params(a), _params(b), _params(y))
    return _prove_binary("QLinearMul", define_mul, MUL_KERNELS, operands)


def _prove_binary(
    name: str,
    define: Callable[[Codes, QParams, Codes, QParams, QParams], Codes],
    kernels: Sequence[BinaryKernel],
    operands: tuple[QParams, QParams, QParams],
) -> FusionProof:
    a, b, y = operands
    if max(p.qtype.bits for p in operands) > 8:
        return FusionProof(name, 0, obstacle="only formats of up to 8 bits can be enumerated")
    qa, qb = _codes(a.qtype)[:, None], _codes(b.qtype)[None, :]
    expected = define(qa, a, qb, b, y)
    found = []
    computed: dict[object, Codes] = {}
    for kernel in kernels:
        if kernel.compute not in computed:
            computed[kernel.compute] = kernel.compute(qa, a, qb, b, y)
        codes = computed[kernel.compute]
        wrong = np.flatnonzero(codes != expected)
        if wrong.size:
            at = int(wrong[0])
            i, j = divmod(at, qb.size)
            first = (int(qa[i, 0]), int(qb[0, j]))
            values = int(expected.flat[at]), int(codes.flat[at])
            found.append(Disagreement(kernel.cpu, kernel.order, int(wrong.size), first, *values))
    return FusionProof(name, expected.size, tuple(found))


def prove_average_pool(
    x: QParams, y: QParams, counts: Sequence[int], *, whole_image: bool = False
) -> FusionProof:
    """Compare QLinearAveragePool with the definition for all sums of all window sizes.

    Args:
        x: Parameters of the input; its scale is a power of two (units: 1), or the float sums have
            bits that depend on the order of additions.
        y: Parameters of the result.
        counts: The divisors that occur: the full window's and, where padding is not counted,
            those of the windows at the borders.
        whole_image: One window covers the whole image: ONNX Runtime then runs the global kernel.
    """
    sizes = tuple(sorted(set(counts)))
    return _prove_pool("QLinearAveragePool", _key(x), _key(y), sizes, whole_image)


def prove_global_average_pool(x: QParams, y: QParams, count: int) -> FusionProof:
    """Compare QLinearGlobalAveragePool with the definition for all sums of `count` elements."""
    return _prove_pool("QLinearGlobalAveragePool", _key(x), _key(y), (count,), True)


@lru_cache(maxsize=4096)
def _prove_pool(
    name: str, x_key: _Key, y_key: _Key, counts: tuple[int, ...], whole: bool
) -> FusionProof:
    x, y = _params(x_key), _params(y_key)
    obstacle = _pool_obstacle(x, y, counts)
    if obstacle:
        return FusionProof(name, 0, obstacle=obstacle)
    compared, wrong, first = 0, 0, None
    for count in counts:
        zero = int(x.zero_point)
        total = np.arange((x.qtype.qmin - zero) * count, (x.qtype.qmax - zero) * count + 1)
        expected = define_mean(total, count, x, y)
        if whole:
            codes = qlinear_global_average_pool(total, count, x, y)
        else:
            codes = qlinear_average_pool(_mean(total, count, x), y)
        different = np.flatnonzero(codes != expected)
        compared, wrong = compared + total.size, wrong + int(different.size)
        if different.size and first is None:
            at = int(different[0])
            first = (int(total[at]), count), int(expected[at]), int(codes[at])
    if first is None:
        return FusionProof(name, compared)
    # One formula, the same on all CPUs.
    return FusionProof(name, compared, tuple(Disagreement(cpu, "", wrong, *first) for cpu in CPUS))


def _pool_obstacle(x: QParams, y: QParams, counts: tuple[int, ...]) -> str:
    if max(x.qtype.bits, y.qtype.bits) > 8:
        return "only formats of up to 8 bits can be enumerated"
    if np.frexp(x.scale)[0] != 0.5:
        return (
            f"the input's scale {float(x.scale):g} is no power of two, so the bits of a float sum"
            " depend on its order; work in units (a DequantizeLinear with scale 1)"
        )
    reach = max(abs(x.qtype.qmin - int(x.zero_point)), abs(x.qtype.qmax - int(x.zero_point)))
    if reach * max(counts) > EXACT:
        return f"a sum of {max(counts)} elements can exceed 2**24"
    return ""


@dataclass(frozen=True)
class UnaryProof:
    """How far the results of a function of one quantized value are from rounding ties.

    Attributes:
        distance: That of the result whose distance exceeds its margin least, in LSB of the result;
            NaN if the function is not defined for some code.
        code: The input code that has it.
        margin: The assumed bound of the error of any CPU's float32 function there, in LSB.
    """

    distance: float
    code: int
    margin: float

    @property
    def certain(self) -> bool:
        """Whether every CPU rounds to the same codes, given the margin."""
        return self.distance >= self.margin

    @property
    def detail(self) -> str:
        """One line for a report."""
        if math.isnan(self.distance):
            return f"the function is not defined for code {self.code}"
        relation = "at least" if self.certain else "less than"
        return (
            f"all codes lie {self.distance:.4g} LSB or more from a rounding tie (code {self.code}),"
            f" {relation} the {self.margin:.4g} LSB that a CPU's float32 function may err"
        )


def certify_unary(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    x: QParams,
    y: QParams,
    margin: float = TIE_MARGIN,
) -> UnaryProof:
    """Measure how far `function` of every code of `x` lies from the ties of `y`.

    Where that is at least `margin`, and `FUNCTION_ERROR` of the numbers involved, the float
    operator may stay: each CPU's own exp, erf or tanh rounds to the same code. Elsewhere it becomes
    a table. Ties beyond the range of `y` do not matter: both sides saturate.

    Args:
        function: The function on float64 arrays, accurate to a few float64 ulps.
        x: Parameters of the input, per tensor, 16 bits or fewer.
        y: Parameters of the result, per tensor.
        margin: In LSB of the result.
    """
    codes = _codes(x.qtype)
    inputs = x.dequantize(codes).astype(np.float64)
    with np.errstate(all="ignore"):
        results = function(inputs)
        real = results / float(y.scale)
        low, high = y.qtype.qmin - int(y.zero_point), y.qtype.qmax - int(y.zero_point)
        distance = np.abs(real - (np.clip(np.floor(real), low, high - 1) + 0.5))
        largest = np.maximum(1, np.maximum(np.abs(inputs), np.abs(results)))
        # An infinite result is infinite, or huge, on every CPU.
        error = np.where(np.isinf(results), 0, largest * FUNCTION_ERROR / float(y.scale))
        margins = np.maximum(margin, error)
        slack = distance - margins
    # The smallest, or the first that is not a number.
    at = int(np.argmin(slack))
    return UnaryProof(float(distance[at]), int(codes[at]), float(margins[at]))
