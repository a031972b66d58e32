"""A bundle's folder as found on a device: manifest, digests and golden vectors.

Nothing that the manifest says is trusted: paths that leave the folder are refused, sizes are
bounded, arrays are read without pickle. Part of a bundle's `check.py`: numpy and standard library.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 2
OLDEST_VERSION = 1  # its manifests hold no digest of themselves
UNSEALED = "0" * 64  # where a manifest's own sha256 stands, while it is computed
MANIFEST_LIMIT = 2**26  # bytes; refuse to parse anything longer
ARRAYS_LIMIT = 2**32  # bytes of one .npz, unpacked
FEEDS_LIMIT = 2**16
Arrays = dict[str, NDArray[Any]]


class CheckError(Exception):
    """The check could not be made; the message says why and what to do."""

    exit_status = 2


class MismatchError(CheckError):
    """A bit, a file or a figure is not what the manifest says."""

    exit_status = 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle, its keys and paths checked.

    Raises:
        CheckError: It is missing, too long, not JSON, of another schema, or names a path outside.
    """
    path = inside(folder, "manifest.json")
    if not path.is_file():
        raise CheckError(f"{folder}: not a bundle: it has no manifest.json")
    if path.stat().st_size > MANIFEST_LIMIT:
        raise CheckError(f"{path}: longer than {MANIFEST_LIMIT} bytes")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise CheckError(f"{path}: not a manifest: it has no schema_version")
    _check_version(path, manifest.get("schema_version"))
    kinds = {"artifact": str, "target": str, "files": dict, "session_options": dict}
    kinds |= {"inputs": list, "outputs": list, "versions": dict, "golden": dict, "runtime": dict}
    if manifest["schema_version"] > OLDEST_VERSION:
        kinds["sha256"] = str
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise CheckError(f"{path}: {key!r} is missing or not a {kind.__name__}")
    for name in manifest["files"]:
        inside(folder, name)
    if manifest["artifact"] not in manifest["files"]:
        raise CheckError(f"{path}: the artifact {manifest['artifact']!r} has no digest")
    return manifest


def _check_version(path: Path, version: object) -> None:
    known = f"{OLDEST_VERSION} to {SCHEMA_VERSION}"
    if type(version) is not int or version < OLDEST_VERSION:
        raise CheckError(f"{path}: not a manifest: its schema_version is {version!r}, not {known}")
    if version > SCHEMA_VERSION:
        raise CheckError(
            f"{path}: schema_version {version} is newer than those that this check reads, {known}:"
            " use the edgeq that wrote it, or a newer one"
        )


def seal(text: str) -> str:
    """Return the text of a manifest with its own sha256 in place of the last `UNSEALED` in it."""
    head, found, tail = text.rpartition(UNSEALED)
    assert found, "the text has no place for the digest"
    return head + hashlib.sha256(text.encode()).hexdigest() + tail


def _is_sealed(path: Path, digest: str) -> bool:
    """Whether a manifest is, to the bit, the one that was sealed with `digest`."""
    if len(digest) != len(UNSEALED) or not digest.isascii():
        return False
    head, _, tail = path.read_bytes().rpartition(digest.encode())
    return hashlib.sha256(head + UNSEALED.encode() + tail).hexdigest() == digest


def inside(folder: Path, name: str) -> Path:
    """Return the path of a bundle's file.

    Raises:
        CheckError: The path leaves the folder, by its text or by a link.
    """
    pure = PurePosixPath(name)
    plain = bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts
    if not plain or "\\" in name or ":" in name or "\0" in name:
        raise CheckError(f"{folder}: the manifest names {name!r}, which leaves the bundle")
    path = folder.joinpath(*pure.parts)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckError(f"{folder}: {name!r} is a link that leaves the bundle")
    return path


def altered_files(folder: Path, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files that are missing, or whose sha256 is another; the manifest is one of them.

    Manifests of the oldest schema have no digest, and are taken as they are.
    """
    altered = []
    if manifest["schema_version"] > OLDEST_VERSION:
        path = inside(folder, "manifest.json")
        altered += [] if _is_sealed(path, manifest["sha256"]) else [path.name]
    for name, digest in sorted(manifest["files"].items()):
        path = inside(folder, name)
        if not path.is_file() or sha256_of(path) != digest:
            altered.append(name)
    return tuple(altered)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


def read_arrays(path: Path) -> Arrays:
    """Return the arrays of an `.npz`.

    Raises:
        CheckError: Not an `.npz`, pickled, or unreasonably large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > ARRAYS_LIMIT:
                raise CheckError(f"{path}: unpacks to more than {ARRAYS_LIMIT} bytes")
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise CheckError(f"{path}: cannot be read as .npz without pickle: {error}") from error


def golden(folder: Path, manifest: Mapping[str, Any], name: str) -> list[Arrays]:
    """Return golden `inputs` or `outputs`, one dictionary per run of the model.

    The arrays of the runs lie behind each other on the first axis; those of `golden.scalars` have
    no axis of their own and are stacked.

    Raises:
        CheckError: There are none, or they do not split into the runs.
    """
    count = manifest["golden"].get("feeds", 0)
    if not isinstance(count, int) or not 0 < count <= FEEDS_LIMIT:
        raise CheckError(f"{folder}: {count!r} golden runs: nothing can be compared")
    scalars = manifest["golden"].get("scalars", [])
    runs: list[Arrays] = [{} for _ in range(count)]
    for key, array in read_arrays(inside(folder, f"golden/{name}.npz")).items():
        if array.ndim == 0 or len(array) % count:
            raise CheckError(f"{folder}: golden/{name}.npz: {key!r} does not hold {count} runs")
        for run, part in zip(runs, np.split(array, count), strict=True):
            run[key] = np.asarray(part[0]) if key in scalars else part
    return runs
