"""Constant folding: evaluate the nodes whose inputs are all constant, keep the results as weights.

ONNX's reference implementation does the evaluation. Left alone are random operators, nodes with
subgraphs, quantized operators (folding a DequantizeLinear would lose the codes), and results that
are large and larger than what they are made of.
"""

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.graph import OPSET, constant, remove_dead
from edgeq.onnx_api import IR_VERSION

LARGE = 2**20  # bytes
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform")
_LEFT_ALONE = frozenset(
    (*_RANDOM, "RandomUniformLike", "Dropout", "QuantizeLinear", "DequantizeLinear")
)


def lift_constants(graph: ir.Graph) -> int:
    """Turn Constant nodes into initializers; return how many."""
    lifted = 0
    for node in [n for n in graph if n.op_type == "Constant" and not n.domain]:
        array = constant(node.outputs[0])
        if array is not None and _keeps_interface(node):
            _make_initializer(graph, node.outputs[0], array)
            lifted += 1
    remove_dead(graph)
    return lifted


def fold_constants(graph: ir.Graph) -> int:
    """Evaluate what is constant; return how many nodes were folded."""
    folded = 0
    for node in list(graph):
        results = _evaluate(node)
        if results is None:
            continue
        for output, array in zip(list(node.outputs), results, strict=True):
            if output.uses():
                _make_initializer(graph, output, array)
        folded += 1
    remove_dead(graph)
    return folded


def _evaluate(node: ir.Node) -> list[NDArray[Any]] | None:
    if node.domain or node.op_type in _LEFT_ALONE or node.op_type == "Constant":
        return None
    if not _keeps_interface(node):
        return None
    if any(
        a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ):
        return None
    arrays = [constant(value) for value in node.inputs]
    if any(v is not None and a is None for v, a in zip(node.inputs, arrays, strict=True)):
        return None
    if node.op_type != "Shape" and not _is_small(node, arrays):
        return None
    return _reference(node, arrays)


def _is_small(node: ir.Node, arrays: list[NDArray[Any] | None]) -> bool:
    read = sum(a.nbytes for a in arrays if a is not None)
    for output in node.outputs:
        if output.shape is None or output.dtype is None or not output.shape.is_static():
            # Unknown sizes come from operators such as NonZero, whose results are no larger than
            # a few times their inputs, and from Expand and Tile, whose are.
            return read <= LARGE and node.op_type not in (
                "ConstantOfShape",
                "Expand",
                "Tile",
                "Range",
            )
        size = math.prod(output.shape.numpy()) * output.dtype.itemsize
        if size > max(LARGE, read):
            return False
    return True


def _reference(node: ir.Node, arrays: list[NDArray[Any] | None]) -> list[NDArray[Any]] | None:
    from onnx.reference import ReferenceEvaluator

    proto = ir.to_proto(node)
    feeds = {
        str(v.name): a
        for v, a in zip(node.inputs, arrays, strict=True)
        if v is not None and a is not None
    }
    infos = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
        )
        for n, a in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "folded", infos, outputs)
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # an operator that the reference cannot evaluate stays in the graph
        return None
    found = iter(results)
    arrays_out = [np.asarray(next(found)) if name else np.zeros(0) for name in proto.output]
    fits = all(
        out.dtype is None or not out.name or ir.DataType.from_numpy(a.dtype) == out.dtype
        for out, a in zip(node.outputs, arrays_out, strict=True)
    )
    return arrays_out if fits else None


def _keeps_interface(node: ir.Node) -> bool:
    """Whether no output of `node` is an output of the graph, which a node must make."""
    return not any(output.is_graph_output() for output in node.outputs)


def _make_initializer(graph: ir.Graph, output: ir.Value, array: NDArray[Any]) -> None:
    """Let an initializer take the place and the name of `output`, whose node goes."""
    name = output.name
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    output.replace_all_uses_with(value)
    output.name = f"{name}_folded"
    graph.register_initializer(value)
