"""Golden vectors: inputs, the simulator's outputs, and a digest of every quantized tensor.

Written as `.npz` without pickle, uncompressed, with fixed timestamps: the same arrays are the same
bytes. `inputs.npz` is calibration data in form: arrays named as the inputs, sample axis first.
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgeq.check_bits import digest
from edgeq.errors import BundleError
from edgeq.manifest import TapInfo
from edgeq.targeting import GoldenRun

Arrays = Mapping[str, NDArray[Any]]
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip archive can hold
BYTES = 2**23  # of inputs and outputs; a bundle stays small, and its check quick


class GoldenVectors:
    """Collects golden runs; holds inputs and outputs, and of the taps their digests only."""

    def __init__(self, taps: Sequence[str], *, limit: int = BYTES) -> None:
        self._taps = tuple(taps)
        self._limit = limit
        self._inputs: list[dict[str, NDArray[Any]]] = []
        self._outputs: list[dict[str, NDArray[Any]]] = []
        self._digests: list[list[bytes]] = []
        self._dtypes: dict[str, str] = {}
        self._size = 0

    @property
    def feeds(self) -> int:
        """Number of runs kept."""
        return len(self._inputs)

    @property
    def scalars(self) -> tuple[str, ...]:
        """Names of the inputs and outputs without any axis."""
        run = {**self._inputs[0], **self._outputs[0]} if self._inputs else {}
        return tuple(sorted(name for name, array in run.items() if array.ndim == 0))

    @property
    def taps(self) -> tuple[TapInfo, ...]:
        """The tapped tensors, in the order given."""
        return tuple(TapInfo(name, self._dtypes[name]) for name in self._taps)

    def add(self, feeds: Arrays, outputs: Arrays, taps: Arrays, *, share: float = 1.0) -> bool:
        """Keep a run, unless it is one too many or its shapes are not those of the first.

        Args:
            feeds: Inputs of the model.
            outputs: The simulator's outputs, by name, in the model's order.
            taps: The simulator's quantized tensors; may hold more than those asked for.
            share: How much of the limit this and all earlier runs may take: samples leave room
                for the inputs that hunt ties, which tell most on another CPU.

        Returns:
            Whether the run was kept.
        """
        size = sum(array.nbytes for array in (*feeds.values(), *outputs.values()))
        if self._inputs and self._size + size > share * self._limit:
            return False
        if self._inputs and _shapes(self._inputs[0], self._outputs[0]) != _shapes(feeds, outputs):
            return False
        # onnxruntime has no numpy array for E5M2, so no device could compare it.
        self._taps = tuple(n for n in self._taps if taps[n].dtype.name != "float8_e5m2")
        self._inputs.append({name: np.array(array) for name, array in feeds.items()})
        self._outputs.append({name: np.array(array) for name, array in outputs.items()})
        self._digests.append([digest(_plain(taps[name])) for name in self._taps])
        self._dtypes = {name: taps[name].dtype.name for name in self._taps}
        self._size += size
        return True

    def runs(self) -> list[GoldenRun]:
        """Return every run kept."""
        kept = zip(self._inputs, self._outputs, self._digests, strict=True)
        return [
            GoldenRun(inputs, outputs, dict(zip(self._taps, digests, strict=True)))
            for inputs, outputs, digests in kept
        ]

    def files(self) -> dict[str, bytes]:
        """Return the files of the bundle's `golden/`, by path.

        Raises:
            BundleError: No run was kept.
        """
        if not self._inputs:
            raise BundleError("a bundle needs golden vectors: give at least one sample")
        table = np.frombuffer(b"".join(b"".join(run) for run in self._digests), np.uint8)
        digests = table.reshape(self.feeds, len(self._taps), 32).transpose(1, 0, 2)
        names = np.array(self._taps, np.str_) if self._taps else np.zeros(0, "<U1")
        return {
            "golden/inputs.npz": npz_bytes(_join(self._inputs)),
            "golden/outputs.npz": npz_bytes(_join(self._outputs)),
            "golden/taps.npz": npz_bytes({"names": names, "digests": digests}),
        }


def npz_bytes(arrays: Arrays) -> bytes:
    """Return an `.npz` that is the same for the same arrays; 8-bit floats are their bytes in it.

    Raises:
        BundleError: An array needs pickle.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise BundleError(f"array {name!r} holds Python objects: it would need pickle")
            member, plain = io.BytesIO(), _plain(array)
            npy.write_array(
                member, np.ascontiguousarray(plain).reshape(plain.shape), version=(1, 0)
            )
            info = zipfile.ZipInfo(f"{name}.npy", EPOCH)
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return 8-bit floats as the bytes that ONNX Runtime gives; numpy alone does not know them."""
    return array.view(np.uint8) if array.dtype.name.startswith("float8") else array


def _shapes(*runs: Arrays) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, array.shape) for run in runs for name, array in run.items()]


def _join(runs: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([np.atleast_1d(run[name]) for run in runs]) for name in runs[0]}
