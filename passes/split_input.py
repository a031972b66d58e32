"""Give an input that 8 bits ruin a second term, on the integer kernels as they are.

before:  x_q = QuantizeLinear(x, s, z);  y = Conv(DequantizeLinear(x_q, s, z), w)
after:   x_q = QuantizeLinear(x, s, z)
         r_q = QuantizeLinear(Sub(x, DequantizeLinear(x_q, s, z)), s / 16, z)
         y   = Conv(DequantizeLinear(Concat(x_q, r_q), s, z), Concat(w, w / 16))

The second term is what rounding the first one lost, in steps of s / 16; read with scale s it counts
16 times, and its weights take that back. Both share one scale, so one integer Conv or Gemm of twice
the channels does all the work. A float input may need it: a noise predictor multiplies what it sees
by the inverse of the noise level. The pass measures, on calibration samples, what rounding the
input alone does to the outputs, and splits the input where that is worse than `below` dB.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor, constant, consumers, int_attribute
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, Pass
from edgeq.qdq import operand, quantize_node
from edgeq.runtime import make_session, run

FACTOR = 16.0  # a weight over 127 / 16 still has half a step of 8: both terms lose 24 dB


@dataclass(frozen=True)
class SplitInput(Pass):
    """Split float inputs whose rounding costs too much.

    Attributes:
        below: SQNR of the outputs, in dB, with nothing but this input rounded.
        samples: How many calibration samples to measure on.
    """

    below: float = 35.0
    samples: int = 32

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many inputs were split."""
        editor = Editor(model.graph)
        done = 0
        for value in list(model.graph.inputs):
            first = _quantize(value)
            readers = None if first is None else _linear_readers(first.outputs[0])
            qparams = context.qparams.get(value.name or "")
            if first is None or not readers or qparams is None:
                continue
            cost = _cost(str(value.name), qparams, context, self.samples)
            if cost >= self.below:
                continue
            _split(value, first, readers, qparams, editor)
            text = f"input {value.name}: rounding it alone leaves {cost:.1f} dB; split in two terms"
            context.notes.append((self.name(), text))
            done += 1
        return done


def _quantize(value: ir.Value) -> ir.Node | None:
    """Return the QuantizeLinear that alone reads the input."""
    readers = consumers(value)
    if value.dtype != ir.DataType.FLOAT or value.is_graph_output() or len(readers) != 1:
        return None
    found = quantize_node(readers[0])
    return readers[0] if found is not None and found.qparams.qtype.name == "uint8" else None


def _linear_readers(codes: ir.Value) -> list[ir.Node]:
    """Return the linear ops that read the codes; none if anything else does."""
    found = []
    for real in consumers(codes):
        if real.op_type != "DequantizeLinear" or operand(real.outputs[0]) is None:
            return []
        for node in consumers(real.outputs[0]):
            if not _takes_channels(node, real.outputs[0]):
                return []
            found.append(node)
    return found


def _takes_channels(node: ir.Node, real: ir.Value) -> bool:
    """Whether more channels of `real` are more channels of a weight."""
    if node.domain or node.op_type not in ("Conv", "Gemm") or node.inputs[0] is not real:
        return False
    weight = constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or real in node.inputs[1:]:
        return False
    if node.op_type == "Gemm":
        return not int_attribute(node, "transA", 0) and weight.ndim == 2
    return int_attribute(node, "group", 1) == 1


def _cost(name: str, qparams: QParams, context: Context, samples: int) -> float:
    """Return the SQNR of the float model's outputs, in dB, when only the input is rounded."""
    reference = context.reference
    assert reference is not None
    session = make_session(reference, threads=2)
    real = [str(v.name) for v in reference.graph.outputs if v.dtype == ir.DataType.FLOAT]
    signal = noise = 0.0
    for feed in itertools.islice(iter(context.samples), samples):
        if feed[name].dtype != np.float32:
            return math.inf  # camera frames: nothing is rounded
        ideal = run(session, feed)
        rounded = run(session, {**feed, name: qparams.fake_quantize(feed[name])})
        for output in real:
            wide = ideal[output].astype(np.float64)
            signal += float(np.square(wide).sum())
            noise += float(np.square(wide - rounded[output]).sum())
    if not signal or not noise:
        return math.inf
    return 10 * math.log10(signal / noise)


def _split(
    value: ir.Value, first: ir.Node, readers: list[ir.Node], qparams: QParams, editor: Editor
) -> None:
    codes, (scale, zero_point) = first.outputs[0], first.inputs[1:3]
    name, shape = str(value.name), value.shape
    assert scale is not None and zero_point is not None and shape is not None
    parameters = [scale, zero_point]
    channels = shape[1]
    dims = [*shape[:1], 2 * channels if isinstance(channels, int) else None, *shape[2:]]
    doubled = ir.Shape(dims)
    old = consumers(codes)
    kept = editor.node(
        "DequantizeLinear", [codes, *parameters], f"{name}_kept", dtype=value.dtype, shape=shape
    )
    rest = editor.node("Sub", [value, kept], f"{name}_rest", dtype=value.dtype, shape=shape)
    step = editor.initializer(f"{name}_rest_scale", np.float32(qparams.scale / FACTOR))
    rest_codes = editor.node(
        "QuantizeLinear", [rest, step, zero_point], f"{name}_rest_q", dtype=codes.dtype, shape=shape
    )
    both = editor.node(
        "Concat", [codes, rest_codes], f"{name}_both_q", attributes={"axis": 1}, dtype=codes.dtype,
        shape=doubled,
    )  # fmt: skip
    editor.insert_after(first, [kept, rest, rest_codes, both])
    for real in old:
        real.replace_input_with(0, both)
        real.outputs[0].shape = doubled
    for node in readers:
        weight = constant(node.inputs[1])
        assert weight is not None and node.inputs[1] is not None
        axis = 0 if node.op_type == "Gemm" and not int_attribute(node, "transB", 0) else 1
        wide = np.concatenate([weight, weight / np.float32(FACTOR)], axis)
        node.replace_input_with(1, editor.initializer(f"{node.inputs[1].name}_both", wide))
