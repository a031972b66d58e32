"""Store int8 codes as uint8: every code and its zero point 128 more.

before:  q = QuantizeLinear(x, s, z)          int8       r = DequantizeLinear(q, s, z)
after:   q = QuantizeLinear(x, s, z + 128)    uint8      r = DequantizeLinear(q, s, z + 128)

No real changes. ONNX Runtime leaves linear ops with int8 activations in float on x86 where the
activation has several readers; products of uint8 and int8 saturate on x86 without VNNI, those of
uint8 and uint8 do not. Values that move or clip codes move with them; what a user feeds or fetches
as int8 stays so.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor, constant, consumers
from edgeq.passing import Context, Pass

MOVES = (
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
OFFSET = 128


@dataclass(frozen=True)
class UnsignedCodes(Pass):
    """Turn int8 codes into uint8."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many groups of values that hold the same codes were turned."""
        editor = Editor(model.graph)
        done, seen = 0, set[ir.Value]()
        for start in _codes(model.graph):
            if start in seen:
                continue
            group = _same_codes(start)
            seen.update(group)
            if all(_can_turn(value) for value in group):
                _turn(group, editor)
                done += 1
        return done


def _codes(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the int8 values that a DequantizeLinear reads."""
    for node in list(graph):
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" and not node.domain else None
        if codes is not None and codes.dtype == ir.DataType.INT8:
            yield codes


def _same_codes(start: ir.Value) -> list[ir.Value]:
    """Return every value that holds codes of `start`, moved or clipped."""
    found, waiting = dict.fromkeys([start]), [start]
    while waiting:
        value = waiting.pop()
        node = value.producer()
        nodes = consumers(value) + ([] if node is None else [node])
        for other in nodes:
            if other.op_type not in (*MOVES, "Clip") or other.domain:
                continue
            for near in (*other.inputs, *other.outputs):
                if near is not None and near.dtype == ir.DataType.INT8 and near not in found:
                    found[near] = None
                    waiting.append(near)
    return list(found)


def _can_turn(value: ir.Value) -> bool:
    if value.is_graph_input() or value.is_graph_output():
        return False
    makers = ("QuantizeLinear", "Clip", *MOVES)
    readers = ("DequantizeLinear", "Clip", *MOVES)
    node = value.producer()
    made = constant(value) is not None if node is None else node.op_type in makers
    if node is not None and node.op_type == "QuantizeLinear":
        made = len(node.inputs) > 2 and constant(node.inputs[2]) is not None
    return made and all(
        reader.op_type in readers and (reader.op_type != "DequantizeLinear" or _known(reader))
        for reader in consumers(value)
    )


def _known(node: ir.Node) -> bool:
    return constant(node.inputs[1]) is not None and (
        len(node.inputs) < 3 or node.inputs[2] is None or constant(node.inputs[2]) is not None
    )


def _turn(group: list[ir.Value], editor: Editor) -> None:
    for value in group:
        for reader in consumers(value):
            if reader.op_type == "DequantizeLinear":
                _turn_zero_point(reader, editor)
        node = value.producer()
        if node is not None:
            value.dtype = ir.DataType.UINT8
            if node.op_type == "QuantizeLinear":
                _turn_zero_point(node, editor)
            continue
        array = constant(value)
        assert array is not None
        turned = (array.astype(np.int16) + OFFSET).astype(np.uint8)
        new = editor.initializer(f"{value.name}_u8", turned)
        for reader, index in list(value.uses()):
            reader.replace_input_with(index, new)
        editor.graph.initializers.pop(str(value.name), None)


def _turn_zero_point(node: ir.Node, editor: Editor) -> None:
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero is None:
        scale = constant(node.inputs[1])
        assert scale is not None
        zero = np.zeros(scale.shape, np.int8)
    turned = (zero.astype(np.int16) + OFFSET).astype(np.uint8)
    node.resize_inputs(3)
    node.replace_input_with(2, editor.initializer(f"{node.outputs[0].name}_zero_point", turned))
