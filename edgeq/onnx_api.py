"""ONNX's own checker, version converter and shape inference, run on a graph without its weights.

Those functions take a serialized model: weights would be copied several times, and a model above
2 GB cannot be serialized at all. Initializers above a limit are therefore shown to them as graph
inputs of the same name, type and shape; the weights themselves stay where they are.
"""

from collections.abc import Sequence

import onnx
import onnx.version_converter
import onnx_ir as ir

from edgeq.graph import to_proto
from edgeq.symbolic_shapes import name_dims

SMALL = 1024  # bytes; shapes, axes, pads and scales, whose values matter to ONNX, are smaller
IR_VERSION = 10  # the first that holds opset 21


def without_weights(model: ir.Model, limit: int = SMALL) -> tuple[onnx.ModelProto, list[ir.Value]]:
    """Return the model as a proto, and the initializers above `limit` bytes that are inputs there.

    `model` is the same before and after, the order of its initializers included.
    """
    graph = model.graph
    initializers, inputs = list(graph.initializers.values()), list(graph.inputs)
    hidden = [v for v in initializers if v.const_value is not None and v.const_value.nbytes > limit]
    try:
        for value in hidden:
            assert value.name is not None
            del graph.initializers[value.name]
        graph.inputs.extend(v for v in hidden if not v.is_graph_input())
        return to_proto(model), hidden
    finally:
        graph.inputs[:] = inputs
        graph.initializers.clear()
        for value in initializers:
            graph.initializers.add(value)


def with_weights(proto: onnx.ModelProto, hidden: Sequence[ir.Value]) -> ir.Model:
    """Return the model in `proto`, the initializers that were hidden from it put back first."""
    model = ir.from_proto(proto)
    graph = model.graph
    shown = {value.name: value for value in graph.inputs}
    names = {value.name for value in hidden}
    graph.inputs[:] = [value for value in graph.inputs if value.name not in names]
    small = list(graph.initializers.values())
    graph.initializers.clear()
    for value in hidden:
        target = shown[value.name]
        target.const_value = value.const_value
        graph.register_initializer(target)
    for value in small:
        graph.initializers.add(value)
    return model


def check_model(model: ir.Model) -> None:
    """Hold the graph against the ONNX specification.

    Outputs may have no shape, as files of many tools have them: shape inference finds it.

    Raises:
        onnx.checker.ValidationError: It is not valid.
    """
    proto, _ = without_weights(model)
    for output in proto.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(proto)


def convert_opset(model: ir.Model, opset: int) -> ir.Model:
    """Return the model in another opset.

    Raises:
        RuntimeError: ONNX's converter has no rule for one of the nodes; its text says which.
    """
    proto, hidden = without_weights(model)
    proto.ir_version = IR_VERSION
    return with_weights(onnx.version_converter.convert_version(proto, opset), hidden)


def infer_shapes(model: ir.Model) -> int:
    """Write the shapes and types that ONNX infers, values of small integer tensors included.

    What was known and cannot be inferred stays. Symbolic dimensions that ONNX loses are followed.

    Returns:
        Of how many values edgeq knows dimensions that ONNX does not infer.

    Raises:
        onnx.shape_inference.InferenceError: Shapes or types contradict each other.
    """
    proto, _ = without_weights(model)
    del proto.graph.value_info[:]  # what is known so far may be less than what can be inferred now
    inferred = onnx.shape_inference.infer_shapes(
        proto, check_type=True, strict_mode=True, data_prop=True
    )
    shapes = {value.name: value for value in inferred.graph.value_info}
    shapes |= {value.name: value for value in inferred.graph.output}
    for node in model.graph:
        for output in node.outputs:
            if output.name in shapes:
                _adopt(output, shapes[output.name])
    return name_dims(model.graph)


def _adopt(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    if not info.type.HasField("tensor_type"):
        return
    kind = info.type.tensor_type
    if kind.elem_type:
        value.type = ir.TensorType(ir.DataType(kind.elem_type))
    if not kind.HasField("shape"):
        return
    dims = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
    old: list[int | ir.SymbolicDim] | None = (
        list(value.shape) if value.shape is not None and len(value.shape) == len(dims) else None
    )
    known = [None] * len(dims) if old is None else old
    value.shape = ir.Shape([_better(a, b) for a, b in zip(dims, known, strict=True)])


def _better(new: int | str | None, old: int | ir.SymbolicDim | None) -> int | str | None:
    """Return the dimension that says more; a name that ONNX invented says nothing."""
    if new is not None and not _invented(new):
        return new
    name = old.value if isinstance(old, ir.SymbolicDim) else old
    return None if _invented(name) else name


def _invented(dim: int | str | None) -> bool:
    # The numbers in these names start anew with every inference, so they must not be kept.
    return isinstance(dim, str) and dim.startswith("unk__")
