"""Write a model to a `.onnx` file; large weights go to one file beside it, `NAME.onnx.data`.

A protobuf message is below 2 GiB and is copied several times on its way; weights in a file of their
own are mapped into memory by those who read the model.
"""

import os
from pathlib import Path

import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import to_bytes, weight_bytes

LARGE = 2**28  # bytes of weights above which they get a file of their own
_INLINE = 1024  # bytes; shapes and scales stay where everybody looks for them
_PAGE = 4096  # large weights begin on a page of memory


def write_model(path: Path, model: ir.Model) -> None:
    """Write `model` to `path`, whole or not at all; the same bytes for the same model.

    Raises:
        ModelError: The disk is full, or the operating system refuses.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        if weight_bytes(model) <= LARGE:
            partial.write_bytes(to_bytes(model))
        else:
            data = f"{path.name}.data"
            ir.save(
                model, partial, format="protobuf", external_data=data,
                size_threshold_bytes=_INLINE, alignment=_PAGE,
            )  # fmt: skip
        partial.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
