"""How fast are the integer kernels of TVM's devices, beside ONNX Runtime's, layer by layer?

    python -m benchmarks.tvm_linear [MODEL]... [--isa NAME] [--rounds N]

One thread, batch 1, the shapes of the zoo's CNNs. ONNX Runtime runs its channels-last QLinearConv
in one session with 1 and one with 9 of them: the difference over 8 is free of what a call costs.
The two take turns; figures are medians in microseconds. Exit status 1 if a model's sum is above
the limit for its instruction set.
"""

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tvm
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeq.tvm.codegen import compile_kernels
from edgeq.tvm.dot import ISAS
from edgeq.tvm.linear import Codes, LinearProblem, LoweredLinear, lower_linear
from edgeq.tvm.program import SLACK, Buffer, Kernel

Array = NDArray[Any]
CPUS = {"vnni512": "cascadelake", "avx2": "haswell", "vector": "x86-64", "scalar": "x86-64"}
LIMITS = {"vnni512": 1.3, "avx2": 3.0}
PEAK = "3x3 of 64 channels"  # how near the CPU's peak; no model, so no limit
SAME = (1, 1, 1, 1)
Y = Codes("uint8", 3, 0, 255)


def _conv(size: int, in_c: int, out_c: int, k: int = 3, stride: int = 1) -> LinearProblem:
    pads = SAME if k == 3 else (0, 0, 0, 0)
    return LinearProblem(
        1, size, size, in_c, out_c, k, k, strides=(stride, stride), pads=pads, x_zero=7, y=Y
    )


def _depthwise(size: int, channels: int, stride: int = 1) -> LinearProblem:
    pads = SAME if stride == 1 else (0, 0, 1, 1)
    return LinearProblem(
        1, size, size, channels, channels, 3, 3, strides=(stride, stride), pads=pads,
        groups=channels, x_zero=7, y=Y,
    )  # fmt: skip


def _speech() -> list[tuple[int, LinearProblem]]:
    first = LinearProblem(1, 49, 10, 1, 64, 10, 4, strides=(2, 2), pads=(4, 1, 5, 1), x_zero=7, y=Y)
    depthwise = LinearProblem(1, 25, 5, 64, 64, 3, 3, pads=SAME, groups=64, x_zero=7, y=Y)
    pointwise = LinearProblem(1, 25, 5, 64, 64, 1, 1, x_zero=7, y=Y)
    return [(1, first), (4, depthwise), (4, pointwise), (1, _conv(1, 64, 12, 1))]


