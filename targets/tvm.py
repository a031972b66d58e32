"""Integer code compiled ahead of time by TVM: C to call, no runtime, one target for each device.

The quantized model is the one that `ort-cpu` deploys, with sizes fixed. Its kernels are verified in
this process on every sample, compiled for this machine; `edgeq check` runs the golden vectors on
the device, or on its emulator.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import EdgeqError
from edgeq.graph import to_bytes
from edgeq.memory_use import MemoryUse
from edgeq.qdq import operand, quantize_node
from edgeq.targeting import EXACT, Artifact, Feeds, GoldenRun, Runner, Target
from edgeq.tvm.devices import DEVICES, Device
from edgeq.tvm.sections import memory_use
from edgeq.tvm.toolchain import missing_tools, modules

if TYPE_CHECKING:
    from edgeq.tvm.native_runner import NativeRunner
    from edgeq.tvm.program import Program


@dataclass(frozen=True)
class TvmRunner(Runner):
    """The generated code in this process."""

    native: "NativeRunner"
    taps: tuple[str, ...]

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return every output and tap by name."""
        return self.native.run(feeds, self.taps)

    def bound(self, feeds: Feeds) -> Callable[[], None]:
        """Return a function that runs the code on `feeds`, and nothing else."""
        return self.native.bound(feeds)


@dataclass(frozen=True, eq=False)
class _Lowered:
    """A model as code for one device; it keeps the model, whose identity is its key."""

    model: ir.Model
    program: "Program"
    kernels: bytes


