"""Write the decided quantization into the graph, as standard QuantizeLinear / DequantizeLinear.

before:  y = Conv(x, w);  z = Add(y, x)
after:   x_q = QuantizeLinear(x, sx, zx)
         y   = Conv(DequantizeLinear(x_q, sx, zx), w)
         y_q = QuantizeLinear(y, sy, zy)
         z   = Add(DequantizeLinear(y_q, sy, zy), DequantizeLinear(x_q, sx, zx))

The codes of a value `x` are named `x_q`. Every reader gets a DequantizeLinear of its own, as
runtimes want it; ops that only move elements read and make codes, without a pair around them:

before:  y = MaxPool(x)          after:  y_q = MaxPool(x_q)

Where `context.copies` decides a uint8 copy of a value of more bits, linear ops and tables read it:

before:  y = Gemm(x, w)
after:   x_q = QuantizeLinear(x, s, z)                                              uint16
         x_q8 = QuantizeLinear(DequantizeLinear(x_q, s, z), s8, z8)                 uint8
         y = Gemm(DequantizeLinear(x_q8, s8, z8), w)

Codes of fewer than 8 bits lie in uint8 or int8 tensors, and a Clip holds them within their range:

after:   x_q = QuantizeLinear(x, s, z)                                              uint8
         x_q_clip = Clip(x_q, 0, 63)                                                uint6 in uint8
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.code_plan import reads_narrow
from edgeq.graph import Editor, consumers, producer, take_output
from edgeq.numerics.affine import QParams
from edgeq.passing import Context, Pass
from edgeq.qdq import REAL_NAME
from edgeq.roles import data_inputs, moves_codes


@dataclass(frozen=True)
class InsertQDQ(Pass):
    """Insert the pairs that `context.qparams` decides."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Insert the pairs; return how many values became codes."""
        writer = _Writer(model, context)
        for value in list(model.graph.inputs):
            writer.quantize(value, before=next(iter(model.graph), None))
        for node in list(model.graph):
            if writer.on_codes(node):
                writer.move(node)
            else:
                for value in node.outputs:
                    writer.quantize(value, before=None)
        writer.dequantize_all()
        return len(writer.codes)


