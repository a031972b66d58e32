"""What each operator does to codes, as data: the passes decide by these tables, not by op names.

- MOVEMENT ops copy or select elements: on codes they are exact, so they run on codes.
- CLIPS are monotonic: quantizing and clipping commute, so they become limits on codes.
- FUNCTIONS are not defined by IEEE: they need a table of 256 entries.
- ACCUMULATING ops add many elements: on integers held in float32 their sums are exact.
- Every other op normalises, and has a pass of its own.
"""

from collections.abc import Iterator

import onnx_ir as ir

from edgeq.graph import constant, sole_consumer, string_attribute

LINEAR = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})

MOVEMENT = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalMaxPool", "Identity",
        "MaxPool", "Pad", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Slice", "SpaceToDepth",
        "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip

CLIPS = frozenset({"Relu", "Clip"})

ACCUMULATING = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "Resize"})

# What a table swallows between the codes and a function, where the other operand is one number.
SCALAR_ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})

FUNCTIONS = frozenset(
    {
        "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "Mish", "Reciprocal",
        "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh",
    }
)  # fmt: skip


def moves_codes(node: ir.Node) -> bool:
    """Whether `node` only copies or selects elements of its data inputs."""
    if node.domain or node.op_type not in MOVEMENT:
        return False
    if node.op_type == "Resize":
        return string_attribute(node, "mode", "nearest") == "nearest"
    if node.op_type == "Pad":
        return _pads_with_zero(node)
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1
    return True


def _pads_with_zero(node: ir.Node) -> bool:
    if string_attribute(node, "mode", "constant") != "constant":
        return True
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return True
    array = constant(value)
    return array is not None and not array.any()


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a movement op that hold data, not shapes or indices."""
    count = len(node.inputs) if node.op_type == "Concat" else 1
    return [value for value in node.inputs[:count] if value is not None]


def is_activation(value: ir.Value | None) -> bool:
    """Whether `value` is a float32 tensor computed at run time."""
    return value is not None and value.dtype == ir.DataType.FLOAT and constant(value) is None


def activation_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the float32 inputs of `node` that are computed at run time."""
    for value in node.inputs:
        if value is not None and is_activation(value):
            yield value


def behind_clips(value: ir.Value) -> ir.Value:
    """Follow `value` through the Relu and Clip nodes that alone read it; return the last value."""
    node = sole_consumer(value)
    while node is not None and _clips(node, value):
        value = node.outputs[0]
        node = sole_consumer(value)
    return value


def maker_of_range(value: ir.Value) -> ir.Node | None:
    """Return the node that makes `value`; in front of a Relu or Clip, which only limits, its maker.

    None for a graph input.
    """
    node = value.producer()
    if node is not None and node.op_type in CLIPS and node.inputs[0] is not None:
        node = node.inputs[0].producer() or node
    return node


def _clips(node: ir.Node, value: ir.Value) -> bool:
    """Whether `node` limits `value` to constants."""
    if node.op_type not in CLIPS or node.domain or node.inputs[0] is not value:
        return False
    return all(limit is None or constant(limit) is not None for limit in node.inputs[1:])
