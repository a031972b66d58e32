"""Accuracy of a bundle on a device, over labelled data read in a stream.

Part of a bundle's `check.py`: numpy and standard library. The metrics are those of edgeq's host
side: top1 in percent, nll in nats per label, perplexity (its exponential), psnr in dB with a peak
of 1, mse. `sqnr` needs the float model, which a bundle does not hold. Labels of classes that are
`IGNORED` do not count.
"""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from edgeq.check_folder import Arrays, CheckError, sha256_of
from edgeq.check_session import Session, run_model

METRICS = ("top1", "nll", "perplexity", "psnr", "mse")
IGNORED = -100
BATCH = 16  # samples per run where the model's batch is symbolic


def accuracy(
    session: Session, manifest: Mapping[str, Any], path: Path, metric: str
) -> dict[str, float]:
    """Return the metric of `path` here, and the host's as `METRIC_host` where it is known.

    Raises:
        CheckError: The metric is unknown, or the data do not fit.
    """
    if metric not in METRICS:
        raise CheckError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    inputs = {item["name"]: item for item in manifest["inputs"]}
    output = manifest["outputs"][0]
    total, count = 0.0, 0
    for arrays in _batches(path, inputs, manifest["max_dim"]):
        label = arrays.pop("label")
        value = run_model(session, [output["name"]], arrays)[0]
        if output.get("scale") is not None and value.dtype.kind in "iu":
            value = (value.astype(np.float32) - output["zero_point"]) * np.float32(output["scale"])
        part, size = _SCORES[metric](value.astype(np.float64), label)
        total, count = total + part, count + size
    if count == 0:
        raise CheckError(f"{path}: holds no samples")
    with np.errstate(over="ignore"):
        mean = float(np.exp(total / count)) if metric == "perplexity" else total / count
    figures = {metric: mean}
    if metric in manifest.get("metrics", {}):
        figures[f"{metric}_host"] = float(manifest["metrics"][metric])
    return figures


def same_data(manifest: Mapping[str, Any], path: Path) -> bool | None:
    """Return whether the host's figures are of this very file; None where that is not known."""
    digest = manifest.get("evaluation_digest")
    return None if digest is None else bool(sha256_of(path) == digest)


def _top1(value: NDArray[Any], label: NDArray[Any]) -> tuple[float, int]:
    value, label = _counted(value, label)
    return 100.0 * int((value.argmax(-1) == label).sum()), label.size


def _nll(value: NDArray[Any], label: NDArray[Any]) -> tuple[float, int]:
    value, label = _counted(value, label)
    value = value - value.max(-1, keepdims=True)
    logp = value - np.log(np.exp(value).sum(-1, keepdims=True))
    return -float(np.take_along_axis(logp, label[..., None], -1).sum()), label.size


def _counted(
    value: NDArray[Any], label: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the logits and the classes of the labels that count."""
    if value.shape[:-1] != label.shape or label.dtype.kind not in "iu":
        raise CheckError(f"labels are {label.dtype} {label.shape}, logits {value.shape}")
    counts, classes = label != IGNORED, value.shape[-1]
    value, label = value[counts], label[counts]
    if label.size and not 0 <= int(label.min()) <= int(label.max()) < classes:
        raise CheckError(f"labels go beyond {classes} classes")
    return value, label.astype(np.int64)


def _psnr(value: NDArray[Any], label: NDArray[Any]) -> tuple[float, int]:
    error = _squares(np.clip(value, 0, 1), label)
    means = np.maximum(error.reshape(len(error), -1).mean(1), 1e-30)
    return float((10 * np.log10(1 / means)).sum()), len(error)


def _mse(value: NDArray[Any], label: NDArray[Any]) -> tuple[float, int]:
    return float(_squares(value, label).sum()), label.size


def _squares(value: NDArray[Any], label: NDArray[Any]) -> NDArray[np.float64]:
    if value.shape != label.shape:
        raise CheckError(f"labels have shape {label.shape}, outputs {value.shape}")
    return np.asarray(np.square(value - label.astype(np.float64)), np.float64)


_SCORES = {"top1": _top1, "nll": _nll, "perplexity": _nll, "psnr": _psnr, "mse": _mse}


def _batches(path: Path, inputs: Mapping[str, Any], max_dim: int) -> Iterator[Arrays]:
    """Yield the inputs and `label`, a batch at a time, never a whole member."""
    fixed = {item["shape"][0] for item in inputs.values() if item["shape"]}
    sizes = [size for size in fixed if isinstance(size, int)]
    batch = sizes[0] if sizes else BATCH
    try:
        with zipfile.ZipFile(path) as archive:
            readers = {name: _Member(path, archive, name) for name in (*inputs, "label")}
            for name, item in inputs.items():
                if readers[name].dtype != np.dtype(item["dtype"]):
                    found = readers[name].dtype
                    raise CheckError(
                        f"{path}: {name!r} is {found}, the bundle takes {item['dtype']}"
                    )
                _check_open(path, item, readers[name].shape, max_dim)
            counts = {name: reader.shape[0] for name, reader in readers.items()}
            if len(set(counts.values())) != 1:
                raise CheckError(f"{path}: arrays of different lengths: {counts}")
            for start in range(0, counts["label"], batch):
                rows = min(batch, counts["label"] - start)
                if sizes and rows < batch:
                    return  # the model takes whole batches only
                yield {name: reader.read(rows) for name, reader in readers.items()}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckError(f"{path}: cannot be read as .npz without pickle: {error}") from error


def _check_open(path: Path, item: Mapping[str, Any], found: tuple[int, ...], max_dim: int) -> None:
    """Refuse dimensions that the model leaves open beyond those that its bits are proven for."""
    for size, fixed in zip(found[1:], (item["shape"] or [])[1:], strict=False):
        if not isinstance(fixed, int) and size > max_dim:
            raise CheckError(
                f"{path}: {item['name']!r} has a dimension of {size}; the bits of this bundle are"
                f" proven up to {max_dim}: compile it again with --max-dim {size}"
            )


class _Member:
    """One array of an `.npz`, read some rows at a time."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, name: str) -> None:
        if f"{name}.npy" not in archive.namelist():
            raise CheckError(f"{path}: no array {name!r}; it holds {', '.join(archive.namelist())}")
        self._file: IO[bytes] = archive.open(f"{name}.npy")
        version = npy.read_magic(self._file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self.shape, fortran, self.dtype = read(self._file)
        if self.dtype.hasobject:
            raise CheckError(f"{path}: {name!r} holds pickled objects, which edgeq never reads")
        if (fortran and len(self.shape) > 1) or not self.shape:
            raise CheckError(f"{path}: {name!r} must be in C order, the sample axis first")

    def read(self, rows: int) -> NDArray[Any]:
        """Return the next `rows` rows."""
        shape = (rows, *self.shape[1:])
        size = int(np.prod(shape)) * self.dtype.itemsize
        data = self._file.read(size)
        if len(data) != size:
            raise EOFError("the array ends early")
        return np.frombuffer(data, self.dtype).reshape(shape)
