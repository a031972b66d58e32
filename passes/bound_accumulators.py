"""Bound the sums of integer linear ops, so that a narrower accumulator holds them.

before:  y = Conv(DequantizeLinear(x_q, sx, zx), DequantizeLinear(w_q, sw, 0), ...)
after:   the same, with `sum |w_q| * max |x_q - zx| + |b_q| <= 2**(bits - 1) - 1` in every channel

The bound holds for every input there is, and for every partial sum in every order (I. Colbert et
al., "A2Q: Accumulator-Aware Quantization with Guaranteed Overflow Avoidance", ICCV 2023, there for
training). A channel beyond it is rounded anew: its weight, in steps of its scale, is projected onto
the integers of the l1 ball (`edgeq/numerics/l1_ball.py`). A larger scale needs less projection and
rounds more coarsely: of several, the one with the least squared error stays. The bias follows.

What it costs is in the notes of the report, and the certificate holds every op against the bits
that were promised. It is to run last: a pass behind it that changes codes or biases may break that.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.accumulators import PROMISED_BITS, accumulator_bound, reach
from edgeq.errors import ModelError, RecipeError
from edgeq.float_weight import FloatWeight
from edgeq.graph import int_attribute
from edgeq.numerics.l1_ball import project
from edgeq.numerics.qtype import INT8
from edgeq.passing import Context, Pass
from edgeq.qdq import LinearGroup, linear_group

Array = NDArray[Any]
Float64 = NDArray[np.float64]
FACTORS = np.exp2(np.arange(25) / 4)  # of a channel's scale
POWERS = np.exp2(np.arange(7))


@dataclass(frozen=True)
class BoundAccumulators(Pass):
    """Round weights anew where sums could leave an accumulator of `bits` bits.

    Attributes:
        bits: Width of the signed accumulator.
    """

    bits: int = 16

    def run(self, model: ir.Model, context: Context) -> int:
        """Change weights, scales and biases; return in how many linear ops.

        Raises:
            RecipeError: There is no such accumulator.
            ModelError: An op whose sums do not fit has no constant, symmetric weight to change.
        """
        if not 8 <= self.bits <= 32:
            raise RecipeError(f"pass bound-accumulators: bits = {self.bits} is not from 8 to 32")
        limit = 2 ** (self.bits - 1) - 1
        groups = [g for node in model.graph if (g := linear_group(node)) is not None]
        beyond = [g for g in groups if (accumulator_bound(g, context.max_dim) or 0) > limit]
        for group in groups:
            group.node.metadata_props[PROMISED_BITS] = str(self.bits)
        for group in beyond:
            text = _bound(group, limit, context)
            context.notes.append((self.name(), f"{group.node.op_type} {_name(group)}: {text}"))
        return len(beyond)


def _name(group: LinearGroup) -> str:
    return group.node.name or group.node.outputs[0].name or ""


def _bound(group: LinearGroup, limit: int, context: Context) -> str:
    """Keep the sums of `group` within the limit; return what it cost."""
    weight = group.w.array
    if weight is None or (weight.ndim > 2) != (group.node.op_type == "Conv"):
        reason = "it has no matrix of constant weights"
    elif np.any(group.w.qparams.zero_point):
        reason = "its weight has a zero point"
    else:
        return _Weight(group, weight, context).within(limit)
    raise ModelError(
        f"bound-accumulators: sums of {group.node.op_type} {_name(group)!r} can pass {limit}, and"
        f" {reason}: give the pass more bits, or activations fewer, or --keep-float the node"
    )


class _Weight:
    """The weight and bias of a linear op, a row for each output channel."""

    def __init__(self, group: LinearGroup, codes: Array, context: Context) -> None:
        self.group, self.codes = group, codes
        qparams, node = group.w.qparams, group.node
        found = context.float_weights.get(str(group.w.codes.name))
        self.source = found or FloatWeight(qparams.dequantize(codes), INT8, 127)
        self.transposed = node.op_type == "MatMul" or (
            node.op_type == "Gemm" and not int_attribute(node, "transB", 0)
        )
        self.rows = self._rows(self.source.weight)
        shift = 0 if self.source.shift is None else self.source.shift
        base = np.exp2(np.broadcast_to(shift, codes.shape)).astype(np.float32)
        self.base = self._rows(base)  # steps of a code within one of its base
        channels = len(self.rows)
        self.scale = np.broadcast_to(qparams.scale, channels)
        bias = np.zeros(1) if group.bias is None else group.bias.array
        assert bias is not None
        self.bias = np.broadcast_to(bias.astype(np.float64).reshape(-1), channels)

    def within(self, limit: int) -> str:
        """Write the constants with the least squared error among those that stay within."""
        sums = np.abs(self._rows(self.codes).astype(np.int64)).sum(axis=1)
        beyond = sums * reach(self.group.x) + np.abs(self.bias) > limit
        shared = self.group.w.qparams.axis is None  # one scale for all channels
        chosen = np.flatnonzero(beyond | shared)
        exact = bool(np.all(np.frexp(self.scale)[0] == 0.5))
        # The bias leaves half of the range to the products.
        least = np.maximum(1, np.abs(self.bias[chosen]) / (limit // 2))
        least = np.exp2(np.ceil(np.log2(least))) if exact else least
        least = np.full_like(least, least.max()) if shared else least
        best = np.full(len(chosen), np.inf)
        scale, codes = self.scale.copy(), self._rows(self.codes).copy()
        for factor in POWERS if exact else FACTORS:
            tried = np.asarray(self.scale[chosen] * (least * factor), np.float32)
            found = self._project(chosen, tried, limit)
            errors = self._errors(chosen, found, tried)
            errors = np.full_like(errors, errors.sum()) if shared else errors
            better = errors < best
            best[better] = errors[better]
            scale[chosen[better]], codes[chosen[better]] = tried[better], found[better]
        every = np.arange(len(codes))
        before = self._errors(every, self._rows(self.codes), self.scale)
        after = self._errors(every, codes, scale)
        self._write(codes, scale)
        return (
            f"{int(beyond.sum())} of {len(beyond)} channels rounded anew, its weights from"
            f" {self._decibels(before)} to {self._decibels(after)}"
        )

    def _project(self, chosen: Array, scale: NDArray[np.float32], limit: int) -> Array:
        """Return codes whose sums, with the bias in steps of the new scale, are within."""
        room = limit - np.abs(self._bias(scale, chosen).astype(np.int64))
        units = np.asarray(self.rows[chosen] / scale[:, None], np.float32)
        base = self.base[chosen]

        def rounded(part: NDArray[np.float32]) -> Array:
            return self.source.nearest(part / base) * base

        return project(units, room // reach(self.group.x), rounded).astype(self.codes.dtype)

    def _bias(self, scale: NDArray[np.float32], chosen: Array) -> NDArray[np.int32]:
        """Return the bias in steps of `float32(sx * scale)`."""
        x = self.group.x.qparams.scale
        old, new = (
            np.asarray(x * s, np.float32).astype(np.float64) for s in (self.scale[chosen], scale)
        )
        return np.asarray(np.rint(self.bias[chosen] * old / new), np.int32)

    def _errors(self, chosen: Array, codes: Array, scale: NDArray[np.float32]) -> Float64:
        wrong = codes * scale[:, None].astype(np.float64) - self.rows[chosen]
        return np.asarray(np.square(wrong).sum(axis=1))

    def _decibels(self, errors: Float64) -> str:
        signal, noise = np.square(self.rows, dtype=np.float64).sum(), errors.sum()
        return f"{10 * np.log10(signal / noise):.1f} dB" if signal and noise else "no error"

    def _rows(self, array: Array) -> Array:
        rows = array.reshape(-1, 1) if array.ndim == 1 else array
        rows = rows.T if self.transposed else rows
        return np.ascontiguousarray(rows).reshape(len(rows), -1)

    def _write(self, codes: Array, scale: NDArray[np.float32]) -> None:
        shape = self.codes.shape
        back = codes.T.reshape(shape) if self.transposed else codes.reshape(shape)
        group, kept = self.group, slice(None) if self.group.w.qparams.scale.ndim else 0
        parts = [(group.w.node, np.ascontiguousarray(back), scale[kept])]
        if group.bias is not None:
            bias = self._bias(scale, np.arange(len(scale)))
            step = np.asarray(group.x.qparams.scale * scale[kept], np.float32)
            parts.append((group.bias.node, bias, step))
        for node, new, step in parts:
            for value, array in zip(node.inputs[:2], (new, step), strict=True):
                assert value is not None and value.const_value is not None
                stored = value.const_value.shape.numpy()  # a bias may be one for all channels
                array = np.resize(array, stored)
                value.const_value = ir.tensor(array, name=value.name)
