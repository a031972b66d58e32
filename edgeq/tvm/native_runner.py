"""Run a bundle's generated code in this process: thousands of samples at the speed of the device.

The C is built as a shared library with taps; each tap copies its tensor out.
"""

import ctypes
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import BundleError, DataError, EdgeqError
from edgeq.tvm.devices import Device
from edgeq.tvm.memory_plan import plan
from edgeq.tvm.program import Program, Tensor
from edgeq.tvm.toolchain import missing_tools

_TAPS = """\
#include <stddef.h>
void (*edgeq_tap_callback)(int index, const void *data) = NULL;
void edgeq_tap(int index, const void *data);
void edgeq_tap(int index, const void *data) {
  if (edgeq_tap_callback != NULL) edgeq_tap_callback(index, data);
}
"""
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)


class NativeRunner:
    """The generated code, loaded."""

    def __init__(self, folder: Path, device: Device, program: Program, into: Path) -> None:
        """Build the bundle in `folder` as a shared library in `into`, and load it.

        Raises:
            EdgeqError: The device is not this machine, or a tool is missing.
            BundleError: The compiler refuses the sources.
        """
        if not device.is_native:
            raise EdgeqError(f"{device.name} does not run in this process: use its check program")
        missing = missing_tools(device)
        if missing:
            raise EdgeqError(f"{device.name} needs what this machine has not: {'; '.join(missing)}")
        self._program = program
        self._library = ctypes.CDLL(str(_build(folder, device, into)))
        size = plan(program, device.alignment).size
        self._workspace = np.zeros(size + device.alignment, np.uint8)
        start = self._workspace.ctypes.data
        self._arena = start + -start % device.alignment
        self._index = {tap.name: index for index, tap in enumerate(program.taps)}

    def run(
        self, feeds: Mapping[str, NDArray[Any]], taps: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """Return every output, and the values in `taps`, by name.

        Args:
            feeds: Inputs by name, of the dtype and shape that the program has.
            taps: Names among those of `program.taps`.

        Raises:
            DataError: An input is missing, or has another dtype or shape.
        """
        inputs = [_input(tensor, feeds) for tensor in self._program.inputs]
        outputs = [np.empty(t.layout.shape, t.buffer.dtype) for t in self._program.outputs]
        found: dict[str, NDArray[Any]] = {}
        wanted = {self._index[name] for name in taps}

        def keep(index: int, data: int) -> None:
            if index in wanted:
                tensor = self._program.taps[index]
                raw = ctypes.string_at(data, tensor.buffer.size)
                flat = np.frombuffer(raw, tensor.buffer.dtype)
                found[tensor.name] = tensor.layout.from_memory(flat)

        callback = ctypes.c_void_p.in_dll(self._library, "edgeq_tap_callback")
        function = _CALLBACK(keep)
        callback.value = ctypes.cast(function, ctypes.c_void_p).value if taps else None
        status = self._library.edgeq_model_run(
            _pointers(inputs), _pointers(outputs), ctypes.c_void_p(self._arena)
        )
        callback.value = None
        assert status == 0, f"edgeq_model_run returned {status}"
        by_name = {t.name: a for t, a in zip(self._program.outputs, outputs, strict=True)}
        return by_name | found

    def bound(self, feeds: Mapping[str, NDArray[Any]]) -> Callable[[], None]:
        """Return a function that runs the code on `feeds`, and nothing else.

        Raises:
            DataError: An input is missing, or has another dtype or shape.
        """
        inputs = [_input(tensor, feeds) for tensor in self._program.inputs]
        outputs = [np.empty(t.layout.shape, t.buffer.dtype) for t in self._program.outputs]
        arguments = _pointers(inputs), _pointers(outputs), ctypes.c_void_p(self._arena)
        call, held = self._library.edgeq_model_run, (inputs, outputs, self._workspace)

        def run() -> None:
            assert held  # pointers hold nothing: this memory lives as long as the function
            call(*arguments)

        return run


def _build(folder: Path, device: Device, into: Path) -> Path:
    library, taps = into / "edgeq_model.so", into / "taps.c"
    taps.write_text(_TAPS)
    kernels = "kernels.c" if device.is_source else "kernels.o"
    sources = [str(folder / name) for name in ("edgeq_model.c", "edgeq_weights.c", kernels)]
    flags = [*device.cflags, "-shared", "-fPIC", "-DEDGEQ_TAPS"]
    command = [device.compiler, *flags, *sources, str(taps), "-o", str(library), "-lm"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise BundleError(f"{folder}: cannot build for {device.name}:\n{made.stderr}")
    return library


def _input(tensor: Tensor, feeds: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if tensor.name not in feeds:
        raise DataError(f"input {tensor.name!r} is missing")
    array, shape = np.ascontiguousarray(feeds[tensor.name]), tensor.layout.shape
    if array.dtype.name != tensor.buffer.dtype or feeds[tensor.name].shape != shape:
        raise DataError(
            f"input {tensor.name!r} is {array.dtype.name}{list(array.shape)}: the model takes"
            f" {tensor.buffer.dtype}{list(shape)}"
        )
    return array


def _pointers(arrays: Sequence[NDArray[Any]]) -> Any:  # noqa: ANN401  # an array type of ctypes
    return (ctypes.c_void_p * (len(arrays) + 1))(*(array.ctypes.data for array in arrays))
