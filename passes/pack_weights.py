"""Store weight codes of at most 4 bits in 4 bits: two to a byte.

before:  w = DequantizeLinear(w_q, sw, 0)                          w_q int8
after:   w = DequantizeLinear(Cast(w_q4), sw, 0)                   w_q4 int4: codes -8 .. 7
         w = DequantizeLinear(Cast(Mul(Cast(w_q4), 2**shift)), sw, 0)        channels shifted
         w = DequantizeLinear(Gather(table, Cast(w_q4)), sw, 0)    w_q4 uint4: 16 different codes

A table holds what int4 does not: 4-bit floats. ONNX Runtime computes such constants once, when it
loads the model, and takes the same integer kernels as before; TVM targets keep them packed in
flash. Embeddings, which a Gather reads by row, are stored alike. Codes of 5 to 7 bits stay int8:
ONNX has no type for them. What is small stays as well, where the nodes would take what the codes
save. The pass comes last: others rewrite int8 codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.bit_choice import SMALLEST_PACKED
from edgeq.graph import Editor, constant, replace_uses
from edgeq.passing import Context, Pass

Array = NDArray[Any]
INT8, INT32 = ir.DataType.INT8, ir.DataType.INT32


@dataclass(frozen=True)
class PackWeights(Pass):
    """Pack the codes of weights and embeddings."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many weights were packed."""
        editor = Editor(model.graph)
        done = 0
        for value in list(model.graph.initializers.values()):
            codes = constant(value)
            if codes is None or codes.dtype != np.int8 or codes.size < SMALLEST_PACKED:
                continue
            if not _is_weight(value):
                continue
            source = context.float_weights.get(str(value.name))
            made = _packed(value, codes, None if source is None else source.shift, editor)
            if made is not None:
                _replace(value, made, editor)
                done += 1
        return done


def _is_weight(value: ir.Value) -> bool:
    """Whether all that reads `value` dequantizes it, or picks rows of it that are dequantized."""
    if value.is_graph_output() or value.is_graph_input():
        return False
    readers = [(node, index) for node, index in value.uses()]
    rows = [node for node, _ in readers if node.op_type == "Gather"]
    reads = [*readers, *(use for node in rows for use in node.outputs[0].uses())]
    return bool(readers) and all(
        index == 0 and (node.op_type == "DequantizeLinear" or node in rows) for node, index in reads
    )


def _packed(
    value: ir.Value, codes: Array, shift: NDArray[np.int32] | None, editor: Editor
) -> Sequence[ir.Value] | None:
    """Return the values that compute the codes from 4 bits; None where 4 bits do not hold them."""
    write = _Writer(value, codes.shape, editor)
    if codes.min() >= -8 and codes.max() <= 7:
        write.cast(write.stored(codes.astype(ml_dtypes.int4)), INT8)
        return write.made
    table = np.unique(codes)
    if len(table) <= 16:
        places = np.searchsorted(table, codes).astype(np.uint8)
        index = write.cast(write.stored(places.astype(ml_dtypes.uint4)), INT32)
        filled = np.pad(table, (0, 16 - len(table)))
        write.node("Gather", editor.initializer(f"{value.name}_table", filled), index, INT8)
        return write.made
    if shift is None:
        return None
    base = np.right_shift(codes.astype(np.int32), shift)
    if base.min() < -8 or base.max() > 7 or not np.array_equal(np.left_shift(base, shift), codes):
        return None
    units = write.cast(write.stored(base.astype(np.int8).astype(ml_dtypes.int4)), INT32)
    factors = editor.initializer(f"{value.name}_units", np.left_shift(np.int32(1), shift))
    write.cast(write.node("Mul", units, factors, INT32), INT8)
    return write.made


class _Writer:
    """Writes the nodes that unpack one weight."""

    def __init__(self, value: ir.Value, shape: tuple[int, ...], editor: Editor) -> None:
        self.made: list[ir.Value] = []
        self._name = str(value.name)
        self._shape = shape
        self._editor = editor

    def stored(self, packed: Array) -> ir.Value:
        return self._editor.initializer(f"{self._name}4", packed)

    def cast(self, x: ir.Value, to: ir.DataType) -> ir.Value:
        return self.node("Cast", x, None, to, to=to.value)

    def node(
        self, op_type: str, x: ir.Value, y: ir.Value | None, dtype: ir.DataType, **attributes: int
    ) -> ir.Value:
        inputs = [x] if y is None else [x, y]
        value = self._editor.node(
            op_type, inputs, f"{self._name}_unpacked", attributes=dict(attributes), dtype=dtype,
            shape=self._shape,
        )  # fmt: skip
        self.made.append(value)
        return value


def _replace(value: ir.Value, made: Sequence[ir.Value], editor: Editor) -> None:
    replace_uses(value, made[-1])
    editor.insert_first(made)
    del editor.graph.initializers[str(value.name)]
    made[-1].name = value.name  # the codes keep their name
