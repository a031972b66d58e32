"""Quantize a model with another tool, as its documentation advises, in that tool's environment.

    python foreign_quantizers.py TOOL MODEL.onnx CALIBRATION.npz OUTPUT.onnx

TOOL is one of the names in `TOOLS`. Needs numpy and the tool, and nothing of edgeq: each tool wants
an environment of its own.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 32
Feeds = Mapping[str, Any]


def samples(path: Path) -> list[Feeds]:
    """Return the first calibration samples, each with a batch axis."""
    with np.load(path) as data:
        arrays = {name: data[name] for name in data.files}
    count = min(SAMPLES, *(len(array) for array in arrays.values()))
    return [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(count)]


class Reader:
    """The interface of calibration data that onnxruntime and Quark share."""

    def __init__(self, feeds: list[Feeds]) -> None:
        self._feeds = feeds
        self._left: Iterator[Feeds] = iter(feeds)

    def get_next(self) -> Feeds | None:
        """Return the next sample, or None after the last."""
        return next(self._left, None)

    def rewind(self) -> None:
        """Begin again."""
        self._left = iter(self._feeds)


def onnxruntime_uint8(model: Path, feeds: list[Feeds], output: Path) -> None:
    """Quantize as onnxruntime advises for x86 CPUs: uint8 activations, int8 weights per channel."""
    from onnxruntime.quantization import QuantType

    _onnxruntime(model, feeds, output, QuantType.QUInt8)


def onnxruntime_int8(model: Path, feeds: list[Feeds], output: Path) -> None:
    """Quantize with the defaults of `quantize_static`: int8 throughout."""
    from onnxruntime.quantization import QuantType

    _onnxruntime(model, feeds, output, QuantType.QInt8)


def _onnxruntime(model: Path, feeds: list[Feeds], output: Path, activations: object) -> None:
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = output.with_name(f"{output.stem}.prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(output),
        Reader(feeds),
        per_channel=True,
        activation_type=activations,
        weight_type=QuantType.QInt8,
    )
    prepared.unlink()


def nncf(model: Path, feeds: list[Feeds], output: Path) -> None:
    """Quantize with `nncf.quantize` and its defaults."""
    import nncf as tool
    import onnx

    found = tool.quantize(onnx.load(model), tool.Dataset(feeds), subset_size=len(feeds))
    onnx.save(found, output)


def modelopt(model: Path, feeds: list[Feeds], output: Path) -> None:
    """Quantize with ModelOpt's int8 mode, its defaults."""
    from modelopt.onnx.quantization import quantize

    arrays = {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}
    quantize(
        str(model),
        quantize_mode="int8",
        calibration_data=arrays,
        calibration_eps=["cpu"],
        output_path=str(output),
        high_precision_dtype="fp32",
    )


def quark(model: Path, feeds: list[Feeds], output: Path) -> None:
    """Quantize with Quark's configuration `A8W8`: int8, symmetric activations and weights."""
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config import Config, get_default_config

    config = Config(global_quant_config=get_default_config("A8W8"))
    ModelQuantizer(config).quantize_model(str(model), str(output), Reader(feeds))


TOOLS: Mapping[str, Callable[[Path, list[Feeds], Path], None]] = {
    "onnxruntime-uint8": onnxruntime_uint8,
    "onnxruntime-int8": onnxruntime_int8,
    "nncf": nncf,
    "modelopt": modelopt,
    "quark": quark,
}

if __name__ == "__main__":
    name, source, calibration, made = sys.argv[1:]
    TOOLS[name](Path(source), samples(Path(calibration)), Path(made))
