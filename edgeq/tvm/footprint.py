"""How much flash and RAM a compiled model takes, by section, as the linker lays it out."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeq.errors import BundleError
from edgeq.tvm.devices import Device
from edgeq.tvm.toolchain import build

_SECTION = re.compile(r"^\.(text|rodata|data|bss|ARM\.ex)\S*\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model, without the application around it.

    Attributes:
        code: Instructions, and the functions of the C library that they call on bare metal.
        constants: Weights, and tables of the compiler.
        static: RAM that is taken all the time; the workspace is the application's.
    """

    code: int
    constants: int
    static: int

    @property
    def flash(self) -> int:
        """What lies in read-only memory."""
        return self.code + self.constants


def footprint(files: Mapping[str, bytes], device: Device) -> Footprint:
    """Build the model from a bundle's files and measure it.

    Raises:
        EdgeqError: A tool is missing; the message names its package.
        BundleError: The compiler refuses the sources.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, data in files.items():
            (folder / path).write_bytes(data)
        into = folder / "build"
        into.mkdir()
        if device.platform == "wasm":
            module = build(folder, device, into, goal="edgeq_model")
            return Footprint(module.stat().st_size, 0, 0)
        goal = "model.elf" if device.platform == "semihosting" else "libedgeq_model.a"
        return _sections(build(folder, device, into, goal=goal), device)


def _sections(path: Path, device: Device) -> Footprint:
    command = [device.compiler.removesuffix("gcc") + "size", "-A", str(path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise BundleError(f"{' '.join(command)}: {listed.stderr}")
    found = dict.fromkeys(("text", "rodata", "data", "bss", "ARM.ex"), 0)
    for match in _SECTION.finditer(listed.stdout):
        found[match[1]] += int(match[2])
    return Footprint(
        code=found["text"] + found["ARM.ex"],
        constants=found["rodata"],
        static=found["data"] + found["bss"],
    )
