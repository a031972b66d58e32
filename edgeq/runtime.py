"""ONNX Runtime: sessions and runs, on the CPU.

The only module that imports it, but for the bundle's check. Its types end here: it has no stubs.
Nothing is printed: warnings are for developers of models, and a session that failed raises.
"""

import ctypes
import math
import os
import weakref
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import DataError, ModelError
from edgeq.graph import clone, to_bytes
from edgeq.numerics.qtype import FLOAT8

# Its wheels for Linux keep a device id and report usage, unless this is set before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort  # edgeq uses no network

Array: TypeAlias = NDArray[Any]
Session: TypeAlias = ort.InferenceSession

PROVIDERS = ("CPUExecutionProvider",)
ERROR = 3  # ONNX Runtime's severity: warnings, that of a written optimized model too, are less
FATAL = 4
SHARED = 2**20  # bytes; larger weights are not serialized for a session
_SHARED_TYPES = (ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)
_FOLDER = "session.model_external_initializers_file_folder_path"
_BESIDE = MappingProxyType(
    {
        "session.optimized_model_external_initializers_file_name": "weights.bin",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(SHARED),
    }
)
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})
_FLOAT8 = MappingProxyType({f"tensor({q.name})": q.dtype for q in FLOAT8.values()})
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
        model: A model, or one serialized. Large weights of a model are not serialized: those in
            files are mapped by ONNX Runtime, others are read where they lie.
        options: ONNX Runtime's session configuration entries, by its own keys.
        threads: Threads within an operator; operators run one after the other.
        level: How far the graph is optimized: `none`, `basic`, `extended` or `all`.
        optimized_path: Where to write the optimized model; its weights are put beside it.

    Raises:
        ModelError: ONNX Runtime refuses the model; the message is its own.
    """
    settings = _settings(options, threads, level)
    if optimized_path is not None:
        settings.optimized_model_filepath = os.fspath(optimized_path)
        for key, value in _BESIDE.items():
            settings.add_session_config_entry(key, value)
    if isinstance(model, bytes):
        return _open(model, settings)
    folder, mapped = in_files(model)
    if mapped:
        settings.add_session_config_entry(_FOLDER, folder)
    shared = shareable(model, but=mapped)
    if not shared:
        return _open(to_bytes(model, but=mapped), settings)
    # The session may read these where they lie: they must live as long as it does.
    weights = [ort.OrtValue.ortvalue_from_numpy(array) for array in shared.values()]
    settings.add_external_initializers(list(shared), weights)
    session = _open(_shell(model, shared, mapped), settings)
    weakref.finalize(session, weights.clear)
    return session


def run(session: Session, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return every output by name, each an array of its own.

    Raises:
        DataError: ONNX Runtime cannot run the model on `feeds`: an index that selects from no row,
            sizes that do not fit together.
    """
    names = [str(output.name) for output in session.get_outputs()]
    narrow = any(output.type in _FLOAT8 for output in session.get_outputs())
    options = ort.RunOptions()
    options.log_severity_level = FATAL  # errors are raised; that is enough
    try:
        if narrow:
            return _run_with_float8(session, feeds, options)
        found = session.run(names, dict(feeds), options)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        sizes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        raise DataError(
            f"ONNX Runtime cannot run the model on {sizes}: {error}. See that the data is what the"
            " model takes: sizes, and indices within their tables"
        ) from error
    return {name: np.asarray(array) for name, array in zip(names, found, strict=True)}


def _run_with_float8(
    session: Session, feeds: Mapping[str, Array], options: object
) -> dict[str, Array]:
    """Do the same where outputs are 8-bit floats, which onnxruntime gives no numpy array of."""
    outputs = session.get_outputs()
    values = {n: ort.OrtValue.ortvalue_from_numpy(np.asarray(a)) for n, a in feeds.items()}
    found = session.run_with_ort_values([o.name for o in outputs], values, options)
    arrays = {}
    for output, value in zip(outputs, found, strict=True):
        if output.type in _FLOAT8:
            shape = value.shape()
            codes = ctypes.string_at(value.data_ptr(), math.prod(shape))
            array = np.frombuffer(codes, _FLOAT8[output.type]).reshape(shape)
        else:
            array = np.array(value.numpy())
        arrays[str(output.name)] = array
    return arrays


def in_files(model: ir.Model) -> tuple[str, tuple[str, ...]]:
    """Return a folder, and the names of the large weights in it, which ONNX Runtime itself maps."""
    names: dict[str, list[str]] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or tensor.nbytes <= SHARED:
            continue
        folder = Path(tensor.base_dir).resolve()
        # ONNX Runtime need not follow the links that onnx_ir follows.
        if Path(tensor.path).resolve() == folder / tensor.location:
            names.setdefault(str(folder), []).append(name)
    if len(names) != 1:
        return "", ()
    ((only, found),) = names.items()
    return only, tuple(found)


def shareable(model: ir.Model, but: Collection[str] = ()) -> dict[str, Array]:
    """Return the large weights by name, in the form in which a session can be given them."""
    found = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= SHARED or tensor.dtype not in _SHARED_TYPES:
            continue
        if name in but:
            continue
        found[name] = np.require(tensor.numpy(), requirements=("C", "A"))
    return found


def _shell(model: ir.Model, without: Collection[str], mapped: Collection[str]) -> bytes:
    """Return the serialized model: of the weights `without` and `mapped` it says where they are."""
    shell = clone(model)
    for name in without:
        value = shell.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        value.const_value = ir.ExternalTensor(
            "given", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
    return to_bytes(shell, but=(*without, *mapped))


def _settings(options: Mapping[str, str], threads: int, level: str) -> Any:  # noqa: ANN401
    """Return SessionOptions; untyped, as ONNX Runtime has no stubs."""
    settings = ort.SessionOptions()
    settings.log_severity_level = ERROR
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = LEVELS[level]
    for key, value in options.items():
        try:
            settings.add_session_config_entry(key, value)
        except (RuntimeError, TypeError) as error:
            raise ModelError(f"session option {key!r}: {error}") from error
    return settings


def _open(model: bytes | str, settings: Any) -> Session:  # noqa: ANN401 - as above
    try:
        return ort.InferenceSession(model, settings, providers=list(PROVIDERS))
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise ModelError(f"ONNX Runtime cannot open the model: {error}") from error
