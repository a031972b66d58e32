"""One-node models, run by ONNX Runtime without any optimization and by edgeq."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgeq.simulate import Simulator

Array = NDArray[Any]


def one_node(
    op_type: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    outputs: int = 1,
    constants: Sequence[int] = (),
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return a model of one node, and its feeds; `constants` are the inputs made initializers."""
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op_type, names, results, name="the_node", **attributes)
    given = [(n, a) for n, a in zip(names, inputs, strict=True) if a is not None]
    fixed = {f"x{i}" for i in constants}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in given
            if n not in fixed
        ],
        [helper.make_tensor_value_info(r, TensorProto.UNDEFINED, None) for r in results],
        [onnx.numpy_helper.from_array(a, n) for n, a in given if n in fixed],
    )
    for out in graph.output:
        out.ClearField("type")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return model, {n: a for n, a in given if n not in fixed}


def by_onnxruntime(
    model: onnx.ModelProto, feeds: Mapping[str, Array], *, optimize: bool = False
) -> dict[str, Array]:
    """Return the outputs of ONNX Runtime; unless optimized, every node is a kernel of its own."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [out.name for out in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def by_edgeq(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs of the simulator."""
    return Simulator(ir.from_proto(model)).run(feeds)


def same_bits(ours: Array, theirs: Array) -> bool:
    """Whether dtype, shape and every bit agree."""
    ours = np.ascontiguousarray(ours).reshape(ours.shape)
    return (
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and ours.tobytes() == theirs.tobytes()
    )


def ulps(ours: Array, theirs: Array) -> int:
    """Return the largest distance between two float32 arrays, in units in the last place."""

    def ordered(x: Array) -> Array:
        bits = x.astype(np.float32).view(np.int32).astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return int(np.abs(ordered(ours) - ordered(theirs)).max(initial=0))
