"""ONNX Runtime: sessions and runs, on the CPU.

The only module that imports it, but for the bundle's check. Its types end here: it has no stubs.
Nothing is printed: warnings are for developers of models, and a session that failed raises.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.graph import to_bytes

Array: TypeAlias = NDArray[Any]
Session: TypeAlias = ort.InferenceSession

PROVIDERS = ("CPUExecutionProvider",)
ERROR = 3  # ONNX Runtime's severity: warnings, that of a written optimized model too, are less
MESSAGE_LIMIT = 2**31 - 2**20  # one protobuf message is below 2 GiB; leave room for the graph
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})
LEVELS = MappingProxyType(
    {
        "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }
)


def make_session(
    model: ir.Model | bytes,
    *,
    options: Mapping[str, str] = NO_OPTIONS,
    threads: int = 1,
    level: str = "all",
    optimized_path: str | os.PathLike[str] | None = None,
) -> Session:
    """Open a session on the CPU provider.

    Args:
        model: A model, or one serialized. Models beyond 2 GiB pass through a temporary folder.
        options: ONNX Runtime's session configuration entries, by its own keys.
        threads: Threads within an operator; operators run one after the other.
        level: How far the graph is optimized: `none`, `basic`, `extended` or `all`.
        optimized_path: Where to write the optimized model.

    Raises:
        ModelError: ONNX Runtime refuses the model; the message is its own.
    """
    settings = _settings(options, threads, level)
    if optimized_path is not None:
        settings.optimized_model_filepath = os.fspath(optimized_path)
    if isinstance(model, bytes):
        return _open(model, settings)
    if _weight_bytes(model) <= MESSAGE_LIMIT:
        return _open(to_bytes(model), settings)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        path = Path(folder) / "model.onnx"
        save_large(model, path)
        return _open(str(path), settings)


def run(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return every output by name, each an array of its own."""
    names = [str(output.name) for output in session.get_outputs()]
    found = session.run(names, dict(feeds))
    return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}


def save_large(model: ir.Model, path: Path) -> None:
    """Write `model` to `path`, its weights in a file beside it; `model` is left as it was."""
    ir.save(model, path, external_data=f"{path.name}.data")


def _weight_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _settings(options: Mapping[str, str], threads: int, level: str) -> Any:  # noqa: ANN401
    """Return SessionOptions; untyped, as ONNX Runtime has no stubs."""
    settings = ort.SessionOptions()
    settings.log_severity_level = ERROR
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = LEVELS[level]
    for key, value in options.items():
        settings.add_session_config_entry(key, value)
    return settings


def _open(model: bytes | str, settings: Any) -> Session:  # noqa: ANN401 - as above
    try:
        return ort.InferenceSession(model, settings, providers=list(PROVIDERS))
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise ModelError(f"ONNX Runtime cannot open the model: {error}") from error
