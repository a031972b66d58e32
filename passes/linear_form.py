"""Write every product with a constant matrix as one Gemm of one form.

before:  y = Add(MatMul(x[N, L, K], w[K, M]), b)
after:   y = Reshape(Gemm(Reshape(x, [-1, K]), transpose(w), b, transB=1), [-1, L, M])

before:  y = Flatten(Conv(x[N, K, 1, 1], w[M, K, 1, 1], b))
after:   y = Gemm(Flatten(x), w[M, K], b, transB=1)

A Gemm ends up with alpha = beta = 1, transA = 0, transB = 1 and a bias of shape [M] or none:
runtimes fuse that form to an integer kernel whatever the batch is, where a MatMul plus Add with a
symbolic batch runs kernels whose bits differ by CPU. Where two dimensions of `x` are symbolic the
last shape is computed at run time from that of `x`. A Conv whose kernel covers its whole input
becomes a Gemm only where its result is flattened; elsewhere it stays, an integer Conv as good.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import (
    Editor,
    constant,
    float_attribute,
    int_attribute,
    ints_attribute,
    producer,
    rank,
    remove_dead,
    replace_uses,
    sole_consumer,
    take_output,
)
from edgeq.linear_weights import has_padding
from edgeq.passing import Context, Pass

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class LinearForm(Pass):
    """Normalise MatMul, Gemm and a classifier's 1x1 Conv."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes were rewritten."""
        graph = model.graph
        editor = Editor(graph)
        rules = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}
        nodes = [node for node in graph if node.op_type in rules and not node.domain]
        rewritten = sum(rules[node.op_type](node, editor) for node in nodes)
        remove_dead(graph)
        return rewritten


def _matrix(value: ir.Value | None) -> Float32 | None:
    array = constant(value)
    return array if array is not None and array.ndim == 2 and array.dtype == np.float32 else None


def _matmul(node: ir.Node, editor: Editor) -> bool:
    source, weight = node.inputs[0], _matrix(node.inputs[1])
    if source is None or weight is None or constant(source) is not None:
        return False
    ndim = rank(source)
    if ndim is None or ndim < 2:
        return False
    last, bias = _bias_behind(node, weight.shape[1])
    output = last.outputs[0]
    inner, outer = weight.shape
    made: list[ir.Value] = []
    rows = source
    if ndim > 2:
        shape = editor.initializer(f"{output.name}_rows_shape", np.array([-1, inner], np.int64))
        rows = editor.node("Reshape", [source, shape], f"{output.name}_rows", dtype=source.dtype)
        rows.shape = ir.Shape([_count(source), inner])
        made.append(rows)
    result = _new_gemm(editor, node, rows, weight.T, bias, f"{output.name}_gemm")
    made.append(result)
    if ndim > 2:
        made += _restore(editor, source, result, outer, str(output.name))
        result = made[-1]
    editor.insert_before(last, made)
    result.shape = output.shape or result.shape
    replace_uses(output, result)
    take_output(output, result)
    return True


def _bias_behind(node: ir.Node, outputs: int) -> tuple[ir.Node, Float32 | None]:
    """Return the last node of MatMul [-> Add of a constant vector], and that vector."""
    add = sole_consumer(node.outputs[0])
    if add is None or add.op_type != "Add" or add.domain:
        return node, None
    bias = next((a for a in map(constant, add.inputs) if a is not None), None)
    ndim = rank(node.outputs[0])
    if bias is None or bias.size != outputs or bias.shape[-1:] != (outputs,):
        return node, None
    return (add, bias.reshape(outputs)) if ndim and bias.ndim <= ndim else (node, None)


def _count(value: ir.Value) -> int | None:
    assert value.shape is not None
    dims = list(value.shape)[:-1]
    numbers = [d for d in dims if isinstance(d, int)]
    return int(np.prod(numbers)) if len(numbers) == len(dims) else None


def _restore(
    editor: Editor, source: ir.Value, result: ir.Value, outer: int, name: str
) -> list[ir.Value]:
    """Return the nodes that give the rows of `result` the leading dimensions of `source`."""
    assert source.shape is not None
    dims = [*list(source.shape)[:-1], outer]
    free = [i for i, d in enumerate(dims) if not isinstance(d, int)]
    if len(free) <= 1 and 0 not in dims:
        numbers = [d if isinstance(d, int) else -1 for d in dims]
        shape = editor.initializer(f"{name}_shape", np.array(numbers, np.int64))
        made = []
    else:
        lead = editor.node(
            "Shape", [source], f"{name}_lead", attributes={"end": -1}, dtype=ir.DataType.INT64,
            shape=[len(dims) - 1],
        )  # fmt: skip
        tail = editor.initializer(f"{name}_outputs", np.array([outer], np.int64))
        shape = editor.node(
            "Concat", [lead, tail], f"{name}_shape", attributes={"axis": 0},
            dtype=ir.DataType.INT64, shape=[len(dims)],
        )  # fmt: skip
        made = [lead, shape]
    restored = editor.node(
        "Reshape", [result, shape], f"{name}_restored", dtype=ir.DataType.FLOAT,
        shape=ir.Shape(dims),
    )  # fmt: skip
    return [*made, restored]


