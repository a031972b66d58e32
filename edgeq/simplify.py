"""Single-node simplifications that onnxsim leaves: no-ops, run-time shapes, old Softmax.

Each rule reads one node and rewires its neighbours; dead nodes are removed by the caller.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from edgeq.dims import same_dim, shape_values
from edgeq.elementary import write_elementary
from edgeq.graph import (
    Editor,
    constant,
    int_attribute,
    producer,
    rank,
    replace_uses,
    sole_consumer,
    static_shape,
    take_output,
)


def simplify_nodes(graph: ir.Graph) -> int:
    """Apply every rule once to every node of `graph`; return how many applied."""
    editor = Editor(graph)
    rules: tuple[Callable[[ir.Node, Editor], bool], ...] = (
        _bypass,
        _constant_reshape,
        _plain_softmax,
        write_elementary,
    )
    return sum(rule(node, editor) for node in list(graph) if not node.domain for rule in rules)


def _bypass(node: ir.Node, editor: Editor) -> bool:
    """Identity, and Dropout at inference: readers read its input instead."""
    if node.op_type == "Dropout":
        if node.inputs[2:] and node.inputs[2] is not None and constant(node.inputs[2]) != np.False_:
            return False
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
            return False
    elif node.op_type != "Identity":
        return False
    source, output = node.inputs[0], node.outputs[0]
    if source is None or not (output.uses() or output.is_graph_output()):
        return False
    if not output.is_graph_output():
        replace_uses(output, source)
        return True
    if source.is_graph_input() or source.is_graph_output() or source.is_initializer():
        return False
    replace_uses(output, source)
    take_output(output, source)
    return True


def _constant_reshape(node: ir.Node, editor: Editor) -> bool:
    """Reshape(x, shape computed from x's shape): `0` for a kept dimension, `-1` for one unknown."""
    if node.op_type != "Reshape" or constant(node.inputs[1]) is not None:
        return False
    data, shape = node.inputs[0], node.inputs[1]
    dims = None if shape is None else shape_values(shape)
    if data is None or data.shape is None or dims is None or int_attribute(node, "allowzero", 0):
        return False
    result = [
        0 if not isinstance(d, int) and i < len(data.shape) and same_dim(d, data.shape[i]) else d
        for i, d in enumerate(dims)
    ]
    unknown = [i for i, d in enumerate(result) if not isinstance(d, int)]
    if len(unknown) > 1 or (unknown and -1 in result):
        return False
    numbers = [d if isinstance(d, int) else -1 for d in result]
    name = f"{node.outputs[0].name}_shape"
    node.replace_input_with(1, editor.initializer(name, np.array(numbers, np.int64)))
    return True


def _plain_softmax(node: ir.Node, editor: Editor) -> bool:
    """Flatten(axis = last) -> Softmax(-1) -> Reshape(back) is Softmax(-1)."""
    if node.op_type != "Softmax":
        return False
    flatten = None if node.inputs[0] is None else node.inputs[0].producer()
    reshape = sole_consumer(node.outputs[0])
    if flatten is None or flatten.op_type != "Flatten" or flatten.domain:
        return False
    if reshape is None or reshape.op_type != "Reshape":
        return False
    data, output = flatten.inputs[0], reshape.outputs[0]
    if data is None or (ndim := rank(data)) is None or ndim < 2:
        return False
    last = int_attribute(flatten, "axis", 1) % ndim == ndim - 1
    if not last or int_attribute(node, "axis", -1) not in (-1, 1):
        return False
    if static_shape(data) is None or static_shape(data) != static_shape(output):
        return False
    softmax = editor.node(
        "Softmax", [data], f"{output.name}_softmax", attributes={"axis": -1}, dtype=data.dtype,
        shape=data.shape,
    )  # fmt: skip
    producer(softmax).name = node.name
    editor.insert_before(node, [softmax])
    replace_uses(output, softmax)
    take_output(output, softmax)
    return True
