"""From float weights to int8 codes, and from biases to int32 in steps of the accumulator."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.affine import Codes, QParams, quantize
from edgeq.numerics.magnitudes import pieces
from edgeq.numerics.qtype import FLOAT4, INT32
from edgeq.numerics.scale import choose_qparams
from edgeq.recipe import QuantSpec
from edgeq.weight_range import choose_weight_range

Float32 = NDArray[np.float32]

BIAS_LIMIT = 2**30  # leaves the accumulator room for the products


@dataclass(frozen=True, eq=False)
class WeightCodes:
    """A linear op's constants, quantized.

    Attributes:
        weight: Codes, the shape of the weight.
        qparams: Their parameters, per channel or per tensor.
        bias: int32 codes, (channels,); None where the op has no bias.
        bias_qparams: Their parameters: scale `float32(sx * sw)`, zero point 0.
    """

    weight: Codes
    qparams: QParams
    bias: Codes | None
    bias_qparams: QParams | None


def encode(
    weight: Float32,
    bias: Float32 | None,
    x: QParams,
    spec: QuantSpec,
    *,
    axis: int | None,
    limit: int,
    bias_limit: int,
) -> WeightCodes:
    """Quantize the weight and bias of a linear op.

    Args:
        weight: Any shape.
        bias: One value per output channel, or one for all; None without a bias.
        x: Parameters of the op's input, per tensor.
        spec: How weights are to be quantized.
        axis: The axis of the weight's output channels; None for one scale.
        limit: Largest magnitude of a weight code.
        bias_limit: A channel whose bias would pass it gets a larger weight scale.
    """
    qparams = weight_qparams(weight, spec, axis, limit)
    if bias is not None:
        qparams = _room_for_bias(qparams, x, bias, spec, bias_limit)
    codes = _codes(weight, qparams, limit)
    if bias is None:
        return WeightCodes(codes, qparams, None, None)
    scale = np.asarray(x.scale * qparams.scale, np.float32)
    zero = np.zeros(scale.shape, np.int32)
    bias_qparams = QParams(INT32, scale, zero, None if scale.ndim == 0 else 0)
    bias_codes = quantize(bias.reshape(-1), scale, zero, INT32, bias_qparams.axis)
    return WeightCodes(codes, qparams, bias_codes, bias_qparams)


def encode_rows(table: Float32, spec: QuantSpec, limit: int) -> tuple[Codes, QParams]:
    """Quantize a table, (rows, width), with one symmetric scale per row.

    Args:
        table: An embedding.
        spec: How weights are to be quantized.
        limit: Largest magnitude of a code.
    """
    qparams = weight_qparams(table, spec, 0, limit)
    return _codes(table, qparams, limit), qparams


def _codes(weight: Float32, qparams: QParams, limit: int) -> Codes:
    """Return the codes of a weight, a few channels at a time: it may be large."""
    if not weight.ndim:
        return _limited(qparams.quantize(weight), qparams, limit)
    codes = np.empty(weight.shape, qparams.qtype.dtype)
    axis = qparams.axis or 0
    for piece in pieces(weight.shape, axis):
        place = (slice(None),) * axis + (piece,)
        mine = qparams.of_channels(piece)
        codes[place] = _limited(mine.quantize(weight[place]), mine, limit)
    return codes


def _limited(codes: Codes, qparams: QParams, limit: int) -> Codes:
    """Return codes within the limit: a clipped weight saturates to it, not to qmin."""
    if not qparams.qtype.signed:
        return codes
    low, high = qparams.qtype.within(limit)
    return np.clip(codes.astype(np.int32), low, high).astype(codes.dtype)


def weight_qparams(weight: Float32, spec: QuantSpec, axis: int | None, limit: int) -> QParams:
    """Return the parameters of a weight, per channel along `axis` or per tensor.

    `float4` becomes the 4-bit float with the least squared error over all of the weight.
    """
    if spec.qtype == "float4":
        specs = [replace(spec, qtype=name) for name in FLOAT4]
        found = [weight_qparams(weight, one, axis, limit) for one in specs]
        return min(found, key=lambda qparams: _squared_error(weight, qparams, limit))
    low, high = choose_weight_range(weight, spec, axis, limit)
    return choose_qparams(low, high, spec, axis=axis, limit=limit)


def _squared_error(weight: Float32, qparams: QParams, limit: int) -> float:
    error = qparams.dequantize(_codes(weight, qparams, limit)).astype(np.float64) - weight
    return float(np.square(error).sum())


def _room_for_bias(
    weight: QParams, x: QParams, bias: Float32, spec: QuantSpec, limit: int
) -> QParams:
    """Raise the scales of channels whose bias would not fit, e.g. of dead ones."""
    needed = np.abs(bias.reshape(-1).astype(np.float64)) / (limit * float(x.scale))
    if weight.axis is None:
        needed = needed.max(initial=0.0)
    if spec.scale == "power_of_two":
        needed = np.exp2(np.ceil(np.log2(np.maximum(needed, np.finfo(np.float32).tiny))))
    scale = np.maximum(weight.scale, np.nextafter(needed.astype(np.float32), np.float32(np.inf)))
    if spec.scale == "power_of_two":
        scale = np.maximum(weight.scale, needed.astype(np.float32))
    return QParams(weight.qtype, scale, weight.zero_point, weight.axis)
