"""Constant codes that are stored in fewer bits than kernels read.

    w = Cast(q)                                   q int4                  codes -8 .. 7
    w = Cast(Mul(Cast(q), 2**shift))              q int4, int32 between   codes of several units
    w = Gather(table, Cast(q))                    q uint4, table int8     at most 16 different codes

Runtimes compute `w` once, when they load the model: it is a constant to everybody who reads graphs
with `edgeq.graph.constant`.
"""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.numerics.qtype import FLOAT4

Array = NDArray[Any]
PACKED = frozenset({ir.DataType.INT4, ir.DataType.UINT4})
_DATA = {"Cast": 0, "Mul": 0, "Gather": 1}  # where the packed codes come from
_UNPACKED: "WeakKeyDictionary[ir.Value, tuple[ir.TensorProtocol, Array]]" = WeakKeyDictionary()


def packed_source(value: ir.Value) -> ir.Value | None:
    """Return the 4-bit initializer that constant codes are computed from; None for other values."""
    node = value.producer()
    if node is None or node.domain or node.op_type not in _DATA:
        return None
    if any(x is None for x in node.inputs) or len(node.outputs) != 1:
        return None
    data = node.inputs[_DATA[node.op_type]]
    assert data is not None
    others = [x for x in node.inputs if x is not None and x is not data]
    if any(x.const_value is None or x.is_graph_input() for x in others):
        return None
    if data.producer() is not None:
        return packed_source(data)
    stored = data.const_value is not None and not data.is_graph_input() and data.dtype in PACKED
    return data if stored else None


def stored_format(value: ir.Value) -> str | None:
    """Return the format in which constant codes are stored in 4 bits: `int4`, `float4e2m1`, ...

    Codes of a table are named after the first grid of floats that holds them all; `uint4` if none.
    """
    source, codes = packed_source(value), stored_codes(value)
    if source is None or source.dtype is None or codes is None:
        return None
    if source.dtype == ir.DataType.UINT4:
        found = set(np.unique(codes).tolist())
        for name, qtype in FLOAT4.items():
            if found <= set(qtype.values or ()):
                return name
    return source.dtype.name.lower()


def stored_codes(value: ir.Value) -> Array | None:
    """Return what constant codes are, unpacked; None for values that are not stored so."""
    source = packed_source(value)
    if source is None:
        return None
    known = _UNPACKED.get(value)
    if known is not None and known[0] is source.const_value:
        return known[1]
    array = _evaluate(value)
    assert source.const_value is not None
    _UNPACKED[value] = source.const_value, array
    return array


def _evaluate(value: ir.Value | None) -> Array:
    assert value is not None
    node = value.producer()
    if node is None:
        assert value.const_value is not None
        return value.const_value.numpy()
    if node.op_type == "Cast":
        array = _evaluate(node.inputs[0])
        return array.astype(ir.DataType(node.attributes["to"].as_int()).numpy())
    first, second = map(_evaluate, node.inputs)
    if node.op_type == "Mul":
        return np.asarray(first * second)
    axis = node.attributes.get("axis")
    return np.asarray(np.take(first, second, 0 if axis is None else axis.as_int()))
