"""What fused kernels and fusions of ONNX Runtime do to a QDQ model that its nodes do not say.

Each check yields a `Breach` for each place that it finds at one node.
"""

import onnx_ir as ir

from edgeq.breach import Breach, Found
from edgeq.cpus import with_kernels
from edgeq.fused_proofs import fusion_proofs, quantized
from edgeq.graph import sole_consumer


def unproven(node: ir.Node) -> Found:
    """Find a fused kernel that leaves the definition for some input, and count where."""
    found = None if node.domain else quantized(node)
    if found is None:
        return
    for proof in fusion_proofs(found):
        if not proof.equal:
            cpus = with_kernels(*(d.cpu for d in proof.disagreements))
            yield Breach(node.outputs[0].name or "", proof.detail, cpus)


def softmax(node: ir.Node) -> Found:
    """Find a Softmax between codes."""
    if node.op_type != "Softmax" or node.domain:
        return
    found = quantized(node)
    if found is not None:
        scale = float(found.y.qparams.scale)
        yield Breach(
            node.outputs[0].name or "",
            f"1 / scale = {1 / scale:g} of the result is cut to an integer",
        )


def requantization(node: ir.Node) -> Found:
    """Find the second of two QuantizeLinear nodes that ONNX Runtime merges."""
    if not is_requantization(node):
        return
    yield Breach(
        node.outputs[0].name or "", "quantizes what another QuantizeLinear has just quantized"
    )


def is_requantization(node: ir.Node) -> bool:
    """Whether `node` ends QuantizeLinear - DequantizeLinear - QuantizeLinear and is dequantized.

    Only where each value in between has one reader; only then are the pairs merged.
    """
    if node.op_type != "QuantizeLinear" or node.domain:
        return False
    value = node.inputs[0]
    for op_type in ("DequantizeLinear", "QuantizeLinear"):
        source = None if value is None else value.producer()
        if source is None or source.op_type != op_type or source.domain:
            return False
        if sole_consumer(source.outputs[0]) is None:
            return False
        value = source.inputs[0]
    reader = sole_consumer(node.outputs[0])
    return reader is not None and reader.op_type == "DequantizeLinear"
