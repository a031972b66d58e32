"""Single-node simplifications that onnxsim leaves: no-ops, run-time shapes, detours, old Softmax.

Each rule reads one node and rewires its neighbours; dead nodes are removed by the caller.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgeq.counts import neutral_operand
from edgeq.dims import Dim, dim_product, same_dim, same_shape, shape_values
from edgeq.elementary import write_elementary
from edgeq.graph import (
    Editor,
    constant,
    int_attribute,
    ints_attribute,
    producer,
    rank,
    replace_uses,
    sole_consumer,
    static_shape,
    take_output,
)
from edgeq.idle_choice import chosen_operand
from edgeq.normalization_spelling import write_normalization

_OPTIONAL_OUTPUTS = frozenset({"BatchNormalization", "Dropout", "LayerNormalization", "MaxPool"})


def simplify_nodes(graph: ir.Graph) -> int:
    """Apply every rule once to every node of `graph`; return how many applied."""
    editor = Editor(graph)
    rules: tuple[Callable[[ir.Node, Editor], bool], ...] = (
        _bypass,
        _unread_outputs,
        _constant_reshape,
        _transpose_in_reshapes,
        _transpose_twice,
        _plain_softmax,
        write_elementary,
        write_normalization,
    )
    return sum(rule(node, editor) for node in list(graph) if not node.domain for rule in rules)


def _bypass(node: ir.Node, editor: Editor) -> bool:
    """What changes nothing: readers read its input instead."""
    source, output = _unchanged(node), node.outputs[0]
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


def _unchanged(node: ir.Node) -> ir.Value | None:
    """Return the input of `node` that its output is equal to, if there is one."""
    source = node.inputs[0] if node.inputs else None
    if source is None or node.op_type == "Identity":
        return source
    if node.op_type == "Dropout":  # at inference
        training = node.inputs[2] if len(node.inputs) > 2 else None
        read = any(out.uses() or out.is_graph_output() for out in node.outputs[1:])
        trained = training is not None and constant(training) != np.False_
        return None if read or trained else source
    if node.op_type == "Reshape":
        return source if same_shape(source, node.outputs[0]) else None
    if node.op_type == "Transpose":
        perm = ints_attribute(node, "perm", ())
        return source if perm and perm == tuple(range(len(perm))) else None
    return chosen_operand(node) or neutral_operand(node)


def _unread_outputs(node: ir.Node, editor: Editor) -> bool:
    """Statistics and indices that nobody reads: a node has as many outputs as are read."""
    read = [bool(out.uses()) or out.is_graph_output() for out in node.outputs]
    if node.op_type not in _OPTIONAL_OUTPUTS or all(read[1:]) or not read[0]:
        return False
    count = max(index for index, is_read in enumerate(read) if is_read) + 1
    if count == len(read):
        return False
    node.resize_outputs(count)
    return True


def _constant_reshape(node: ir.Node, editor: Editor) -> bool:
    """Reshape(x, shape computed from x's shape): `0` for a kept dimension, `-1` for one unknown."""
    if node.op_type != "Reshape" or constant(node.inputs[1]) is not None:
        return False
    data, shape = node.inputs[0], node.inputs[1]
    dims = None if shape is None else shape_values(shape)
    if data is None or data.shape is None or dims is None:
        return False
    if 0 in dims and int_attribute(node, "allowzero", 0):
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
    node.attributes.pop("allowzero", None)
    return True


def _transpose_in_reshapes(node: ir.Node, editor: Editor) -> bool:
    """Transpose whose leading dimension is joined before and divided again behind.

    Reshape([B, H, L, D] -> [B*H, L, D]) -> Transpose(0, 2, 1) -> Reshape(-> [B, H, D, L]) is
    Transpose(0, 1, 3, 2): the keys of torch's scaled_dot_product_attention.
    """
    if node.op_type != "Transpose" or (perm := ints_attribute(node, "perm", ()))[:1] != (0,):
        return False
    join = None if node.inputs[0] is None else node.inputs[0].producer()
    split = sole_consumer(node.outputs[0])
    if join is None or split is None:
        return False
    if join.op_type != "Reshape" or split.op_type != "Reshape" or join.domain or split.domain:
        return False
    data, output = join.inputs[0], split.outputs[0]
    joined = node.inputs[0]
    assert joined is not None
    if data is None or data.shape is None or output.shape is None or joined.shape is None:
        return False
    lead = len(data.shape) - len(perm) + 1
    whole = [*range(lead), *(axis + lead - 1 for axis in perm[1:])]
    source, inner = list(data.shape), list(joined.shape)
    if lead < 1 or not _same([source[axis] for axis in whole], list(output.shape)):
        return False
    if not _same([dim_product(source[:lead]), *source[lead:]], inner):
        return False
    result = editor.node(
        "Transpose", [data], f"{output.name}_transposed", attributes={"perm": whole},
        dtype=data.dtype, shape=output.shape,
    )  # fmt: skip
    editor.insert_before(split, [result])
    replace_uses(output, result)
    if output.is_graph_output():
        take_output(output, result)
    return True


def _same(a: Sequence[Dim | None], b: Sequence[Dim]) -> bool:
    return len(a) == len(b) and all(
        x is not None and same_dim(x, y) for x, y in zip(a, b, strict=True)
    )


def _transpose_twice(node: ir.Node, editor: Editor) -> bool:
    """Transpose(Transpose(x)) is one Transpose of x."""
    if node.op_type != "Transpose" or node.inputs[0] is None:
        return False
    first = node.inputs[0].producer()
    if first is None or first.op_type != "Transpose":
        return False
    source = first.inputs[0]
    inner, outer = (ints_attribute(n, "perm", ()) for n in (first, node))
    if first.domain or source is None or not inner or not outer:
        return False
    node.replace_input_with(0, source)
    node.attributes["perm"] = ir.AttrInt64s("perm", [inner[axis] for axis in outer])
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
