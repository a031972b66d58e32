"""The model itself as C: its interface, the calls of its kernels, and its weights.

The weights are one array, with the bytes that the program's constants have in memory, whatever
their types.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

import edgeq
from edgeq.errors import EdgeqError
from edgeq.tvm.c_text import array_initializer, float_literal
from edgeq.tvm.devices import Device
from edgeq.tvm.memory_plan import MemoryPlan, plan
from edgeq.tvm.program import Buffer, Program, Tensor
from edgeq.tvm.templates import render
from edgeq.tvm.weights import Weights, lay_out

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


@dataclass(frozen=True)
class Codes:
    """What the codes of an input or output stand for: `real = (code - zero_point) * scale`."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Port:
    """An input or output as the interface states it.

    Attributes:
        index: Among the inputs, or among the outputs.
        name: In the model.
        dtype: numpy's name.
        shape: In the order of ONNX.
        codes: What codes stand for; `None` for other values.
    """

    index: int
    name: str
    dtype: str
    shape: tuple[int, ...]
    codes: Codes | None

    @property
    def c_type(self) -> str:
        """Of an element."""
        return C_TYPES[self.dtype]

    @property
    def size(self) -> int:
        """Of an element, in bytes."""
        return np.dtype(self.dtype).itemsize

    @property
    def elements(self) -> int:
        """How many."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def scale(self) -> str | None:
        """As a C literal."""
        return None if self.codes is None else float_literal(self.codes.scale)

    @property
    def json(self) -> str:
        """For JavaScript, which has doubles: the exact scale."""
        known = self.codes
        entry = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": self.shape,
            "scale": None if known is None else float(np.float32(known.scale)),
            "zeroPoint": None if known is None else known.zero_point,
        }
        return json.dumps(entry)


@dataclass(frozen=True)
class ModelSource:
    """The model as files.

    Attributes:
        files: By name.
        inputs: Of the interface.
        outputs: Likewise.
        memory: Where each workspace buffer lies.
        weights: Bytes of constants.
    """

    files: Mapping[str, bytes]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    memory: MemoryPlan
    weights: int


def model_source(
    program: Program,
    device: Device,
    kernels: bytes,
    codes: Mapping[str, Codes],
    *,
    model: str = "model",
) -> ModelSource:
    """Return what an application compiles and links.

    Args:
        program: The lowered model.
        device: What it was compiled for.
        kernels: The object file, or the C source for a device of that kind.
        codes: Of quantized inputs and outputs, by the tensor's name.
        model: Its name, for people.

    Raises:
        EdgeqError: The weights or the workspace are larger than the device's memory.
    """
    memory = plan(program, device.alignment)
    weights = lay_out(program, device.alignment)
    _refuse_too_large(device, memory.size, len(weights.data))
    inputs = tuple(_port(n, tensor, codes) for n, tensor in enumerate(program.inputs))
    outputs = tuple(_port(n, tensor, codes) for n, tensor in enumerate(program.outputs))
    facts: dict[str, object] = {
        "model": model,
        "version": edgeq.__version__,
        "device": device,
        "workspace": max(memory.size, device.alignment),  # C has no empty arrays
        "weights": len(weights.data),
        "inputs": inputs,
        "outputs": outputs,
    }
    calls = _calls(program, _pointers(program, memory, weights))
    files = {
        "edgeq_model.h": render("edgeq_model.h", **facts),
        "edgeq_model.c": render("edgeq_model.c", kernels=calls, **facts),
        "edgeq_weights.c": _weights_file(weights.data, device),
        "kernels.c" if device.is_source else "kernels.o": kernels,
    }
    return ModelSource(MappingProxyType(files), inputs, outputs, memory, len(weights.data))


def _weights_file(data: bytes, device: Device) -> bytes:
    if not data:
        return b"/* This model has no weights. */\ntypedef int edgeq_no_weights;\n"
    declaration = f"const unsigned char edgeq_weights[{len(data)}]"
    text = (
        "/* All constants, as they lie in memory; edgeq_model.c says where each begins. */\n\n"
        f"extern {declaration};\n\n"
        f"_Alignas({device.alignment}) {declaration} =\n"
        f"{array_initializer(data, portable=device.is_source)};\n"
    )
    return text.encode()


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


def _port(index: int, tensor: Tensor, codes: Mapping[str, Codes]) -> Port:
    return Port(
        index, tensor.name, tensor.buffer.dtype, tensor.layout.shape, codes.get(tensor.name)
    )


def _pointers(program: Program, memory: MemoryPlan, weights: Weights) -> dict[str, str]:
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
        entry: dict[str, object] = {"index": index, "pointer": pointers[tap.buffer.name]}
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
