"""The C around the kernels: files of a bundle, complete with a check of themselves.

    edgeq_model.h  edgeq_model.c  edgeq_weights.c  kernels.o (or kernels.c)
    check.c  check.h  golden.c  platform.c  sha256.c  Makefile  CMakeLists.txt  README.md

The weights are one array, and their bytes are those of the program, whatever the element type: C
source has them as string literals, which compilers read fifteen times faster than lists of numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import edgeq
from edgeq.errors import EdgeqError
from edgeq.tvm.c_text import bytes_literal, comment, float_literal, initializer, string_literal
from edgeq.tvm.devices import Device
from edgeq.tvm.memory_plan import MemoryPlan, plan
from edgeq.tvm.program import SLACK, Buffer, Kernel, Program, Tensor

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).parent.parent / "templates" / "tvm"
C_TYPES = MappingProxyType(
    {
        "bool": "uint8_t",
        "uint8": "uint8_t",
        "int8": "int8_t",
        "uint16": "uint16_t",
        "int16": "int16_t",
        "uint32": "uint32_t",
        "int32": "int32_t",
        "uint64": "uint64_t",
        "int64": "int64_t",
        "float32": "float",
        "float64": "double",
    }
)
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
class Codes:
    """What the codes of an input or output stand for: `real = (code - zero_point) * scale`."""

    scale: float
    zero_point: int


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
    memory = plan(program, device.alignment)
    weights = _weights(program, device.alignment)
    _refuse_too_large(device, memory.size, len(weights.data))
    runs = _as_many_as_fit(golden, device.golden_bytes)
    writers = {kernel.writes: kernel for kernel in program.kernels}
    environment = _environment()
    facts: dict[str, object] = {
        "model": model,
        "version": edgeq.__version__,
        "device": device,
        "workspace": memory.size,
        "weights": len(weights.data),
        "runs": len(runs),
        "inputs": [_port(n, t, codes) for n, t in enumerate(program.inputs)],
        "outputs": [_port(n, t, codes) for n, t in enumerate(program.outputs)],
    }

    def render(name: str, **more: object) -> bytes:
        return environment.get_template(f"{name}.j2").render({**facts, **more}).encode()

    pointers = _pointers(program, memory, weights)
    files = {
        "edgeq_model.h": render("edgeq_model.h"),
        "edgeq_model.c": render("edgeq_model.c", kernels=_calls(program, pointers)),
        "edgeq_weights.c": _weights_source(weights, device.alignment),
        "kernels.c" if device.is_source else "kernels.o": kernels,
        "golden.c": render("golden.c", **_golden(program, runs, writers)),
        "Makefile": render("Makefile", **_linking(device)),
        "CMakeLists.txt": render("CMakeLists.txt"),
        "README.md": render("README.md"),
        "platform.c": _template(f"platform_{device.platform}.c"),
        **{name: _template(name) for name in _COPIED},
    }
    if device.platform == "semihosting":
        files["cortex_m.ld"] = render("cortex_m.ld")
    if device.platform == "wasm":
        files |= {name: _template(name) for name in _COPIED_FOR_WASM}
        files |= {name: render(name) for name in _RENDERED_FOR_WASM}
    return Sources(MappingProxyType(files), memory, len(weights.data), len(runs))


@dataclass(frozen=True)
class _Weights:
    data: bytes
    offsets: Mapping[str, int]


def _weights(program: Program, alignment: int) -> _Weights:
    """Lay the constants one behind the other: behind each there are bytes that may be read."""
    data, offsets = bytearray(), {}
    for kernel in program.kernels:
        for buffer in kernel.arguments:
            if buffer.kind != "constant" or buffer.name in offsets:
                continue
            array = np.ascontiguousarray(program.constants[buffer.name])
            little = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            assert array.dtype.name == buffer.dtype, f"{buffer.name} is {array.dtype.name}"
            assert len(little) == buffer.size, f"{buffer.name}: {len(little)} bytes"
            data += bytes(-len(data) % alignment)
            offsets[buffer.name] = len(data)
            data += little
    return _Weights(bytes(data) + bytes(SLACK) if data else b"", offsets)


def _weights_source(weights: _Weights, alignment: int) -> bytes:
    if not weights.data:
        return b"/* This model has no weights. */\ntypedef int edgeq_no_weights;\n"
    head = (
        "/* All constants, as they lie in memory; edgeq_model.c says where each begins. */\n\n"
        f"extern const unsigned char edgeq_weights[{len(weights.data)}];\n"
        f"const unsigned char edgeq_weights[{len(weights.data)}]"
        f" __attribute__((aligned({alignment}))) =\n"
    )
    return (head + bytes_literal(weights.data) + ";\n").encode()


def _refuse_too_large(device: Device, workspace: int, weights: int) -> None:
    if device.memory is None:
        return
    for what, size, limit in (
        ("weights", weights, device.memory.flash),
        ("workspace", workspace, device.memory.ram),
    ):
        if size > limit:
            raise EdgeqError(
                f"{device.name}: the {what} of this model take {size} bytes, the device has"
                f" {limit}: compile for a larger one, or make the model smaller"
            )


def _as_many_as_fit(golden: Sequence[GoldenRun], limit: int) -> Sequence[GoldenRun]:
    size = sum(array.nbytes for array in (*golden[0].inputs, *golden[0].outputs))
    return golden[: max(1, limit // max(1, size))]


def _port(index: int, tensor: Tensor, codes: Mapping[str, Codes]) -> dict[str, object]:
    buffer, known = tensor.buffer, codes.get(tensor.name)
    return {
        "index": index,
        "name": tensor.name,
        "dtype": buffer.dtype,
        "c_type": C_TYPES[buffer.dtype],
        "size": np.dtype(buffer.dtype).itemsize,
        "shape": tensor.layout.shape,
        "elements": buffer.elements,
        "bytes": buffer.size,
        "scale": None if known is None else float_literal(known.scale),
        "zero_point": None if known is None else known.zero_point,
        "json": json.dumps(
            {
                "name": tensor.name,
                "dtype": buffer.dtype,
                "shape": tensor.layout.shape,
                "scale": None if known is None else float(np.float32(known.scale)),
                "zeroPoint": None if known is None else known.zero_point,
            }
        ),
    }


def _pointers(program: Program, memory: MemoryPlan, weights: _Weights) -> dict[str, str]:
    """Return each buffer's address in C, by its name."""
    found = {name: f"arena + {offset}" for name, offset in memory.offsets.items()}
    found |= {name: f"weights + {offset}" for name, offset in weights.offsets.items()}
    for kind, tensors in (("input", program.inputs), ("output", program.outputs)):
        for index, tensor in enumerate(tensors):
            assert tensor.buffer.kind == kind, f"{tensor.name} is in a buffer of another kind"
            assert tensor.layout.is_plain, f"{tensor.name} is not in the order of ONNX"
            assert tensor.buffer.name not in found, f"{tensor.name} shares its buffer"
            found[tensor.buffer.name] = f"{kind}s[{index}]"
    return found


