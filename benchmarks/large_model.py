"""Peak memory of compiling a model with large weights in an external file, stage by stage.

    python -m benchmarks.large_model --megabytes 300

The model is one Gemm of random weights, made in a temporary folder. Peaks are of resident memory,
mapped files included, as multiples of the float weights. Exit status 1 when a stage takes over
4 times the weights, beside what an interpreter with all of edgeq's libraries takes.

The limit is for weights of 270 MB and more: smaller ones are simplified with their values at hand,
and their sessions stay open side by side, which is faster.
"""

import argparse
import gc
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeq.compile import compile_model
from edgeq.request import CompileRequest

COLUMNS = 4096
SAMPLES = 4
LIMIT = 4.0
LIBRARIES = 300  # MB: numpy, ONNX, ONNX Runtime and onnxsim
MB = 10**6


class Watch:
    """Follows the resident memory of this process, by stage."""

    def __init__(self) -> None:
        """Begin."""
        self.peaks: dict[str, float] = {}
        self._stage = "start"
        threading.Thread(target=self._follow, daemon=True).start()

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Take note of a new stage."""
        self._stage = stage

    def _follow(self) -> None:
        while True:
            self.peaks[self._stage] = max(self.peaks.get(self._stage, 0.0), resident())
            time.sleep(0.005)


def resident() -> float:
    """Return the resident memory in MB."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(s.split()[1]) * 1024 / MB for s in lines if s.startswith("VmRSS"))


def make_model(folder: Path, megabytes: int) -> tuple[Path, Path]:
    """Write a model of so many megabytes and calibration data; return their paths."""
    rng = np.random.default_rng(0)
    rows = megabytes * MB // (4 * COLUMNS)
    weight = rng.standard_normal((rows, COLUMNS), np.float32) * np.float32(0.01)
    real = ir.TensorType(ir.DataType.FLOAT)
    x, w, y = (
        ir.Value(name="x", shape=ir.Shape(["N", COLUMNS]), type=real),
        ir.Value(name="w", shape=ir.Shape(weight.shape), type=real, const_value=ir.tensor(weight)),
        ir.Value(name="y", shape=ir.Shape(["N", rows]), type=real),
    )
    gemm = ir.node("Gemm", [x, w], {"transB": 1}, outputs=[y], name="gemm")
    graph = ir.Graph([x], [y], nodes=[gemm], initializers=[w], opset_imports={"": 21}, name="large")
    model, data = folder / "model.onnx", folder / "calibration.npz"
    ir.save(ir.Model(graph, ir_version=10), model, external_data="weights.bin")
    np.savez(data, x=rng.standard_normal((SAMPLES, COLUMNS), np.float32))
    return model, data


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=300, help="size of the float weights")
    megabytes = parser.parse_args().megabytes
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        model, data = make_model(Path(folder), megabytes)
        gc.collect()
        watch = Watch()
        output = Path(folder) / "bundle"
        compile_model(
            CompileRequest(model=model, target="ort-cpu", calibration=data, output=output), watch
        )
    print(f"{'stage':<28}{'peak MB':>9}{'x weights':>11}")
    for stage, peak in watch.peaks.items():
        print(f"{stage:<28}{peak:>9.0f}{peak / megabytes:>11.2f}")
    ratio = (max(watch.peaks.values()) - LIBRARIES) / megabytes
    seconds = time.perf_counter() - start
    print(f"{ratio:.2f} times the weights beside the libraries (at most {LIMIT}); {seconds:.0f} s")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())
