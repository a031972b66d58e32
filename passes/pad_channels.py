"""Give an image's two or three channels a few zero ones, so that a kernel moves whole words.

before:  y = Conv(x, w)                                   x: [N, 3, H, W]
after:   y = Conv(Pad(x, one channel of zeros), w')       w' has weight 0 there

Exact: the new channels are zero, and so are their weights. ONNX Runtime's integer Conv gathers each
window channels-last; four bytes at a time it takes two thirds of the time of three. How many
channels a target wants is `capabilities.channel_multiple`; one channel is left alone.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import Editor, constant, int_attribute
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class PadChannels(Pass):
    """Pad the channels of graph inputs in front of a Conv."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many Conv nodes read padded channels."""
        multiple = context.capabilities.channel_multiple
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
            if weight is None or node.domain or int_attribute(node, "group", 1) != 1:
                continue
            x = node.inputs[0]
            if x is None or not x.is_graph_input() or context.keep_float(node):
                continue
            missing = -weight.shape[1] % multiple
            if 1 < weight.shape[1] < multiple and missing:
                _pad(node, x, weight, missing, editor)
                done += 1
        return done


def _pad(node: ir.Node, x: ir.Value, weight: np.ndarray, missing: int, editor: Editor) -> None:
    name = node.outputs[0].name
    pads = np.zeros(2 * weight.ndim, np.int64)
    pads[weight.ndim + 1] = missing
    shape = None
    if x.shape is not None:
        sizes = list(x.shape)
        shape = ir.Shape([sizes[0], weight.shape[1] + missing, *sizes[2:]])
    padded = editor.node(
        "Pad",
        [x, editor.initializer(f"{name}_pads", pads)],
        f"{name}_padded",
        dtype=x.dtype,
        shape=shape,
    )
    editor.insert_before(node, [padded])
    node.replace_input_with(0, padded)
    widths = [(0, missing) if axis == 1 else (0, 0) for axis in range(weight.ndim)]
    source = node.inputs[1]
    assert source is not None
    node.replace_input_with(1, editor.initializer(f"{source.name}_padded", np.pad(weight, widths)))