def _new_gemm(
    editor: Editor, node: ir.Node, rows: ir.Value, weight: Float32, bias: Float32 | None, name: str
) -> ir.Value:
    """Return Gemm(rows, weight, bias) with `weight` as [outputs, inputs], named after `node`."""
    old = node.inputs[1]
    assert old is not None and rows.shape is not None
    inputs = [rows, editor.initializer(f"{old.name}_t", np.ascontiguousarray(weight))]
    if bias is not None:
        inputs.append(editor.initializer(f"{old.name}_bias", bias))
    result = editor.node(
        "Gemm", inputs, name, attributes={"transB": 1}, dtype=ir.DataType.FLOAT,
        shape=ir.Shape([rows.shape[0], weight.shape[0]]),
    )  # fmt: skip
    producer(result).name = node.name
    return result


def _gemm(node: ir.Node, editor: Editor) -> bool:
    weight = _matrix(node.inputs[1])
    if weight is None or node.inputs[0] is None or constant(node.inputs[0]) is not None:
        return False
    alpha, beta = float_attribute(node, "alpha", 1.0), float_attribute(node, "beta", 1.0)
    trans_a, trans_b = int_attribute(node, "transA", 0), int_attribute(node, "transB", 0)
    outputs = weight.shape[0 if trans_b else 1]
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = constant(node.inputs[2]) if has_bias else None
    if has_bias and (
        bias is None or bias.size not in (1, outputs) or _varies_by_row(bias, outputs)
    ):
        return False
    vector = None if bias is None else _scaled(np.broadcast_to(bias.reshape(-1), outputs), beta)
    if (alpha, beta, trans_a, trans_b) == (1.0, 1.0, 0, 1) and (
        bias is None or (bias.ndim == 1 and bias.size == outputs)
    ):
        return False
    source = node.inputs[0]
    output = node.outputs[0]
    made: list[ir.Value] = []
    if trans_a:
        source = editor.node(
            "Transpose",
            [source],
            f"{output.name}_a",
            attributes={"perm": [1, 0]},
            dtype=source.dtype,
        )
        if node.inputs[0].shape is not None:
            source.shape = ir.Shape(list(node.inputs[0].shape)[::-1])
        made.append(source)
    source.shape = source.shape or ir.Shape([None, None])
    matrix = _scaled(weight if trans_b else weight.T, alpha)
    result = _new_gemm(editor, node, source, matrix, vector, f"{output.name}_gemm")
    editor.insert_before(node, [*made, result])
    result.shape = output.shape or result.shape
    replace_uses(output, result)
    take_output(output, result)
    return True


def _varies_by_row(bias: NDArray[Any], outputs: int) -> bool:
    return bias.size > 1 and bias.shape[-1] != outputs


def _scaled(array: Float32, factor: float) -> Float32:
    return (array.astype(np.float64) * factor).astype(np.float32)


def _conv(node: ir.Node, editor: Editor) -> bool:
    source, weight = node.inputs[0], constant(node.inputs[1])
    last = sole_consumer(node.outputs[0])
    if source is None or source.shape is None or weight is None or weight.dtype != np.float32:
        return False
    covers = tuple(source.shape)[2:] == weight.shape[2:] and not has_padding(node)
    if not covers or int_attribute(node, "group", 1) != 1:
        return False
    if any(d != 1 for d in ints_attribute(node, "dilations", ())):
        return False
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if (
        last is None
        or not _flattens(last, weight.shape[0])
        or (bias is None and len(node.inputs) > 2 and node.inputs[2] is not None)
    ):
        return False
    output = last.outputs[0]
    matrix = weight.reshape(weight.shape[0], -1)
    flat = editor.node(
        "Flatten", [source], f"{output.name}_flat", attributes={"axis": 1}, dtype=source.dtype,
        shape=ir.Shape([source.shape[0], matrix.shape[1]]),
    )  # fmt: skip
    result = _new_gemm(editor, node, flat, matrix, bias, f"{output.name}_gemm")
    editor.insert_before(last, [flat, result])
    result.shape = output.shape or result.shape
    replace_uses(output, result)
    take_output(output, result)
    return True


def _flattens(node: ir.Node, outputs: int) -> bool:
    """Whether `node` turns [N, outputs, 1, ...] into [N, outputs]."""
    shape = node.outputs[0].shape
    if node.domain or node.op_type not in ("Flatten", "Reshape", "Squeeze") or shape is None:
        return False
    source = node.inputs[0]
    if source is None or source.shape is None or len(shape) != 2 or shape[1] != outputs:
        return False
    return node.op_type != "Squeeze" or shape[0] == source.shape[0]
