"""Write the correction of a softmax into the product that reads its codes.

    scale       y = MatMul(DequantizeLinear(p, float32(sp * rho), 0), DequantizeLinear(v, sv, zv))

    beta        acc = Cast(MatMulInteger(p, v, 0, zv))                                float32
                sum = Cast(sum of v - zv over the keys that a query sees)             float32
                y   = QuantizeLinear(acc + sum * (beta / sp), float32(sy / (sp * sv)), zy)

The sum is that of `edgeq.seen_values`. Where v is constant it is constant too: a Gemm takes it into
its int32 bias. beta is the same everywhere, or differs by head, or by the bucket of an integer
input as well: then it is looked up.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.buckets import Buckets
from edgeq.chain import Chain
from edgeq.graph import Editor, int_attribute, replace_uses, take_output
from edgeq.numerics.affine import along
from edgeq.qdq import LinearGroup, Operand
from edgeq.quantized_attention import QuantizedAttention
from edgeq.seen_values import SeenValues, stored_zero_point

Float64 = NDArray[np.float64]
INT32, INT64, FLOAT = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT
BITS = 8  # of beta / sp


def rounded_beta(attention: QuantizedAttention, beta: Float64) -> Float64:
    """Return beta such that `beta / sp` has 8 bits."""
    scale = float(attention.group.x.qparams.scale)
    fraction, exponent = np.frexp(beta / scale)
    return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, BITS)), exponent - BITS) * scale)


def write_scale(group: LinearGroup, rho: float, editor: Editor) -> None:
    """Let the codes of the probabilities be read with `rho` times their scale."""
    scale = np.float32(np.float32(rho) * group.x.qparams.scale)
    name = f"{group.x.codes.name}_corrected_scale"
    group.x.node.replace_input_with(1, editor.initializer(name, scale))


def write_bias(group: LinearGroup, beta: float, editor: Editor) -> None:
    """Add `beta * sum of v` to the int32 bias of a Gemm with constant v, rounded once."""
    node, x, w = group.node, group.x, group.w
    assert w.array is not None
    axis = 1 if int_attribute(node, "transB", 0) else 0
    total = _units(w, w.array).sum(axis) * (beta / float(x.qparams.scale))
    bias = np.rint(total).astype(np.int64)
    if group.bias is not None and group.bias.array is not None:
        bias = bias + group.bias.array.astype(np.int64)
    scale = np.broadcast_to(np.asarray(x.qparams.scale * w.qparams.scale, np.float32), bias.shape)
    name = f"{node.outputs[0].name}_bias"
    real = editor.node(
        "DequantizeLinear",
        [
            editor.initializer(f"{name}_q", bias.astype(np.int32)),
            editor.initializer(f"{name}_scale", scale.copy()),
            editor.initializer(f"{name}_zero_point", np.zeros(bias.shape, np.int32)),
        ],
        name,
        attributes={"axis": 0},
        dtype=FLOAT,
        shape=bias.shape,
    )
    editor.insert_before(node, [real])
    node.resize_inputs(3)
    node.replace_input_with(2, real)


class TermWriter:
    """Writes rank-1 terms; those of one model share what they are looked up by."""

    def __init__(
        self, editor: Editor, seen: SeenValues, step: ir.Value | None, buckets: Buckets | None
    ) -> None:
        """Prepare; `step` is the integer input whose range `buckets` cut, if there is one."""
        self._editor = editor
        self._seen = seen
        self._step = step
        self._buckets = buckets
        self._bucket: ir.Value | None = None

    def write(self, attention: QuantizedAttention, beta: Float64) -> None:
        """Write the term of an attention; `beta` is (buckets, heads)."""
        group = attention.group
        assert group.y is not None and group.w.array is None
        x, w, y = group.x, group.w, group.y
        product = group.node.outputs[0]
        write = Chain(self._editor, str(product.name))
        zeros = [write.constant(stored_zero_point(o.qparams)) for o in (x, w)]
        acc = write("MatMulInteger", x.codes, w.codes, *zeros, shape=product.shape, dtype=INT32)
        share = self._share(write, beta / float(x.qparams.scale))
        term = write("Mul", write.cast(self._seen.sum(write, attention), FLOAT), share)
        corrected = write("Add", write.cast(acc, FLOAT), term)
        ratio = np.float32(y.qparams.scale / np.float32(x.qparams.scale * w.qparams.scale))
        parameters = [write.constant(ratio), write.constant(stored_zero_point(y.qparams))]
        codes = write("QuantizeLinear", corrected, *parameters, dtype=y.codes.dtype)
        codes.metadata_props.update(y.codes.metadata_props)
        write.insert_before(group.node)
        replace_uses(y.codes, codes)
        take_output(y.codes, codes)

    def _share(self, write: Chain, share: Float64) -> ir.Value:
        """Return `beta / sp`, broadcastable to the product."""
        if np.all(share == share[0, 0]):
            return write.constant(np.float32(share[0, 0]))
        if np.all(share == share[0]):
            return write.constant(share[0].astype(np.float32).reshape(-1, 1, 1))
        table = write.constant(share.astype(np.float32))
        bucket = self._bucket_of_step()
        assert bucket.shape is not None
        lead = [*bucket.shape, share.shape[1]]
        heads = write("Gather", table, bucket, shape=lead)
        axes = write.constant(np.array([-2, -1]))
        return write("Unsqueeze", heads, axes, shape=[*lead, 1, 1])

    def _bucket_of_step(self) -> ir.Value:
        """Return `(step - low) * count / span`, made once."""
        if self._bucket is None:
            step, buckets = self._step, self._buckets
            assert step is not None and buckets is not None
            write = Chain(self._editor, f"{step.name}_bucket")
            span = buckets.high - buckets.low + 1
            value = write.cast(step, INT64)
            for op_type, number in (("Sub", buckets.low), ("Mul", buckets.count), ("Div", span)):
                value = write(op_type, value, write.constant(np.int64(number)))
            self._editor.insert_first(write.made)
            self._bucket = value
        return self._bucket


def _units(w: Operand, codes: NDArray[np.integer]) -> NDArray[np.int64]:
    zero_point = along(w.qparams.zero_point, w.qparams.axis, codes.ndim)
    return np.asarray(codes.astype(np.int64) - zero_point)
