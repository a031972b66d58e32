"""Which noise is left in the outputs: that of the weights, or that of the activations?

The float model with the weights and biases that the codes stand for is run beside the float model
and the deployed one. Its noise, as a share of the deployed model's, is that of the weights; the
rest comes from activations. Rounding that is learned against the noise of activations takes part
of that out: then the weights alone may be noisier than the whole, and the share is above 1.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.fidelity import FidelityMeter
from edgeq.float_weight import FloatWeight
from edgeq.graph import Editor, clone, constant, remove_dead
from edgeq.numerics.affine import along, dequantize
from edgeq.qdq import Operand, linear_group, operand
from edgeq.runtime import make_session

Array = NDArray[Any]
Float32 = NDArray[np.float32]
Feed = Mapping[str, Array]
_THREADS = 2
_LINEAR = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class NoiseSources:
    """How noisy the first output is with the weights alone.

    Attributes:
        weights_db: Its SQNR with the weights and biases alone; None: exact.
        share: That noise's power, in parts of the deployed model's; None where one of them is 0.
        weights: How many weights were exchanged.
        samples: How many samples were run.
    """

    weights_db: float | None
    share: float | None
    weights: int
    samples: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return the entry of `compile --json`."""
        return {
            "weights_db": self.weights_db,
            "share_of_weights": self.share,
            "weights": self.weights,
            "samples": self.samples,
        }

    def __str__(self) -> str:
        if self.share is None:
            return "the weights make none" if self.weights_db is None else "none"
        return f"{self.weights_db:.2f} dB with the weights alone, {self.share:.0%} of all noise"


@dataclass(frozen=True, eq=False)
class _Deployed:
    """A linear op's constants, as reals."""

    weight: Float32
    bias: Float32 | None


def noise_sources(
    reference: ir.Model,
    quantized: ir.Model,
    float_weights: Mapping[str, FloatWeight],
    deployed: Callable[[Feed], Array],
    samples: Iterable[Feed],
) -> NoiseSources | None:
    """Run the three models on samples; None where no weight has codes.

    Args:
        reference: The float model.
        quantized: The deployed one.
        float_weights: What the codes of weights were rounded from, by name.
        deployed: Gives the first output of the deployed model, as reals.
        samples: Feeds; as many as there are.
    """
    hybrid, count = _with_codes(reference, quantized, float_weights)
    if not count:
        return None
    real, alone = (make_session(model, threads=_THREADS) for model in (reference, hybrid))
    weights, whole = FidelityMeter("weights"), FidelityMeter("whole")
    dtypes = {str(value.name): value.dtype for value in reference.graph.inputs}
    done = 0
    for feed in samples:
        as_real = {name: _as(array, dtypes[name]) for name, array in feed.items()}
        wanted = np.asarray(real.run(None, as_real)[0])
        weights.add(wanted, np.asarray(alone.run(None, as_real)[0]))
        whole.add(wanted, deployed(feed))
        done += 1
    weights_db, whole_db = weights.result().sqnr_db, whole.result().sqnr_db
    share = None
    if weights_db is not None and whole_db is not None:
        share = 10 ** ((whole_db - weights_db) / 10)
    return NoiseSources(weights_db, share, count, done)


def _as(array: Array, dtype: ir.DataType | None) -> Array:
    return array if dtype is None else array.astype(dtype.numpy(), copy=False)


def _with_codes(
    reference: ir.Model, quantized: ir.Model, float_weights: Mapping[str, FloatWeight]
) -> tuple[ir.Model, int]:
    """Return the float model with what the codes stand for, and how many weights that were."""
    deployed = {
        _digest(float_weights[name].weight): _reals(weight, bias, float_weights[name])
        for name, (weight, bias) in _weights(quantized, float_weights).items()
    }
    model = clone(reference)
    editor, count = Editor(model.graph), 0
    for node in model.graph:
        array = constant(node.inputs[1]) if node.op_type in _LINEAR else None
        found = None if array is None else deployed.get(_digest(array))
        if found is None:
            continue
        node.replace_input_with(1, editor.initializer("weight", found.weight))
        if found.bias is not None:
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, editor.initializer("bias", found.bias))
        count += 1
    remove_dead(model.graph)  # ONNX Runtime takes no large weight that nothing reads
    return model, count


def _weights(
    quantized: ir.Model, float_weights: Mapping[str, FloatWeight]
) -> dict[str, tuple[Operand, Operand | None]]:
    """Return the dequantized weights, with their biases, by the name of the codes."""
    found: dict[str, tuple[Operand, Operand | None]] = {}
    for node in quantized.graph:
        for value in node.inputs[1:2]:
            weight = operand(value)
            name = "" if weight is None else str(weight.codes.name)
            if weight is not None and name in float_weights and weight.array is not None:
                group = linear_group(node)
                found.setdefault(name, (weight, None if group is None else group.bias))
    return found


def _reals(weight: Operand, bias: Operand | None, source: FloatWeight) -> _Deployed:
    codes = weight.array
    assert codes is not None
    scale, zero_point = _scale(weight, source), weight.qparams.zero_point
    real = dequantize(codes, scale, np.broadcast_to(zero_point, scale.shape), source.axis)
    array = None if bias is None else bias.array
    if bias is None or array is None:
        return _Deployed(real, None)
    qparams = bias.qparams
    return _Deployed(real, dequantize(array, qparams.scale, qparams.zero_point, qparams.axis))


def _scale(weight: Operand, source: FloatWeight) -> Float32:
    """Return the scale of the codes; where they are read as plain units, the one that fits best."""
    if not np.all(weight.qparams.scale == 1):
        return weight.qparams.scale
    codes = weight.array
    assert codes is not None
    axes = tuple(a for a in range(codes.ndim) if a != source.axis)
    units = codes.astype(np.float64) - along(weight.qparams.zero_point, source.axis, codes.ndim)
    power = (units * units).sum(axes)
    product = (units * source.weight).sum(axes)
    return np.asarray(np.where(power > 0, product / np.maximum(power, 1), 1.0), np.float32)


def _digest(array: Array) -> bytes:
    shape = repr((array.shape, array.dtype.name)).encode()
    return hashlib.sha256(shape + np.ascontiguousarray(array).tobytes()).digest()
