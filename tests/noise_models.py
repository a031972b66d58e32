"""Models with the inputs and the output of a diffusion model, small and without torch."""

import numpy as np
from onnx import TensorProto, helper

SHAPE = (1, 8, 8)


def noise(feeds):
    """Stand for a model: what is far from a pattern is noise, more of it at high timesteps."""
    x, t = feeds["sample"], feeds["timestep"].reshape(-1, 1, 1, 1)
    pattern = np.sin(np.arange(64, dtype=np.float32)).reshape(SHAPE)
    return ((x - pattern) * (0.5 + t / 2000)).astype(np.float32)


def coarse(feeds):
    """The same model with an error."""
    return np.round(noise(feeds) * 16) / 16


def proto(batch="batch", timestep=("batch",), sizes=SHAPE):
    """A model with the inputs of a diffusion model."""
    nodes = [
        helper.make_node("Conv", ["sample", "half"], ["scaled"]),
        helper.make_node("Cast", ["timestep"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["real", "column"], ["time"]),
        helper.make_node("Mul", ["time", "rate"], ["small"]),
        helper.make_node("Add", ["scaled", "small"], ["noise"]),
    ]
    graph = helper.make_graph(
        nodes,
        "noise",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, [batch, *sizes]),
            helper.make_tensor_value_info("timestep", TensorProto.INT64, list(timestep)),
        ],
        [helper.make_tensor_value_info("noise", TensorProto.FLOAT, [batch, *sizes])],
        [
            helper.make_tensor("half", TensorProto.FLOAT, [1, 1, 1, 1], [0.5]),
            helper.make_tensor("rate", TensorProto.FLOAT, [], [1e-4]),
            helper.make_tensor("column", TensorProto.INT64, [4], [-1, 1, 1, 1]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