class _Writer:
    """The codes made so far, and the edits that make them."""

    def __init__(self, model: ir.Model, context: Context) -> None:
        self.graph = model.graph
        self.editor = Editor(model.graph)
        self.context = context
        self.codes: dict[ir.Value, tuple[ir.Value, QParams]] = {}
        self.parameters: dict[bytes, tuple[ir.Value, ir.Value]] = {}
        self.limits: dict[str, list[ir.Value]] = {}

    def on_codes(self, node: ir.Node) -> bool:
        """Whether `node` moves codes: its data are codes, and its result has decided parameters."""
        if not moves_codes(node) or any(o.name not in self.context.qparams for o in node.outputs):
            return False
        wanted = self.context.qparams[node.outputs[0].name or ""]
        return all(
            value in self.codes and wanted.same_as(self.codes[value][1])
            for value in data_inputs(node)
        )

    def parameters_of(self, name: str, qparams: QParams) -> tuple[ir.Value, ir.Value]:
        """Return the initializers of `qparams`; equal parameters share theirs."""
        zero_point = qparams.zero_point.astype(qparams.qtype.dtype)
        key = qparams.scale.tobytes() + zero_point.tobytes() + qparams.qtype.name.encode()
        if key not in self.parameters:
            self.parameters[key] = (
                self.editor.initializer(f"{name}_scale", qparams.scale),
                self.editor.initializer(f"{name}_zero_point", zero_point),
            )
        return self.parameters[key]

    def quantize(self, value: ir.Value, before: ir.Node | None) -> None:
        """Insert the QuantizeLinear of `value`, if its parameters are decided."""
        name = value.name or ""
        qparams = self.context.qparams.get(name)
        if qparams is None:
            return
        scale, zero_point = self.parameters_of(name, qparams)
        if name in self.context.input_types and value.is_graph_input():
            value.type = _code_type(qparams)
            self.codes[value] = (value, qparams)
            return
        codes = self.editor.node(
            "QuantizeLinear",
            [value, scale, zero_point],
            f"{name}_q",
            dtype=ir.DataType.from_numpy(qparams.qtype.dtype),
            shape=value.shape,
        )
        made = [codes, *self._clipped(codes, qparams)]
        made[-1].metadata_props[REAL_NAME] = name
        if value.producer() is None:
            self.editor.insert_first(made)
        else:
            self.editor.insert_after(producer(value), made)
        self.codes[value] = (made[-1], qparams)

    def _clipped(self, codes: ir.Value, qparams: QParams) -> list[ir.Value]:
        """Return the codes within the range of their format, where tensors hold more."""
        qtype = qparams.qtype
        if qtype.bits == qtype.storage.bits:
            return []
        if qtype.name not in self.limits:
            self.limits[qtype.name] = [
                self.editor.initializer(f"{qtype.name}_{name}", np.array(limit, qtype.dtype))
                for name, limit in (("min", qtype.qmin), ("max", qtype.qmax))
            ]
        inputs = [codes, *self.limits[qtype.name]]
        name = f"{codes.name}_clip"
        return [self.editor.node("Clip", inputs, name, dtype=codes.dtype, shape=codes.shape)]

    def move(self, node: ir.Node) -> None:
        """Let a movement op read and make codes."""
        qparams = self.context.qparams[node.outputs[0].name or ""]
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.codes:
                node.replace_input_with(index, self.codes[value][0])
        if node.op_type == "Pad":
            self._pad_with_zero_point(node, qparams)
        for value in node.outputs:
            self._make_codes(value, qparams)

    def _make_codes(self, value: ir.Value, qparams: QParams) -> None:
        """Turn the output of a movement op into codes, and keep a float value for its readers."""
        stand_in = ir.Value(name=value.name, shape=value.shape, type=value.type)
        for reader, index in list(value.uses()):
            reader.replace_input_with(index, stand_in)
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = stand_in
        value.metadata_props[REAL_NAME] = value.name or ""
        value.name = self.editor.names.fresh(f"{value.name}_q")
        value.type = _code_type(qparams)
        self.codes[stand_in] = (value, qparams)

    def _pad_with_zero_point(self, node: ir.Node, qparams: QParams) -> None:
        node.resize_inputs(max(3, len(node.inputs)))
        zero_point = qparams.zero_point.astype(qparams.qtype.dtype).reshape(())
        name = node.outputs[0].name
        node.replace_input_with(2, self.editor.initializer(f"{name}_pad", np.asarray(zero_point)))

    def dequantize_all(self) -> None:
        """Give every reader of a quantized value a DequantizeLinear of its codes."""
        for value, (codes, qparams) in self.codes.items():
            copies: list[ir.Value] = []
            for reader in consumers(value):
                if reader.op_type == "QuantizeLinear" and _makes(reader, codes):
                    continue
                if value is codes and _reads_codes(reader):
                    continue
                if self._scales_reals(reader, value, qparams):
                    continue
                if value.name in self.context.copies and reads_narrow(reader):
                    real = self._dequantize_copy(value, codes, qparams, copies)
                else:
                    real = self._dequantize(value, codes, qparams)
                self.editor.insert_before(reader, [real])
                for index, read in enumerate(reader.inputs):
                    if read is value:
                        reader.replace_input_with(index, real)
            self._dequantize_output(value, codes, qparams)

    def _scales_reals(self, reader: ir.Node, value: ir.Value, qparams: QParams) -> bool:
        """Whether `reader` makes other units of `value`, before 8 bits round it for others."""
        scaled = reader.outputs[0].name in self.context.channel_scales
        return scaled and qparams.qtype.bits <= 8 and value.producer() is not None

    def _dequantize(self, value: ir.Value, codes: ir.Value, qparams: QParams) -> ir.Value:
        scale, zero_point = self.parameters_of(value.name or "", qparams)
        return self.editor.node(
            "DequantizeLinear",
            [codes, scale, zero_point],
            f"{value.name}_dq",
            dtype=ir.DataType.FLOAT,
            shape=value.shape,
        )

    def _dequantize_copy(
        self, value: ir.Value, codes: ir.Value, qparams: QParams, copies: list[ir.Value]
    ) -> ir.Value:
        """Return the reals of the uint8 copy of `value`; `copies` holds it, once it is made."""
        narrow = self.context.copies[value.name or ""]
        name = f"{value.name}_{narrow.qtype.name}"
        if not copies:
            real = self._dequantize(value, codes, qparams)
            scale, zero_point = self.parameters_of(name, narrow)
            copy = self.editor.node(
                "QuantizeLinear",
                [real, scale, zero_point],
                f"{name}_q",
                dtype=ir.DataType.from_numpy(narrow.qtype.dtype),
                shape=value.shape,
            )
            source, made = codes.producer(), [real, copy, *self._clipped(copy, narrow)]
            if source is None:
                self.editor.insert_first(made)
            else:
                self.editor.insert_after(source, made)
            copies.append(made[-1])
        return self._dequantize(value, copies[0], narrow)

    def _dequantize_output(self, value: ir.Value, codes: ir.Value, qparams: QParams) -> None:
        # An input that is an output as well passes through as it is.
        if value.is_graph_input() or not any(output is value for output in self.graph.outputs):
            return
        real = codes
        if value.name not in self.context.output_types:
            real = self._dequantize(value, codes, qparams)
            self.graph.append(producer(real))
        if value.producer() is not None:
            take_output(value, real)
            return
        real.name = value.name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = real


def _code_type(qparams: QParams) -> ir.TensorType:
    # A new type: a clone of the model shares the old one.
    return ir.TensorType(ir.DataType.from_numpy(qparams.qtype.dtype))


def _reads_codes(node: ir.Node) -> bool:
    return moves_codes(node) and node.outputs[0].dtype != ir.DataType.FLOAT


def _makes(node: ir.Node, codes: ir.Value) -> bool:
    """Whether the QuantizeLinear `node` makes the codes, clipped or not."""
    clip = codes.producer()
    return codes in node.outputs or (clip is not None and clip.inputs[0] in node.outputs)
