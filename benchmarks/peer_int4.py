"""What other tools reach with 4-bit weights and 8-bit activations on the zoo's models.

    python -m venv /tmp/aimet && /tmp/aimet/bin/pip install aimet-onnx==2.42.0
    /tmp/aimet/bin/python benchmarks/peer_int4.py AIMET resnet20-cifar10 vit-mnist

Each tool needs an environment of its own, so this file imports neither edgeq nor another benchmark.
The tools see the same calibration samples as edgeq; figures are taken over all evaluation data, and
stand in `peers.toml` for `benchmarks.low_bits` to show beside edgeq's.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime as ort

Feeds = Mapping[str, "np.ndarray[Any, Any]"]
Run = Callable[[Feeds], list["np.ndarray[Any, Any]"]]


def load_case(zoo: Path, name: str) -> Any:  # noqa: ANN401  # the zoo's own class
    """Return a case of the zoo."""
    spec = importlib.util.spec_from_file_location("zoo", zoo / "zoo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["zoo"] = module
    spec.loader.exec_module(module)
    return module.load(name)


def session_of(model: bytes | str) -> Run:
    """Return what runs a model with onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feeds: list(session.run(None, dict(feeds)))


def run_aimet(case: Any, iterations: int) -> Run:  # noqa: ANN401
    """Quantize with AIMET: AdaRound for the weights, then activation encodings."""
    import aimet_onnx

    samples = list(case.calibration())
    sim = aimet_onnx.QuantizationSimModel(
        onnx.load(case.model), param_type="int4", activation_type="int8", dummy_input=samples[0]
    )
    if iterations:
        aimet_onnx.apply_adaround(sim, samples, iterations)
    sim.compute_encodings(samples)
    return lambda feeds: list(sim.session.run(None, dict(feeds)))


def run_nncf(case: Any, iterations: int) -> Run:  # noqa: ANN401
    """Compress the weights with NNCF, to 4 bits per channel.

    Its `quantize` refuses 4-bit weights on every device it knows for ONNX; activations stay float.
    """
    import nncf

    model = nncf.compress_weights(
        onnx.version_converter.convert_version(onnx.load(case.model), 21),  # int4 needs it
        mode=nncf.CompressWeightsMode.INT4_SYM,
        ratio=1.0,
        group_size=-1,
        all_layers=True,
        dataset=nncf.Dataset(list(case.calibration())),
    )
    return session_of(model.SerializeToString())


class Reader:
    """Calibration samples as onnxruntime asks for them."""

    def __init__(self, feeds: Iterator[dict[str, Any]]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample, or None."""
        return next(self._feeds, None)


def run_onnxruntime(case: Any, iterations: int) -> Run:  # noqa: ANN401
    """Quantize with quantize_static: QInt4 weights per channel, QUInt8 activations."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Data(Reader, CalibrationDataReader):  # type: ignore[misc]
        pass

    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "model.onnx")
        quantize_static(
            case.model,
            output,
            Data(case.calibration()),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt4,
        )
        return session_of(Path(output).read_bytes())


TOOLS = {"AIMET": run_aimet, "NNCF": run_nncf, "onnxruntime": run_onnxruntime}


def signal_to_noise(case: Any, run: Run, reference: Run) -> float:  # noqa: ANN401
    """Return the SQNR of the first output over all evaluation data, in dB."""
    signal = noise = 0.0
    for feeds, _ in case.evaluation():
        want, got = reference(feeds)[0].astype(np.float64), run(feeds)[0]
        signal += float((want**2).sum())
        noise += float(((want - got) ** 2).sum())
    return float(10 * np.log10(signal / noise))


def main() -> None:
    """Quantize the cases with one tool and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=sorted(TOOLS))
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--zoo", type=Path, default=Path(__file__).parents[2] / "shared" / "zoo")
    parser.add_argument("--iterations", type=int, default=500, help="of AdaRound, per layer")
    arguments = parser.parse_args()
    for name in arguments.cases:
        case = load_case(arguments.zoo, name)
        start = time.perf_counter()
        try:
            run = TOOLS[arguments.tool](case, arguments.iterations)
            seconds = time.perf_counter() - start
            metric = case.evaluate(run)
            noise = signal_to_noise(case, run, session_of(case.model))
        except Exception as error:  # of the tool: that is its result
            print(f"{name}: {arguments.tool} failed: {type(error).__name__}: {error}", flush=True)
            continue
        print(
            f"{name}: {arguments.tool} {case.metric} {metric:.5f} sqnr {noise:.2f} dB,"
            f" {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
