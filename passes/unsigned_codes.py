"""Store int8 codes as uint8: every code and its zero point 128 more.

before:  q = QuantizeLinear(x, s, z)          int8       r = DequantizeLinear(q, s, z)
after:   q = QuantizeLinear(x, s, z + 128)    uint8      r = DequantizeLinear(q, s, z + 128)

No real changes. ONNX Runtime leaves linear ops with int8 activations in float on x86 where the
activation has several readers; products of uint8 and int8 saturate on x86 without VNNI, those of
uint8 and uint8 do not. Values that move or clip codes move with them. What a user feeds or fetches
as int8 stays so, 128 less or more behind it:

before:  r = DequantizeLinear(x, s, z)                                    x is an input, int8
after:   r = DequantizeLinear(Cast<uint8>(Add(Cast<int32>(x), 128)), s, z + 128)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor, constant, consumers, take_output
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
    """Yield the int8 values that a DequantizeLinear reads or a QuantizeLinear makes."""
    for node in list(graph):
        if node.domain or node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            continue
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
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
    makers = ("QuantizeLinear", "Clip", *MOVES)
    readers = ("DequantizeLinear", "Clip", *MOVES)
    node = value.producer()
    made = value.is_graph_input() or constant(value) is not None
    if node is not None:
        made = node.op_type in makers
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
        if value.is_graph_input():
            readers = list(value.uses())
            turned_input = _moved(value, OFFSET, ir.DataType.UINT8, editor)
            editor.insert_first(turned_input)
            for reader, index in readers:
                reader.replace_input_with(index, turned_input[-1])
            continue
        if node is not None:
            value.dtype = ir.DataType.UINT8
            if node.op_type == "QuantizeLinear":
                _turn_zero_point(node, editor)
            if value.is_graph_output():
                fetched = _moved(value, -OFFSET, ir.DataType.INT8, editor)
                editor.insert_after(node, fetched)
                take_output(value, fetched[-1])
            continue
        array = constant(value)
        assert array is not None
        turned = (array.astype(np.int16) + OFFSET).astype(np.uint8)
        new = editor.initializer(f"{value.name}_u8", turned)
        for reader, index in list(value.uses()):
            reader.replace_input_with(index, new)
        editor.graph.initializers.pop(str(value.name), None)


def _moved(
    value: ir.Value, by: int, dtype: ir.DataType, editor: Editor
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return `value` with every code moved; the caller inserts the nodes."""
    name, int32 = value.name or "x", ir.DataType.INT32
    wide = editor.node(
        "Cast", [value], f"{name}_wide", attributes={"to": int32}, dtype=int32, shape=value.shape
    )
    offset = editor.initializer(f"{name}_offset", np.int32(by))
    moved = editor.node("Add", [wide, offset], f"{name}_moved", dtype=int32, shape=value.shape)
    codes = editor.node(
        "Cast", [moved], f"{name}_codes", attributes={"to": dtype}, dtype=dtype, shape=value.shape
    )
    return wide, moved, codes


def _turn_zero_point(node: ir.Node, editor: Editor) -> None:
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero is None:
        scale = constant(node.inputs[1])
        assert scale is not None
        zero = np.zeros(scale.shape, np.int8)
    turned = (zero.astype(np.int16) + OFFSET).astype(np.uint8)
    node.resize_inputs(3)
    node.replace_input_with(2, editor.initializer(f"{node.outputs[0].name}_zero_point", turned))
