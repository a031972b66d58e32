"""QuantizeLinear and DequantizeLinear of the domain com.microsoft, in ONNX's own spelling.

Some tools write them so, to have formats that older opsets lack. In formats that ONNX has, they are
the same operators.
"""

import onnx_ir as ir

from edgeq.numerics.qtype import QTYPES

_NAMES = ("QuantizeLinear", "DequantizeLinear")


def standardize(graph: ir.Graph) -> int:
    """Give such nodes ONNX's domain; return how many."""
    done = 0
    for node in graph:
        if node.op_type in _NAMES and node.domain == "com.microsoft" and _in_onnx(node):
            node.domain = ""
            done += 1
    return done


def _in_onnx(node: ir.Node) -> bool:
    """Whether ONNX has the format of the codes, which is that of the zero point where one is."""
    values = [node.inputs[2]] if len(node.inputs) > 2 else []
    values.append(node.inputs[0] if node.op_type == "DequantizeLinear" else None)
    types = [value.dtype.name.lower() for value in values if value is not None and value.dtype]
    return bool(types) and all(name in QTYPES for name in types)
