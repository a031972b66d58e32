"""What fused kernels and fusions of ONNX Runtime do to a QDQ model that its nodes do not say.

Each check yields a `Breach` for each place that it finds at one node.
"""

import onnx_ir as ir

from edgeq.breach import Breach, Found
from edgeq.cpus import with_kernels
from edgeq.fused_proofs import fusion_proofs, quantized
from edgeq.qdq import is_requantization


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
    """Find a Softmax between codes, or in float."""
    if node.op_type not in ("LogSoftmax", "Softmax") or node.domain:
        return
    found = quantized(node)
    if found is None or node.op_type == "LogSoftmax":
        yield Breach(node.outputs[0].name or "", f"{node.op_type} in float32")
        return
    scale = float(found.y.qparams.scale)
    yield Breach(
        node.outputs[0].name or "", f"1 / scale = {1 / scale:g} of the result is cut to an integer"
    )


def requantization(node: ir.Node) -> Found:
    """Find the second of two QuantizeLinear nodes that ONNX Runtime merges."""
    if not is_requantization(node):
        return
    yield Breach(
        node.outputs[0].name or "", "quantizes what another QuantizeLinear has just quantized"
    )
