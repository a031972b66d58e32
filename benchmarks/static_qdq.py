"""What `onnxruntime.quantization.quantize_static` deploys: edgeq stands beside it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.version_converter
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.cases import ExportedCase, make_session


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands the case's calibration samples to ONNX Runtime, one at a time."""

    def __init__(self, feeds: Iterator[dict[str, NDArray[Any]]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next sample, or None after the last."""
        return next(self._feeds, None)


def modern(model: Path, folder: Path) -> Path:
    """Write `model` as its float form runs best: opset 13 or later, constants not inputs.

    `quantize_static` per channel needs opset 13, and ONNX Runtime folds no initializer that is
    listed as an input.
    """
    proto = onnx.load(model)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in initializers]
    opset = next(item.version for item in proto.opset_import if item.domain == "")
    if opset < 13:
        # The converter reads shapes from the inputs, so they are dropped afterwards.
        proto = onnx.version_converter.convert_version(proto, 13)
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    onnx.save(proto, folder / "float.onnx")
    return folder / "float.onnx"


@dataclass(frozen=True)
class StaticModel:
    """What came out for a case.

    Attributes:
        path: The QDQ model; None where ONNX Runtime made none, or does not load what it made.
        note: What failed; empty where nothing did.
    """

    path: Path | None
    note: str = ""


def quantize_case(case: ExportedCase, folder: Path) -> StaticModel:
    """Quantize as ONNX Runtime's documentation advises for CPUs.

    Pre-processed (shapes inferred, graph optimized), uint8 activations, int8 weights per channel,
    minimum and maximum of the same calibration samples. Where the symbolic shape inference of the
    pre-processing fails it is left out.
    """
    quantized = folder / "quantize_static.onnx"
    model, note = _prepared(modern(case.model, folder), folder)
    logging.disable(logging.WARNING)  # a line for every weight that has one axis
    try:
        quantize_static(
            str(model),
            str(quantized),
            Reader(case.calibration_feeds()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        make_session(quantized)
    except Exception as error:  # ONNX Runtime's own exceptions have no common class
        return StaticModel(None, _joined(note, f"quantize_static: {_reason(error)}"))
    finally:
        logging.disable(logging.NOTSET)
    return StaticModel(quantized, note)


def _prepared(model: Path, folder: Path) -> tuple[Path, str]:
    """Return the pre-processed model, as far as that works, and what did not."""
    model, prepared, note = model.resolve(), (folder / "prepared.onnx").resolve(), ""
    for skip_symbolic in (False, True):
        try:
            with _inside(folder):  # where it fails it leaves files in the current folder
                quant_pre_process(str(model), str(prepared), skip_symbolic_shape=skip_symbolic)
        except Exception as error:  # its shape inference raises bare ones
            note = _joined(note, f"quant_pre_process: {_reason(error)}")
        else:
            return prepared, note
    return model, note


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Make `folder` the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _reason(error: Exception) -> str:
    """Return an error in one line, without the path that ONNX Runtime writes in front."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return text.rpartition("failed:")[2].strip()


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