def _mobilenet() -> list[tuple[int, LinearProblem]]:
    blocks = [(112, 24, 48, 1), (112, 48, 96, 2), (56, 96, 96, 1), (56, 96, 192, 2)]
    blocks += [(28, 192, 192, 1), (28, 192, 384, 2), (14, 384, 768, 2), (7, 768, 768, 1)]
    found = [(1, _conv(224, 3, 24, 3, 2))]
    for size, in_c, out_c, stride in blocks:
        found.append((1, _depthwise(size, in_c, stride)))
        found.append((1, _conv(size // stride, in_c, out_c, 1)))
    return [
        *found,
        (5, _depthwise(14, 384)),
        (5, _conv(14, 384, 384, 1)),
        (1, _conv(1, 768, 1000, 1)),
    ]


MODELS = {
    "resnet20-cifar10": [
        (1, _conv(32, 3, 16)),
        (6, _conv(32, 16, 16)),
        (1, _conv(32, 16, 32, 3, 2)),
        (5, _conv(16, 32, 32)),
        (1, _conv(16, 32, 64, 3, 2)),
        (5, _conv(8, 64, 64)),
        (1, _conv(1, 64, 10, 1)),
    ],
    "kws-dscnn": _speech(),
    "mobilenet-v1-075": _mobilenet(),
    PEAK: [(1, _conv(56, 64, 64))],
}
DRIVER = """
#include <stdint.h>
#include <time.h>
typedef void kernel(void *, void *, void *, void *, void *, void *);
double run(kernel *f, void **p, int n) {
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  for (int i = 0; i < n; ++i) f(p[0], p[1], p[2], p[3], p[4], p[5]);
  clock_gettime(CLOCK_MONOTONIC, &b);
  return ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / n;
}
"""


def _aligned(array: Array) -> Array:
    memory = np.zeros(array.nbytes + SLACK + 64, np.uint8)
    start = -memory.ctypes.data % 64
    memory[start : start + array.nbytes] = array.view(np.uint8).ravel()
    return memory[start:]


def _ours(
    problem: LinearProblem, weight: Array, isa: str, x: Array, folder: Path
) -> Callable[[int], float]:
    """Return what runs a kernel n times and gives the nanoseconds of one run."""
    bias = np.arange(problem.out_c, dtype=np.int32)
    scale = np.full(problem.out_c, 0.003, np.float32)
    zero = np.zeros((), np.int8)
    made: LoweredLinear = lower_linear("layer", problem, weight, zero, bias, scale, ISAS[isa])
    nowhere = Buffer("y", "uint8", 1, "workspace")
    kernels = [Kernel(s.symbol, s.function, (), nowhere, "") for s in made.steps]
    target = {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": CPUS[isa]}
    (folder / "layer.o").write_bytes(compile_kernels(kernels, tvm.target.Target(target)))
    (folder / "driver.c").write_text(DRIVER)
    names = [str(folder / name) for name in ("driver.c", "layer.o")]
    subprocess.run(
        ["gcc", "-O2", "-shared", "-fPIC", "-o", folder / "layer.so", *names], check=True
    )
    library = ctypes.CDLL(str(folder / "layer.so"))
    library.run.restype = ctypes.c_double
    memory = {"x": _aligned(x), "y": _aligned(np.zeros(problem.y_elements, np.uint8))}
    memory |= {role: _aligned(array) for role, array in made.constants.items()}
    for role, (dtype, elements) in made.scratch.items():
        memory[role] = _aligned(np.zeros(elements, dtype))
    (step,) = made.steps
    pointers = (ctypes.c_void_p * 6)(*[memory[role].ctypes.data for role in step.roles])

    def run(times: int, _keep: object = memory) -> float:
        return float(library.run(library.layer, pointers, times))

    return run


def _session(problem: LinearProblem, weight: Array, x: Array, copies: int) -> Callable[[], None]:
    constants = {
        "xs": np.float32(0.02), "xz": np.uint8(problem.x_zero), "ws": np.float32(0.01),
        "wz": np.int8(0), "ys": np.float32(0.1), "yz": np.uint8(3),
    }  # fmt: skip
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    nodes, outputs = [], []
    for i in range(copies):
        tensors.append(numpy_helper.from_array(np.roll(weight, i), f"w{i}"))
        tensors.append(numpy_helper.from_array(np.arange(problem.out_c, dtype=np.int32), f"b{i}"))
        names = ["x", "xs", "xz", f"w{i}", "ws", "wz", "ys", "yz", f"b{i}"]
        nodes.append(
            helper.make_node(
                "QLinearConv",
                names,
                [f"y{i}"],
                domain="com.microsoft",
                channels_last=1,
                strides=problem.strides,
                pads=problem.pads,
                group=problem.groups,
                kernel_shape=(problem.kernel_h, problem.kernel_w),
            )
        )
        shape = (1, problem.out_h, problem.out_w, problem.out_c)
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.UINT8, shape))
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    onnx.checker.check_model(model, full_check=False)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    for i in range(copies):
        y = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.uint8))
        binding.bind_ortvalue_output(f"y{i}", y)
    return partial(session.run_with_iobinding, binding)


def _seconds(call: Callable[[], None], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def measure(problem: LinearProblem, isa: str, rounds: int) -> tuple[float, float]:
    """Return microseconds of our kernel and of ONNX Runtime's."""
    rng = np.random.default_rng(0)
    shape = (problem.out_c, problem.depth, problem.kernel_h, problem.kernel_w)
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    x = rng.integers(0, 256, (1, problem.in_h, problem.in_w, problem.in_c)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        run = _ours(problem, weight, isa, x, Path(folder))
    one, nine = (_session(problem, weight, x, copies) for copies in (1, 9))
    times = max(1, int(2e-3 / _seconds(nine, 3)))
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(run(8 * times) / 1e3)
        theirs.append((_seconds(nine, times) - _seconds(one, times)) / 8 * 1e6)
    return statistics.median(ours), statistics.median(theirs)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=list(MODELS), help=", ".join(MODELS))
    parser.add_argument("--isa", default="vnni512", choices=CPUS)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    failed = False
    for model in options.models:
        sums = np.zeros(2)
        for count, p in MODELS[model]:
            ours, theirs = measure(p, options.isa, options.rounds)
            sums += np.array([ours, theirs]) * count
            kind = "depthwise " if p.is_depthwise else ""
            layer = f"{kind}{p.kernel_h}x{p.kernel_w}/{p.strides[0]} {p.in_c}->{p.out_c}"
            layer += f" at {p.in_h}x{p.in_w}"
            print(
                f"  {count} x {layer:36} {ours:8.1f} {theirs:8.1f} {ours / theirs:6.2f}", flush=True
            )
        ratio = sums[0] / sums[1]
        print(f"{model:42} {sums[0]:8.1f} {sums[1]:8.1f} {ratio:6.2f}")
        failed |= model != PEAK and ratio > LIMITS.get(options.isa, np.inf)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
