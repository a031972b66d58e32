"""Bring a graph to its simplest form without changing what it computes.

before:  Shape -> Gather -> Concat -> Reshape; Pad with computed pads; Identity; Constant nodes
after:   Reshape and Pad with constant operands; weights are initializers; all shapes inferred

onnxsim first, then what it leaves: constants folded, Dropout and Identity removed, a Reshape to
`[batch, ...]` computed at run time made constant, detours of exporters undone (keys of an attention
transposed between two Reshapes, positions counted in float), shapes that stay symbolic computed
once. A failure of onnxsim is reported and leaves the graph to the rest.
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
from edgeq.run_time_shapes import share_run_time_shapes
from edgeq.simplify import simplify_nodes

# Padding has a pass of its own, which knows where folding is exact; merging the projections of an
# attention would make three weights share one observer, and fused attention is no ONNX operator.
SKIPPED = ["fuse_pad_into_conv", "fuse_pad_into_pool", "fuse_qkv", "fuse_attention", "fuse_gqa"]
WEIGHTS_SHOWN = 2**20  # bytes; values of larger weights are not onnxsim's: it copies and folds them
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
        while True:
            start = _fingerprints(model)
            _run_onnxsim(model, context)
            # It does more where it sees that dimensions are equal: once again then.
            if not _simplify(model) or _fingerprints(model) == start:
                break
        name_all(model)
        _refuse_bodies(model)
        return (before - _fingerprints(model)).total()


def _simplify(model: ir.Model) -> bool:
    """Simplify what onnxsim leaves; return whether dimensions were found that it does not see."""
    found = False
    while True:
        graph = model.graph
        changed = lift_constants(graph) + fold_constants(graph)
        try:
            found |= infer_shapes(model) > 0
        except onnx.shape_inference.InferenceError as error:
            raise ModelError(f"shapes do not fit together: {error}") from error
        changed += simplify_nodes(graph) + remove_dead(graph)
        if not changed:
            changed = share_run_time_shapes(graph)
            found |= changed > 0
        if not changed:
            return found


def _run_onnxsim(model: ir.Model, context: Context) -> None:
    if any(is_quantized_op(node) for node in model.graph):
        _note(context, "onnxsim skipped: it would fold quantized weights")
        return
    import onnxsim  # slow to import, and only this pass needs it

    proto, hidden = without_weights(model, WEIGHTS_SHOWN)
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
        _note(context, f"onnxsim failed, the model goes on without it: {text}")
        return
    if simplified.ByteSize() > proto.ByteSize() + GROWTH:
        _note(context, "onnxsim made large constants; its result was not used")
        return
    foreign = sorted({n.domain for n in result.graph if n.domain} - set(model.opset_imports))
    if foreign or _interface(result) != _interface(model):
        what = f"added operators of {foreign[0]}" if foreign else "changed the inputs or outputs"
        _note(context, f"onnxsim {what}; its result was not used")
        return
    model.graph = result.graph


def _note(context: Context, text: str) -> None:
    if ("cleanup", text) not in context.notes:
        context.notes.append(("cleanup", text))


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
