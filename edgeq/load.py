"""Read an ONNX file into a float32 graph of opset 21 in which every node and value has a name.

Fused operators are written in plain ones, see edgeq.fused_operators.

Weights in external files stay memory-mapped: they are read when something asks for them. Nothing
in the file is trusted: sizes are checked against the bytes that are there before anything is made
of them, and external data may only lie inside the model's own folder.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import google.protobuf.message
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as onnx_passes

from edgeq.contrib_codes import standardize
from edgeq.errors import ModelError
from edgeq.fused_operators import decompose, is_fused, set_aside
from edgeq.graph import OPSET, value_names
from edgeq.old_opsets import keep_old_meaning
from edgeq.onnx_api import SMALL, check_model, convert_opset, infer_shapes
from edgeq.refused_operators import REFUSED, why_refused
from edgeq.tensor_check import check_shapes, check_tensors
from edgeq.to_float32 import HALF, OTHER_FLOATS, to_float32

OLDEST_OPSET = 7
QUANTIZED_OPS = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
)


@dataclass(frozen=True)
class Loaded:
    """A model, and what was done to make it readable.

    Attributes:
        model: float32, opset 21, every node and value named.
        notes: Sentences for the report: opset converted, fp16 weights widened, ...
    """

    model: ir.Model
    notes: tuple[str, ...]


def load_model(path: str | os.PathLike[str]) -> Loaded:
    """Read the `.onnx` file at `path`.

    Raises:
        ModelError: The file cannot be read, is not a sound ONNX model, or holds something that
            edgeq refuses; the message names the node or tensor and says what to do.
    """
    file = Path(path)
    proto = _read(file)
    check_tensors(proto, file)
    try:
        model = ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        raise ModelError(f"{file}: not a sound ONNX model: {_first_line(error)}") from error
    _check_text(model, file)
    ir.external_data.set_base_dir(model.graph, file.parent)
    _read_small_tensors(model)
    return normalize(model, str(file))


def _check_text(model: ir.Model, file: Path) -> None:
    """Refuse names that are not UTF-8: protobuf hands them over as bytes."""
    texts: list[object] = [model.graph.name]
    for node in _nodes(model):
        texts += [node.name, node.op_type, node.domain, *node.attributes]
        texts += [v.name for v in (*node.inputs, *node.outputs) if v is not None]
        texts += [a.value for a in node.attributes.values() if a.type == ir.AttributeType.STRING]
    graph = model.graph
    texts += [v.name for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())]
    wrong = next((text for text in texts if isinstance(text, bytes)), None)
    if wrong is not None:
        raise ModelError(f"{file}: not a sound ONNX model: the name {wrong!r} is not UTF-8 text")


def normalize(model: ir.Model, title: str) -> Loaded:
    """Bring a model to the form that the rest of edgeq reads: float32, opset 21, all named.

    Args:
        model: The model; it may be changed.
        title: What messages call it.

    Raises:
        ModelError: It holds something that edgeq refuses.
    """
    notes: list[str] = []
    if model.functions:
        notes.append(f"{len(model.functions)} functions inlined")
        model = onnx_passes.InlinePass()(model).model
    check_shapes(model, title)
    set_aside(model)
    standardize(model.graph)
    _check_operators(model, title)
    _check_graph(model, title)
    listed = [v for v in model.graph.inputs if v.is_initializer()]
    if listed:
        notes.append(f"{len(listed)} initializers are no longer listed as inputs")
        model.graph.inputs[:] = [v for v in model.graph.inputs if not v.is_initializer()]
    model = _convert(model, title, notes)
    # What a quantized model adds up in float64 is exact there, and would not be in float32.
    quantized = any(map(is_quantized_op, _nodes(model)))
    notes += to_float32(model, HALF if quantized else OTHER_FLOATS)
    name_all(model)
    try:
        infer_shapes(model)
        check_shapes(model, title)
        notes += decompose(model)
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(f"{title}: shapes do not fit together: {_first_line(error)}") from error
    return Loaded(model, tuple(notes))


def refuse_quantized(model: ir.Model) -> None:
    """Refuse a model that holds quantized operators.

    Raises:
        ModelError: It does; the message names the first such node.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if is_quantized_op(node):
            raise ModelError(
                f"the model is already quantized: node {node.name!r} is a {node.op_type}; compile"
                " the float model it was made from, or hold this one against the rules with"
                " `edgeq lint`"
            )


