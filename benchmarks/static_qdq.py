"""What `onnxruntime.quantization.quantize_static` deploys: the measure of edgeq's speed."""

from collections.abc import Iterator
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

from benchmarks.cases import ExportedCase


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


def quantize_case(case: ExportedCase, folder: Path) -> Path:
    """Write the QDQ model as ONNX Runtime's documentation advises for CPUs, and return its path.

    Pre-processed (shapes inferred, graph optimized), uint8 activations, int8 weights per channel,
    minimum and maximum of the same calibration samples.
    """
    prepared, quantized = folder / "prepared.onnx", folder / "quantize_static.onnx"
    quant_pre_process(str(modern(case.model, folder)), str(prepared))
    quantize_static(
        str(prepared),
        str(quantized),
        Reader(case.calibration_feeds()),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return quantized
