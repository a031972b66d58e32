"""Fold a Pad with zeros into the Conv or AveragePool behind it.

before:  y = Conv(Pad(x, [0, 0, t, l, 0, 0, b, r]), w, pads=[p, q, u, v])
after:   y = Conv(x, w, pads=[p + t, q + l, u + b, v + r])

Only spatial axes, only the value zero, never cropping. An AveragePool must divide by the whole
window (count_include_pad) and gets that attribute if it had no padding of its own. A MaxPool pads
with minus infinity, not with zero, so a Pad in front of it stays.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import (
    constant,
    consumers,
    int_attribute,
    ints_attribute,
    rank,
    remove_dead,
    string_attribute,
)
from edgeq.passing import Context, Pass


@dataclass(frozen=True)
class FoldPad(Pass):
    """Fold every Pad into those of its readers that can pad by themselves."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Return how many readers took over a Pad."""
        graph = model.graph
        pads = [node for node in graph if node.op_type == "Pad" and not node.domain]
        folded = sum(_fold(node) for node in pads)
        remove_dead(graph)
        return folded


def _fold(node: ir.Node) -> int:
    pads = spatial_pads(node)
    if pads is None:
        return 0
    takers = [reader for reader in consumers(node.outputs[0]) if _takes(reader, node, pads)]
    for reader in takers:
        own = ints_attribute(reader, "pads", [0] * len(pads))
        total = [a + b for a, b in zip(own, pads, strict=True)]
        reader.attributes["pads"] = ir.AttrInt64s("pads", total)
        if string_attribute(reader, "auto_pad", "NOTSET") == "VALID":
            del reader.attributes["auto_pad"]
        if reader.op_type == "AveragePool":
            reader.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        reader.replace_input_with(0, node.inputs[0])
    return len(takers)


def spatial_pads(node: ir.Node) -> list[int] | None:
    """Return begins then ends of the spatial axes; `None` unless they say all that Pad does."""
    data, operands = node.inputs[0], [constant(v) for v in node.inputs[1:]]
    ndim = None if data is None else rank(data)
    if ndim is None or ndim < 3 or string_attribute(node, "mode", "constant") != "constant":
        return None
    if any(v is not None and a is None for v, a in zip(node.inputs[1:], operands, strict=True)):
        return None
    pads, value, axes = (*operands, None, None)[:3]
    if pads is None or (value is not None and np.any(value)):
        return None
    named = list(range(ndim)) if axes is None else [int(a) % ndim for a in axes]
    begins, ends = [0] * ndim, [0] * ndim
    for i, axis in enumerate(named):
        begins[axis], ends[axis] = int(pads[i]), int(pads[i + len(named)])
    if any(begins[:2] + ends[:2]) or min(begins + ends) < 0:
        return None
    return begins[2:] + ends[2:]


def _takes(reader: ir.Node, node: ir.Node, pads: list[int]) -> bool:
    if reader.domain or reader.inputs[0] is not node.outputs[0]:
        return False
    if list(reader.inputs).count(node.outputs[0]) != 1:
        return False
    if string_attribute(reader, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    if reader.op_type == "Conv":
        return True
    if reader.op_type != "AveragePool" or int_attribute(reader, "ceil_mode", 0):
        return False
    own = ints_attribute(reader, "pads", [0] * len(pads))
    if any(own) and not int_attribute(reader, "count_include_pad", 0):
        return False
    kernel = ints_attribute(reader, "kernel_shape", ()) * 2  # runtimes want pads below the kernel
    return all(a + b < k for a, b, k in zip(own, pads, kernel, strict=True))
