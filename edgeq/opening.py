"""Open whatever a user calls a model, quantized or not: a file, a bundle, a factory, an object."""

import os
from pathlib import Path

import onnx
import onnx_ir as ir

from edgeq.load import load_model, normalize
from edgeq.source import read_source


def open_model(source: object) -> ir.Model:
    """Return the model that `source` names.

    Args:
        source: Path of an `.onnx` or `.pt2` file, of a bundle's folder, `MODULE:FACTORY`, an
            `onnx.ModelProto`, or an `onnx_ir.Model`, which is copied.

    Raises:
        EdgeqError: It cannot be read, or is none of these.
    """
    if isinstance(source, ir.Model):
        return normalize(source.clone(), source.graph.name or "model").model
    if isinstance(source, onnx.ModelProto):
        return normalize(ir.from_proto(source), source.graph.name or "model").model
    if not isinstance(source, str | os.PathLike):
        return read_source(source).model
    path = Path(source)
    if path.is_dir():
        from edgeq.bundle import open_bundle

        return load_model(open_bundle(path).artifact).model
    return load_model(path).model if path.suffix == ".onnx" else read_source(source).model
