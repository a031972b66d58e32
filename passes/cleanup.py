"""Bring a graph to its simplest form without changing what it computes.

before:  Shape -> Gather -> Concat -> Reshape; Pad with computed pads; Identity; Constant nodes
after:   Reshape and Pad with constant operands; weights are initializers; all shapes inferred

onnxsim first, then what it leaves: constants folded, Dropout and Identity removed, a Reshape to
`[batch, ...]` computed at run time made constant, the detour that ONNX's version converter takes
for an old Softmax undone. A failure of onnxsim is reported and leaves the graph to the rest.
"""

import contextlib
import io
from collections import Counter
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.folding import fold_constants, lift_constants
from edgeq.graph import remove_dead
from edgeq.load import is_quantized_op, name_all
from edgeq.onnx_api import infer_shapes, with_weights, without_weights
from edgeq.passing import Context, Pass
from edgeq.simplify import simplify_nodes

# Padding has a pass of its own, which knows where folding is exact; merging the projections of an
# attention would make three weights share one observer.
SKIPPED = ["fuse_pad_into_conv", "fuse_pad_into_pool", "fuse_qkv"]
WEIGHTS_SHOWN = 2**20  # bytes; above this onnxsim gets no values where weights sum up to a lot
WEIGHTS_TOTAL = 2**28
GROWTH = 2**24  # bytes; folding an Expand can make a small graph huge


@dataclass(frozen=True)
class Cleanup(Pass):
    """Simplify the graph; its interface stays."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many nodes were changed or removed.

        Raises:
            ModelError: A node has a body (If, Loop, Scan) that could not be folded away.
        """
        before = _fingerprints(model)
        _run_onnxsim(model, context)
        while _simplify_once(model):
            pass
        name_all(model)
        _refuse_bodies(model)
        return (before - _fingerprints(model)).total()


def _simplify_once(model: ir.Model) -> int:
    graph = model.graph
    changed = lift_constants(graph) + fold_constants(graph)
    try:
        infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"shapes do not fit together: {error}") from error
    changed += simplify_nodes(graph)
    return changed + remove_dead(graph)


def _run_onnxsim(model: ir.Model, context: Context) -> None:
    if any(is_quantized_op(node) for node in model.graph):
        context.notes.append(("cleanup", "onnxsim skipped: it would fold quantized weights"))
        return
    import onnxsim  # slow to import, and only this pass needs it

    tensors = [v.const_value for v in model.graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    proto, hidden = without_weights(model, WEIGHTS_SHOWN if weights > WEIGHTS_TOTAL else weights)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            simplified, _ = onnxsim.simplify(
                proto,
                check_n=0,
                skip_fuse_bn=True,
                skipped_optimizers=SKIPPED,
                certify=False,
            )
        del simplified.metadata_props[:]
        simplified.metadata_props.extend(proto.metadata_props)
        result = with_weights(simplified, hidden)
    except Exception as error:  # its C++ part raises what it likes; the graph is as it was
        text = f"{type(error).__name__}: {error} {said.getvalue()}".strip()
        context.notes.append(("cleanup", f"onnxsim failed, the model goes on without it: {text}"))
        return
    if simplified.ByteSize() > proto.ByteSize() + GROWTH:
        context.notes.append(("cleanup", "onnxsim made large constants; its result was not used"))
        return
    foreign = sorted({n.domain for n in result.graph if n.domain} - set(model.opset_imports))
    if foreign or _interface(result) != _interface(model):
        what = f"added operators of {foreign[0]}" if foreign else "changed the inputs or outputs"
        context.notes.append(("cleanup", f"onnxsim {what}; its result was not used"))
        return
    model.graph = result.graph


def _interface(model: ir.Model) -> list[tuple[str | None, ir.DataType | None]]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return [(value.name, value.dtype) for value in values]


def _fingerprints(model: ir.Model) -> Counter[str]:
    """Count the nodes by what they are and read, so that a changed node is a missing one."""
    return Counter(
        f"{n.domain} {n.op_type} {[v and v.name for v in n.inputs]} {n.attributes}"
        for n in model.graph
    )


def _refuse_bodies(model: ir.Model) -> None:
    for node in model.graph:
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}) has a body that depends on run-time"
                    " values, which edgeq cannot quantize; export the model with constant control"
                    " flow, or cut the graph there"
                )