class Tvm(Target):
    """One device of `edgeq.tvm.devices`."""

    capabilities = EXACT

    def __init__(self, device: Device = DEVICES["tvm-c"]) -> None:
        self.device = device
        self._lowered: dict[tuple[int, str], _Lowered] = {}
        self._native: dict[int, NativeRunner] = {}

    @classmethod
    def variants(cls) -> Mapping[str, Target]:
        """Return a target for each device."""
        return {name: cls(device) for name, device in DEVICES.items()}

    def name(self) -> str:
        """Return the name of the device."""
        return self.device.name

    @property
    def summary(self) -> str:
        """What the device is."""
        return self.device.summary

    @property
    def needs(self) -> tuple[str, ...]:
        """TVM, the device's compiler and its emulator."""
        return ("edgeq[tvm] (pip)", *self.device.packages)

    @property
    def missing(self) -> tuple[str, ...]:
        """What of that this machine lacks, in words."""
        tvm = () if find_spec("tvm") else ("TVM (pip install 'edgeq[tvm]')",)
        return (*tvm, *missing_tools(self.device))

    def specialize(self, model: ir.Model, sample: Feeds) -> ir.Model:
        """Return the model with the sizes of a sample: memory is planned when it is compiled."""
        from edgeq.tvm.static_model import fix_sizes

        return fix_sizes(model, sample).model

    def taps(self, model: ir.Model) -> list[str]:
        """Return the quantized tensors that lie in memory; others are views of these."""
        return [tensor.name for tensor in self._lower(model, self.device).program.taps]

    def lower(self, model: ir.Model) -> Artifact:
        """Return the quantized model; `complete` adds the code and its check."""
        return Artifact({"model.onnx": to_bytes(model)}, self.memory(model).flash)

    def complete(
        self, model: ir.Model, artifact: Artifact, golden: Sequence[GoldenRun]
    ) -> Artifact:
        """Return the files of the bundle: code, C around it, and its check."""
        files = dict(self._sources(model, self.device, golden))
        if self.device.platform == "wasm":
            files |= modules(files, self.device)
        return Artifact({**artifact.files, **files}, artifact.deployed)

    def load(
        self,
        model: ir.Model,
        *,
        threads: int = 1,
        taps: Sequence[str] = (),
        all_options: bool = False,
    ) -> Runner:
        """Return the code of `model` in this process, compiled for this machine."""
        del threads, all_options  # the code has neither
        if id(model) not in self._native:
            self._native[id(model)] = self._load(model)
        return TvmRunner(self._native[id(model)], tuple(taps))

    @property
    def verified_on(self) -> str | None:
        """The device that this machine is, where it is not the target's own."""
        host = self._host()
        return None if host is self.device else host.name

    def memory(self, model: ir.Model) -> MemoryUse:
        """Return the sizes of code, weights and workspace, and the plan of the workspace."""
        lowered = self._lower(model, self.device)
        return memory_use(lowered.program, lowered.kernels, self.device.alignment)

    def kernels(self, model: ir.Model) -> Mapping[str, int]:
        """Return how many kernels compute what."""
        program = self._lower(model, self.device).program
        return dict(sorted(Counter(k.does.split()[0] for k in program.kernels).items()))

    def missing_kernels(self, model: ir.Model, kernels: Mapping[str, int]) -> tuple[str, ...]:
        """Return nothing: a linear group has an integer kernel, or lowering refuses it."""
        del model, kernels
        return ()

    def _lower(self, model: ir.Model, device: Device) -> _Lowered:
        key = id(model), device.name
        if key not in self._lowered:
            if find_spec("tvm") is None:
                raise EdgeqError(f"--target {self.name()} needs TVM: pip install 'edgeq[tvm]'")
            from edgeq.tvm.codegen import compile_kernels
            from edgeq.tvm.dot import ISAS
            from edgeq.tvm.lower import lower
            from edgeq.tvm.static_model import feeds_of_zeros, fix_sizes

            static = fix_sizes(model, feeds_of_zeros(model))
            program = lower(static, ISAS[device.isa])
            kernels = compile_kernels(program.kernels, device.target)
            self._lowered[key] = _Lowered(model, program, kernels)
        return self._lowered[key]

    def _sources(
        self, model: ir.Model, device: Device, golden: Sequence[GoldenRun]
    ) -> Mapping[str, bytes]:
        from edgeq.tvm.sources import GoldenRun as Run
        from edgeq.tvm.sources import make_sources

        lowered = self._lower(model, device)
        program = lowered.program
        runs = [
            Run(
                tuple(run.inputs[t.name] for t in program.inputs),
                tuple(run.outputs[t.name] for t in program.outputs),
                tuple(run.taps[t.name] for t in program.taps),
            )
            for run in golden
        ]
        codes = _codes(model)
        made = make_sources(program, device, lowered.kernels, runs, codes)
        return made.files

    def _load(self, model: ir.Model) -> "NativeRunner":
        from edgeq.tvm.model_source import model_source
        from edgeq.tvm.native_runner import NativeRunner

        host = self._host()
        lowered = self._lower(model, host)
        made = model_source(lowered.program, host, lowered.kernels, _codes(model))
        with tempfile.TemporaryDirectory() as name:  # what is loaded stays when its file goes
            folder = Path(name)
            for path, data in made.files.items():
                (folder / path).write_bytes(data)
            return NativeRunner(folder, host, lowered.program, folder)

    def _host(self) -> Device:
        """Return the device that this machine is; the target's own, if it is."""
        order = (self.device, *(DEVICES[n] for n in ("tvm-x86-64-vnni", "tvm-x86-64", "tvm-c")))
        for device in order:
            if device.is_native and not missing_tools(device):
                return device
        lacks = "; ".join(missing_tools(DEVICES["tvm-c"]))
        raise EdgeqError(f"to verify the code, this machine needs {lacks}")


def _codes(model: ir.Model) -> dict[str, Any]:
    """Return what the codes of inputs and outputs stand for."""
    from edgeq.tvm.sources import Codes

    found = {}
    for value in model.graph.inputs:
        for node, _ in value.uses():
            x = operand(node.outputs[0]) if node.op_type == "DequantizeLinear" else None
            if x is not None and x.codes is value and x.qparams.axis is None:
                found[str(value.name)] = Codes(float(x.qparams.scale), int(x.qparams.zero_point))
    for value in model.graph.outputs:
        maker = value.producer()
        y = None if maker is None else quantize_node(maker)
        if y is not None and y.qparams.axis is None:
            found[str(value.name)] = Codes(float(y.qparams.scale), int(y.qparams.zero_point))
    return found
