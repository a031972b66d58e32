"""A bundle for a device: the model as C, and a check of itself that needs nothing else.

edgeq_model.h  edgeq_model.c  edgeq_weights.c  kernels.o (or kernels.c)
check.c  check.h  golden.c  platform.c  sha256.c  Makefile  CMakeLists.txt  README.md
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeq
from edgeq.errors import EdgeqError
from edgeq.tvm.c_text import array_initializer
from edgeq.tvm.devices import Device
from edgeq.tvm.memory_plan import MemoryPlan
from edgeq.tvm.model_source import Codes, model_source
from edgeq.tvm.program import Buffer, Kernel, Program, Tensor
from edgeq.tvm.templates import render, text_of

__all__ = ["Codes", "GoldenRun", "Sources", "make_sources"]
_COPIED = ("check.c", "check.h", "sha256.c")
_COPIED_FOR_WASM = ("libc_wasm.c", "wasm_api.c")
_RENDERED_FOR_WASM = ("edgeq_model.js", "index.html", "run_wasm.py")


@dataclass(frozen=True)
class GoldenRun:
    """One run of the model on the host.

    Attributes:
        inputs: In the order of the program's inputs.
        outputs: In the order of its outputs.
        taps: `edgeq.check_bits.digest` of each of its taps, in their order.
    """

    inputs: tuple[NDArray[Any], ...]
    outputs: tuple[NDArray[Any], ...]
    taps: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Sources:
    """The files of a bundle, and what they need.

    Attributes:
        files: By name.
        memory: Where each workspace buffer lies.
        weights: Bytes of constants.
        runs: How many golden runs are in it.
    """

    files: Mapping[str, bytes]
    memory: MemoryPlan
    weights: int
    runs: int


def make_sources(
    program: Program,
    device: Device,
    kernels: bytes,
    golden: Sequence[GoldenRun],
    codes: Mapping[str, Codes],
    *,
    model: str = "model",
) -> Sources:
    """Return everything that is deployed.

    Args:
        program: The lowered model.
        device: What it was compiled for.
        kernels: The object file, or the C source for a device of that kind.
        golden: Runs on the host; as many of them as `device.golden_bytes` has room for are used,
            and at least one.
        codes: Of quantized inputs and outputs, by the tensor's name.
        model: Its name, for people.

    Raises:
        EdgeqError: The weights or the workspace are larger than the device's memory, or there is
            no golden run.
    """
    if not golden:
        raise EdgeqError("a bundle needs golden vectors: give at least one sample")
    made = model_source(program, device, kernels, codes, model=model)
    runs = _as_many_as_fit(golden, device.golden_bytes)
    facts: dict[str, object] = {
        "model": model,
        "version": edgeq.__version__,
        "device": device,
        "workspace": max(made.memory.size, device.alignment),
        "weights": made.weights,
        "runs": len(runs),
        "inputs": made.inputs,
        "outputs": made.outputs,
    }
    files = {
        **made.files,
        "golden.c": render("golden.c", **_golden(program, device, runs)),
        "Makefile": render("Makefile", **facts, **_linking(device)),
        "CMakeLists.txt": render("CMakeLists.txt", **facts),
        "README.md": render("README.md", **facts),
        "platform.c": text_of(f"platform_{device.platform}.c"),
        **{name: text_of(name) for name in _COPIED},
    }
    if device.platform == "semihosting":
        files["cortex_m.ld"] = render("cortex_m.ld", **facts)
    if device.platform == "wasm":
        files |= {name: text_of(name) for name in _COPIED_FOR_WASM}
        files |= {name: render(name, **facts) for name in _RENDERED_FOR_WASM}
    return Sources(MappingProxyType(files), made.memory, made.weights, len(runs))


def _as_many_as_fit(golden: Sequence[GoldenRun], limit: int) -> Sequence[GoldenRun]:
    size = sum(array.nbytes for array in (*golden[0].inputs, *golden[0].outputs))
    return golden[: max(1, limit // max(1, size))]


def _golden(program: Program, device: Device, runs: Sequence[GoldenRun]) -> dict[str, object]:
    """Return what golden.c holds."""
    assert all(len(run.taps) == len(program.taps) for run in runs), "one digest for each tap"
    writers = {kernel.writes: kernel for kernel in program.kernels}
    digests = b"".join(b"".join(run.taps) for run in runs)

    def port(tensor: Tensor, arrays: Sequence[NDArray[Any]]) -> dict[str, object]:
        for array in arrays:
            assert array.dtype.name == tensor.buffer.dtype, f"{tensor.name}: {array.dtype}"
            assert array.size == tensor.buffer.elements, f"{tensor.name}: {array.shape}"
        data = b"".join(array.tobytes() for array in arrays)
        text = array_initializer(data, portable=device.is_source)
        return _entry(tensor, writers) | {"bytes": text}

    return {
        "runs": len(runs),
        "inputs": [port(t, [r.inputs[n] for r in runs]) for n, t in enumerate(program.inputs)],
        "outputs": [port(t, [r.outputs[n] for r in runs]) for n, t in enumerate(program.outputs)],
        "taps": [_entry(tap, writers) for tap in program.taps],
        "digests": array_initializer(digests, portable=device.is_source),
    }


def _entry(tensor: Tensor, writers: Mapping[Buffer, Kernel]) -> dict[str, object]:
    """Return a `struct edgeq_tensor`."""
    writer, shape = writers.get(tensor.buffer), tensor.layout.shape
    return {
        "name": tensor.name,
        "writer": "" if writer is None else f"{writer.symbol} ({writer.does})",
        "type": f"{tensor.buffer.dtype}{list(shape)}",
        "size": np.dtype(tensor.buffer.dtype).itemsize,
        "elements": tensor.buffer.elements,
        "rank": len(shape),
        "shape": shape,
        "strides": None if tensor.layout.is_plain else tensor.layout.strides,
    }


def _linking(device: Device) -> dict[str, object]:
    """Return how the programs of the Makefile are linked, and their names."""
    if device.platform == "wasm":
        flags = "-nostdlib -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=65536"
        return {"ldflags": flags, "check": "check.wasm", "taps": "taps.wasm", "ar": "llvm-ar"}
    archiver = device.compiler.removesuffix("gcc") + "ar"
    names = {"check": "check", "taps": "taps", "ar": archiver}
    if device.platform == "semihosting":
        flags = "-T cortex_m.ld -nostartfiles --specs=nosys.specs -Wl,--gc-sections -lm"
        return {"ldflags": flags, **names}
    return {"ldflags": "-lm" if device.is_native else "-static -lm", **names}
