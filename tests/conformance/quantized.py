"""Small QDQ models: one integer linear op with its operands and result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]


def linear_model(
    op_type: str,
    x_shape: Sequence[int],
    w: Array | None,
    *,
    w_shape: Sequence[int] = (),
    bias: Array | None = None,
    attributes: dict[str, Any] | None = None,
    x_scale: float = 0.02,
    x_zero: int = 0,
    w_scale: float | Sequence[float] = 0.01,
    w_axis: int = 0,
    y: tuple[float, int] | None = (0.1, 3),
) -> ir.Model:
    """Return DequantizeLinear, op, QuantizeLinear on uint8 codes; the op is called `the_linear`.

    `w` None makes the right operand a uint8 input `w`; `y` None leaves the result float32.
    """
    scale = np.asarray(w_scale, np.float32)
    fixed: dict[str, Array] = {
        "sx": np.array(x_scale, np.float32),
        "zx": np.array(x_zero, np.uint8),
        "sw": scale,
        "zw": np.zeros(scale.shape, np.uint8 if w is None else w.dtype),
    }
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, x_shape)]
    if w is None:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.UINT8, w_shape))
    else:
        fixed["w"] = w
    axis: dict[str, Any] = {"axis": w_axis} if scale.ndim else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], **axis),
    ]
    operands = ["xd", "wd"]
    if bias is not None:
        sb = np.asarray(np.float32(x_scale) * scale, np.float32)
        fixed |= {"b": bias, "sb": sb, "zb": np.zeros(sb.shape, np.int32)}
        along: dict[str, Any] = {"axis": 0} if sb.ndim else {}
        nodes.append(helper.make_node("DequantizeLinear", ["b", "sb", "zb"], ["bd"], **along))
        operands.append("bd")
    real = "y" if y is None else "real"
    nodes.append(
        helper.make_node(op_type, operands, [real], name="the_linear", **(attributes or {}))
    )
    kind = TensorProto.FLOAT
    if y is not None:
        fixed |= {"sy": np.array(y[0], np.float32), "zy": np.array(y[1], np.uint8)}
        nodes.append(helper.make_node("QuantizeLinear", ["real", "sy", "zy"], ["y"]))
        kind = TensorProto.UINT8
    graph = helper.make_graph(
        nodes,
        "linear",
        inputs,
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(a, n) for n, a in fixed.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(proto)