def is_quantized_op(node: ir.Node) -> bool:
    """Whether `node` computes on codes, or makes or reads them."""
    return node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear")


def name_all(model: ir.Model) -> None:
    """Give every value a name, and every node a name of its own; existing names stay."""
    taken = value_names(model.graph) | {n.name for n in _nodes(model)}
    number = 0
    for value in _values(model):
        while not value.name:
            if f"value_{number}" not in taken:
                value.name = f"value_{number}"
            number += 1
    seen: set[str] = set()
    for node in _nodes(model):
        base = node.name or next((str(out.name) for out in node.outputs), node.op_type)
        name, number = base, 0
        while name in seen or (number and name in taken):
            number += 1
            name = f"{base}_{number}"
        node.name = name
        seen.add(name)


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def _values(model: ir.Model) -> Iterator[ir.Value]:
    # An omitted output has the empty name, nobody reads it, and it must stay so.
    for node in _nodes(model):
        for out in node.outputs:
            if out.name or out.uses() or out.is_graph_output():
                yield out


def _read(file: Path) -> onnx.ModelProto:
    if file.suffix.lower() in (".pt", ".pth", ".ckpt", ".pkl"):
        raise ModelError(
            f"{file}: edgeq does not open pickles, they can run any code; export the model with"
            " `edgeq export MODULE:FACTORY -o model.onnx` or save it with torch.export.save (.pt2)"
        )
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from error
    if not data:
        raise ModelError(f"{file}: the file is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except google.protobuf.message.DecodeError as error:
        raise ModelError(f"{file}: not an ONNX file, or a truncated one") from error
    if not proto.ir_version or not proto.opset_import or not proto.graph.output:
        raise ModelError(f"{file}: not an ONNX file, or a truncated one: it holds no graph")
    return proto


def _read_small_tensors(model: ir.Model) -> None:
    """Read shapes, axes and the like, which decide what a graph is, and constants in nodes."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= SMALL:
            value.const_value = ir.tensor(tensor.numpy().copy(), name=tensor.name)
    for node in _nodes(model):
        for name, attribute in node.attributes.items():
            if isinstance(attribute.value, ir.ExternalTensor):
                tensor = ir.tensor(attribute.value.numpy().copy(), name=attribute.value.name)
                node.attributes[name] = ir.AttrTensor(name, tensor)


def _check_operators(model: ir.Model, title: str) -> None:
    for node in _nodes(model):
        if is_fused(node):
            if node.graph is model.graph:
                continue
            reason = "inside the body of another node; export it with constant control flow"
        elif node.op_type not in REFUSED and (
            onnx.defs.has(node.op_type, node.domain) or is_quantized_op(node)
        ):
            continue
        else:
            reason = why_refused(node.op_type, node.domain)
        domain = node.domain or "ai.onnx"
        raise ModelError(
            f"{title}: node {_name(node)} has the operator {domain}.{node.op_type}, {reason}"
        )


def _check_graph(model: ir.Model, title: str) -> None:
    try:
        check_model(model)
    except (onnx.checker.ValidationError, ir.serde.SerdeError) as error:
        raise ModelError(f"{title}: not a sound ONNX model: {_first_line(error)}") from error


def _convert(model: ir.Model, title: str, notes: list[str]) -> ir.Model:
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise ModelError(
            f"{title}: opset {opset} is too old, edgeq reads {OLDEST_OPSET} and later;"
            " export the model anew"
        )
    if opset == OPSET:
        return model
    try:
        converted = convert_opset(model, OPSET)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(
            f"{title}: ONNX's version converter cannot bring opset {opset} to {OPSET}:"
            f" {_first_line(error)}; export the model anew with opset {OPSET}"
        ) from error
    keep_old_meaning(converted, opset, title)
    notes.append(f"opset {opset} converted to {OPSET}")
    return converted


def _name(node: ir.Node) -> str:
    return repr(node.name or next((out.name for out in node.outputs), node.op_type))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
