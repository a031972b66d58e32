"""The model that a user names: a file, a factory, or an object; read into one form."""

import os
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import clone, to_bytes, weight_bytes
from edgeq.load import Loaded, load_model, normalize, refuse_quantized

SERIALIZED = 2**27  # bytes of weights from which on they alone count as the size of a model


@dataclass(frozen=True, eq=False)
class Source:
    """A loaded model.

    Attributes:
        name: What reports call it: a file name without its folder, or the graph's name.
        model: The float model.
        notes: What was done on loading.
        size: Bytes of the float model.
    """

    name: str
    model: ir.Model
    notes: tuple[str, ...]
    size: int


def read_source(model: object) -> Source:
    """Read a float model.

    Args:
        model: `.onnx` or `.pt2` path, `MODULE:FACTORY`, `onnx_ir.Model`, or `onnx.ModelProto`.

    Raises:
        ModelError: It cannot be read, or it is already quantized.
    """
    name, loaded = _read(model)
    refuse_quantized(loaded.model)
    weights = weight_bytes(loaded.model)
    if _is_file(model):
        size = Path(str(model)).stat().st_size
    else:
        size = len(to_bytes(loaded.model)) if weights < SERIALIZED else 0
    return Source(name, loaded.model, loaded.notes, max(size, weights))


def _read(model: object) -> tuple[str, Loaded]:
    if isinstance(model, ir.Model):
        return model.graph.name or "model", normalize(clone(model), "the model")
    if isinstance(model, onnx.ModelProto):
        return model.graph.name or "model", normalize(ir.from_proto(model), "the model")
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError(
            f"a model is a path, MODULE:FACTORY, an onnx_ir.Model or an onnx.ModelProto;"
            f" found {type(model).__name__}"
        )
    text = os.fspath(model)
    path = Path(text)
    if path.suffix == ".onnx" or (path.exists() and path.suffix not in (".pt2", ".pt", ".pth")):
        return path.name, load_model(path)
    from edgeq.export import export_factory, export_pt2

    if path.suffix in (".pt2", ".pt", ".pth"):
        return path.name, normalize(export_pt2(path), path.name)
    if ":" in text:
        return text, normalize(export_factory(text), text)
    raise ModelError(f"{text}: no such file; give a .onnx or .pt2 file, or MODULE:FACTORY")


def _is_file(model: object) -> bool:
    return isinstance(model, (str, os.PathLike)) and Path(os.fspath(model)).is_file()
