"""Hold the tensors of an ONNX file against the bytes that are there, before using them.

Raised for dimensions below zero or beyond any memory, data that does not fill the shape, and
external data outside the model's folder, missing or truncated.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from edgeq.errors import ModelError

LARGEST = 2**40  # bytes of one tensor

_NO_WIDTH = (None, ir.DataType.UNDEFINED, ir.DataType.STRING)
_TYPED_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
}


def check_tensors(proto: onnx.ModelProto, file: Path) -> None:
    """Check every tensor in `proto`, which was read from `file`.

    Raises:
        ModelError: A tensor's size or data is not sound; the message names it.
    """
    graphs = [proto.graph, *(function for function in proto.functions)]
    for graph in graphs:
        for tensor in _tensors(graph, file):
            _check_tensor(tensor, file)


def check_shapes(model: ir.Model, title: str) -> None:
    """Hold the shapes that a graph gives its values against any memory.

    Some of ONNX's own functions end the process at dimensions below zero.

    Raises:
        ModelError: A dimension is below zero, or a value takes more than a tensor may.
    """
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs, *(v for node in graph for v in node.outputs)):
            sizes = [size for size in value.shape or () if isinstance(size, int)]
            if any(size < 0 for size in sizes):
                raise ModelError(f"{title}: {value.name!r} has the shape {_shape(value)}")
            width = 8 if value.dtype in _NO_WIDTH else value.dtype.bitwidth
            if 0 not in sizes and math.prod(sizes) * width > 8 * LARGEST:
                raise ModelError(
                    f"{title}: {value.name!r} of shape {_shape(value)} would take"
                    f" {math.prod(sizes) * width // 8:,} bytes"
                )


def _shape(value: ir.Value) -> str:
    return f"[{', '.join(str(size) for size in value.shape or ())}]"


def _tensors(graph: onnx.GraphProto | onnx.FunctionProto, file: Path) -> Iterator[onnx.TensorProto]:
    if isinstance(graph, onnx.GraphProto):
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise ModelError(f"{file}: initializer {name!r} is sparse; store it densely")
        yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.ref_attr_name and isinstance(graph, onnx.GraphProto):
                raise ModelError(
                    f"{file}: attribute {attribute.name!r} of a {node.op_type} refers to"
                    f" {attribute.ref_attr_name!r}, but stands in no function"
                )
            yield from (attribute.t,) if attribute.HasField("t") else ()
            yield from attribute.tensors
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner, file)


def _check_tensor(tensor: onnx.TensorProto, file: Path) -> None:
    title = f"{file}: tensor {tensor.name!r}"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError as error:
        raise ModelError(f"{title} has the unknown type {tensor.data_type}") from error
    if dtype is ir.DataType.UNDEFINED:
        raise ModelError(f"{title} has no type")
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"{title} has the shape {list(tensor.dims)}")
    count = math.prod(tensor.dims)
    if dtype is ir.DataType.STRING:
        return
    size = (count * dtype.bitwidth + 7) // 8
    if size > LARGEST:
        raise ModelError(f"{title} of shape {list(tensor.dims)} would take {size:,} bytes")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, size, file, title)
        return
    found, expected = _stored(tensor, dtype, count, size)
    if found != expected:
        raise ModelError(
            f"{title} of shape {list(tensor.dims)} and type {dtype.name.lower()} must hold"
            f" {expected:,} {'bytes' if expected == size else 'numbers'}, the file has {found:,}"
        )


def _stored(tensor: onnx.TensorProto, dtype: ir.DataType, count: int, size: int) -> tuple[int, int]:
    """Return how much data there is and how much there must be, in bytes or in numbers."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), size
    field = getattr(tensor, _TYPED_FIELDS.get(dtype, "int32_data"))
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        field = tensor.float_data or tensor.double_data
        return len(field), 2 * count
    packed = max(1, 8 // dtype.bitwidth)  # four-bit numbers lie in pairs
    return len(field), -(-count // packed)


def _check_external(tensor: onnx.TensorProto, size: int, file: Path, title: str) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = Path(os.path.realpath(file.parent))
    target = Path(os.path.realpath(folder / location.replace("\0", "")))
    if (
        not location
        or "\0" in location
        or Path(location).is_absolute()
        or not target.is_relative_to(folder)
    ):
        raise ModelError(
            f"{title}: its external data {location!r} lies outside the model's folder {folder};"
            " put the data (no link to it) beside the model"
        )
    try:
        status = target.stat()
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(size)))
    except OSError as error:
        raise ModelError(f"{title}: its external data {target}: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{title}: offset or length of its external data is no number") from error
    if not target.is_file() or status.st_nlink > 1:
        raise ModelError(f"{title}: its external data {target} must be a plain file with one name")
    if length != size:
        raise ModelError(
            f"{title} of shape {list(tensor.dims)} must hold {size:,} bytes,"
            f" its external data is said to have {length:,}"
        )
    if offset < 0 or offset + length > status.st_size:
        raise ModelError(
            f"{title}: its external data {target} is truncated: {offset + length:,} bytes needed,"
            f" {status.st_size:,} there"
        )