def _pointer(buffer: Buffer, pointers: Mapping[str, str]) -> str:
    return f"({C_TYPES[buffer.dtype]} *)({pointers[buffer.name]})"


def _calls(program: Program, pointers: Mapping[str, str]) -> list[dict[str, object]]:
    last_writer = {kernel.writes.name: step for step, kernel in enumerate(program.kernels)}
    taps: dict[int, list[dict[str, object]]] = {}
    for index, tap in enumerate(program.taps):
        entry = {"index": index, "pointer": pointers[tap.buffer.name]}
        taps.setdefault(last_writer[tap.buffer.name], []).append(entry)
    return [
        {
            "symbol": kernel.symbol,
            "does": kernel.does,
            "parameters": ", ".join(f"{C_TYPES[b.dtype]} *{b.name}" for b in kernel.arguments),
            "arguments": ", ".join(_pointer(b, pointers) for b in kernel.arguments),
            "taps": taps.get(step, []),
        }
        for step, kernel in enumerate(program.kernels)
    ]


def _golden(
    program: Program, runs: Sequence[GoldenRun], writers: Mapping[Buffer, Kernel]
) -> dict[str, object]:
    def entry(tensor: Tensor) -> dict[str, object]:
        writer = writers.get(tensor.buffer)
        shape = tensor.layout.shape
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

    def port(tensor: Tensor, arrays: Sequence[NDArray[Any]]) -> dict[str, object]:
        for array in arrays:
            assert array.dtype.name == tensor.buffer.dtype, f"{tensor.name}: {array.dtype}"
            assert array.size == tensor.buffer.elements, f"{tensor.name}: {array.shape}"
        return entry(tensor) | {"bytes": bytes_literal(b"".join(a.tobytes() for a in arrays))}

    for run in runs:
        assert len(run.taps) == len(program.taps), "one digest for each tap"
    return {
        "inputs": [port(t, [r.inputs[n] for r in runs]) for n, t in enumerate(program.inputs)],
        "outputs": [port(t, [r.outputs[n] for r in runs]) for n, t in enumerate(program.outputs)],
        "taps": [entry(tap) for tap in program.taps],
        "digests": bytes_literal(b"".join(b"".join(run.taps) for run in runs)),
        "aligned": "__attribute__((aligned(64)))",
    }


def _linking(device: Device) -> dict[str, object]:
    """Return how the programs of the Makefile are linked, and their names."""
    if device.platform == "wasm":
        flags = "-nostdlib -Wl,--no-entry -Wl,-z,stack-size=65536"
        return {"ldflags": flags, "check": "check.wasm", "taps": "taps.wasm", "ar": "llvm-ar"}
    archiver = device.compiler.removesuffix("gcc") + "ar"
    names = {"check": "check", "taps": "taps", "ar": archiver}
    if device.platform == "semihosting":
        flags = "-T cortex_m.ld -nostartfiles --specs=nosys.specs -Wl,--gc-sections -lm"
        return {"ldflags": flags, **names}
    return {"ldflags": "-lm" if device.is_native else "-static -lm", **names}


def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # C, not HTML: names pass c_string and c_comment
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(c_string=string_literal, c_comment=comment, c_list=initializer)
    return environment


def _template(name: str) -> bytes:
    return (TEMPLATES / name).read_bytes()
