"""What ONNX's version converter leaves out: a Resize whose defaults changed.

Resize before opset 11, and Upsample, map an output index `i` to `i / scale` and round down; the
Resize of today centres pixels unless it is told. The converter copies such nodes without a word
(onnx 1.23), and the model takes other pixels.
"""

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import constant, string_attribute

RESIZE_CENTRES_PIXELS = 11


def keep_old_meaning(model: ir.Model, opset: int, title: str) -> None:
    """Write out what a node of `opset` meant, in a model that was converted from it.

    Raises:
        ModelError: A nearest Resize of opset 10 shrinks by a fraction; runtimes do not agree on it.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Resize" and not node.domain and opset < RESIZE_CENTRES_PIXELS:
            _refuse_fractional_shrinking(node, title)
            _set(node, "coordinate_transformation_mode", "asymmetric")
            _set(node, "nearest_mode", "floor")


def _set(node: ir.Node, name: str, text: str) -> None:
    node.attributes[name] = ir.AttrString(name, text)


def _refuse_fractional_shrinking(node: ir.Node, title: str) -> None:
    scales = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if string_attribute(node, "mode", "nearest") != "nearest":
        return
    if scales is not None and np.all((scales >= 1) | (1 / scales == np.rint(1 / scales))):
        return
    raise ModelError(
        f"{title}: node {node.name!r} is a nearest Resize of an opset before 11 that shrinks, or"
        " whose scales are computed; which pixels it takes differs by runtime; export the model"
        " anew with opset 11 or later"
    )
