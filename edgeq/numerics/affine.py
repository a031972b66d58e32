"""Quantize and dequantize: the affine map between reals and codes.

`real = (q - zero_point) * scale`. The order of operations is the definition: float32 true division,
round half to even, add the zero point, saturate. ONNX (QuantizeLinear, DequantizeLinear) specifies
the same; adding the zero point before rounding differs on every tie when the zero point is odd.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.floating import saturating_cast
from edgeq.numerics.grid import nearest
from edgeq.numerics.qtype import QType

Float32 = NDArray[np.float32]
Codes = NDArray[Any]


@dataclass(frozen=True, eq=False)
class QParams:
    """The affine map of one tensor, decided.

    Attributes:
        qtype: Storage format of the codes.
        scale: float32, shape `()` per tensor or `(channels,)` per channel; finite, normal, > 0.
        zero_point: int32, the shape of `scale`; the code of real 0.
        axis: The channel axis; `None` per tensor.
    """

    qtype: QType
    scale: Float32
    zero_point: NDArray[np.int32]
    axis: int | None = None

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, np.float32)
        zero_point = np.broadcast_to(np.asarray(self.zero_point, np.int32), scale.shape).copy()
        assert (scale.ndim == 1) == (self.axis is not None), "a scale per channel needs an axis"
        assert np.all(scale >= np.finfo(np.float32).tiny), "a scale is normal and positive"
        assert np.all(np.isfinite(scale)), "a scale is finite"
        assert np.all((zero_point >= self.qtype.qmin) & (zero_point <= self.qtype.qmax))
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero_point)

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest representable real over all channels."""
        codes = np.array([self.qtype.qmin, self.qtype.qmax])[:, None]
        reals = (codes - self.zero_point.reshape(1, -1)) * self.scale.reshape(1, -1)
        return float(reals.min()), float(reals.max())

    def same_as(self, other: "QParams") -> bool:
        """Whether both are the same map into the same format, bit by bit."""
        mine = (self.qtype.name, self.axis, self.scale.tobytes(), self.zero_point.tobytes())
        return mine == (
            other.qtype.name, other.axis, other.scale.tobytes(), other.zero_point.tobytes()
        )  # fmt: skip

    def of_channels(self, piece: slice) -> "QParams":
        """Return the map of some of the channels; per tensor, it is the same for all."""
        if self.axis is None:
            return self
        return QParams(self.qtype, self.scale[piece], self.zero_point[piece], self.axis)

    def quantize(self, x: Float32) -> Codes:
        """Return the codes of `x`."""
        return quantize(x, self.scale, self.zero_point, self.qtype, self.axis)

    def dequantize(self, q: Codes) -> Float32:
        """Return the reals that the codes `q` stand for."""
        return dequantize(q, self.scale, self.zero_point, self.axis)

    def fake_quantize(self, x: Float32) -> Float32:
        """Return `x` moved to the nearest representable reals."""
        return self.dequantize(self.quantize(x))


def along(parameter: NDArray[Any], axis: int | None, ndim: int) -> NDArray[Any]:
    """Reshape a per-channel parameter so that it broadcasts along `axis` of an `ndim` tensor.

    >>> along(np.array([1, 2]), 1, 4).shape
    (1, 2, 1, 1)
    """
    if axis is None or parameter.ndim == 0:
        return parameter.reshape(())
    shape = [1] * ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def saturate(rounded: NDArray[Any], zero_point: NDArray[Any], qtype: QType) -> Codes:
    """Return `clip(rounded + zero_point, qmin, qmax)`; NaN becomes qmin.

    `rounded` holds integral floats. Clipping against `qmin - zero_point` and adding afterwards
    gives the same codes and stays exact in float32 for formats of up to 16 bits.
    """
    wide = np.float32 if qtype.bits <= 16 else np.float64
    return saturate_in_place(np.array(rounded, wide), zero_point, qtype)


def saturate_in_place(rounded: NDArray[Any], zero_point: NDArray[Any], qtype: QType) -> Codes:
    """Do the same as `saturate`, destroying `rounded`.

    `rounded` is float32 for formats of up to 16 bits, else float64.
    """
    zero = np.asarray(zero_point, rounded.dtype)
    np.clip(rounded, qtype.qmin - zero, qtype.qmax - zero, out=rounded)
    rounded += zero
    # A minimum is NaN if any element is: one cheap reduction instead of a slow NaN-aware clip.
    if rounded.size and np.isnan(rounded.min()):
        rounded[np.isnan(rounded)] = qtype.qmin
    narrow = rounded.astype(np.int8 if qtype.bits < 8 else qtype.dtype)
    return narrow.astype(qtype.dtype, copy=False)


def quantize(
    x: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[Any],
    qtype: QType,
    axis: int | None = None,
) -> Codes:
    """Return `saturate(round_half_even(x / scale) + zero_point)`; NaN gives qmin.

    For a 4-bit float it is the nearest of its codes, ties to the even one; for an 8-bit float the
    nearest number, as `edgeq.numerics.floating` says, and NaN stays NaN.

    Args:
        x: float32, any shape.
        scale: float32, `()` or `(channels,)`.
        zero_point: integers, the shape of `scale`.
        qtype: Format of the result.
        axis: Channel axis, when `scale` is per channel.

    >>> from edgeq.numerics.qtype import UINT8
    >>> quantize(np.array([0.5, 1.5, 2.5, -0.5], np.float32), np.float32(1), np.int32(1), UINT8)
    array([1, 3, 3, 1], dtype=uint8)
    """
    x = np.asarray(x, np.float32)
    scale, zero_point = np.asarray(scale, np.float32), np.asarray(zero_point)
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.asarray(x / along(scale, axis, x.ndim))
        if qtype.floating:
            return saturating_cast(ratio, qtype.dtype)
        if qtype.values is None:
            np.rint(ratio, out=ratio)
        else:
            ratio = nearest(ratio, qtype)
        if qtype.bits > 16:
            ratio = ratio.astype(np.float64)
        return saturate_in_place(ratio, along(zero_point, axis, x.ndim), qtype)


def dequantize(
    q: Codes, scale: NDArray[Any], zero_point: NDArray[Any], axis: int | None = None
) -> Float32:
    """Return `float32(q - zero_point) * scale`, in float32.

    The difference is taken in int64, so int32 codes beyond 2**24 are rounded once, to float32.
    8-bit floats have no zero point.
    """
    scale, zero_point = np.asarray(scale, np.float32), np.asarray(zero_point)
    if q.dtype.name.startswith("float8"):
        units = q.astype(np.float32)
    elif q.dtype.itemsize <= 1 and q.dtype.kind in "iu":
        units = q.astype(np.float32)
        units -= along(zero_point, axis, q.ndim).astype(np.float32)
    else:
        difference = q.astype(np.int64) - along(zero_point, axis, q.ndim).astype(np.int64)
        units = np.asarray(difference, np.float32)
    units *= along(scale, axis, q.ndim)
    return units
