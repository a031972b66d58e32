"""Finished work on disk, found again by its content: an interrupted command goes on from there.

A result is kept as `OUTPUT.unfinished/<sha256 of what it was made from>.npz`. Other inputs have
another digest, so nothing stale is ever found; a file that cannot be read is as good as none, and
is written anew.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import BundleError, EdgeqError

Array = NDArray[Any]
Arrays = Mapping[str, Array]

_KINDS = "biufcUS"  # what .npy holds without a pickle
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def digest(words: tuple[str, ...], arrays: Arrays) -> str:
    """Return the sha256 of words and of arrays: names, dtypes, shapes and bytes, by name.

    Raises:
        TypeError: An array holds neither numbers nor text.
    """
    found = hashlib.sha256(repr(words).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        _check(name, array)
        found.update(f"{name!r} {array.dtype.str} {array.shape};".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def unfinished_folder(destination: Path) -> Path:
    """Return where finished work lies until the bundle `destination` is whole."""
    return destination.with_name(f"{destination.name}.unfinished")


class Checkpoint:
    """A folder of results; made when the first one is kept.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Look at `path`, which need not be there."""
        self.path = Path(path)

    def load(self, key: str) -> dict[str, Array] | None:
        """Return the arrays kept as `key`; None if there are none, or they are damaged."""
        try:
            with zipfile.ZipFile(self._file(key)) as archive:
                return {
                    name.removesuffix(".npy"): _read(archive, name) for name in archive.namelist()
                }
        except _BROKEN:
            return None

    def save(self, key: str, arrays: Arrays) -> None:
        """Keep `arrays` as `key`, whole or not at all.

        Args:
            key: From `digest`.
            arrays: Of numpy's own dtypes: numbers or text.

        Raises:
            BundleError: The folder cannot be written to.
            TypeError: An array holds neither numbers nor text.
        """
        for name, array in arrays.items():
            _check(name, array)
        file = self._file(key)
        partial = file.with_suffix(f".partial-{os.getpid()}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(partial, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            partial.replace(file)
        except OSError as error:
            raise BundleError(
                f"{self.path}: finished work cannot be kept there ({error.strerror or error})"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    @property
    def holds_work(self) -> bool:
        """Whether anything is kept."""
        return self.path.is_dir() and any(self.path.glob("*.npz"))

    def remove(self) -> None:
        """Forget everything: the bundle is whole."""
        if not self.path.is_dir():
            return
        for file in (*self.path.glob("*.npz"), *self.path.glob("*.partial-*")):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # it holds something that is not ours
            self.path.rmdir()

    def _file(self, key: str) -> Path:
        return self.path / f"{key}.npz"


@contextmanager
def kept_until_whole(destination: str | os.PathLike[str] | None) -> Iterator[Checkpoint | None]:
    """Give the checkpoint of a bundle; it goes when the block ends well, and stays otherwise.

    Args:
        destination: The bundle's folder; None: nothing is kept.

    Raises:
        KeyboardInterrupt: As it came; where finished work is kept, with a text that says so.
        EdgeqError: The same.
    """
    if destination is None:
        yield None
        return
    checkpoint = Checkpoint(unfinished_folder(Path(destination)))
    try:
        yield checkpoint
    except KeyboardInterrupt:
        if not checkpoint.holds_work:
            raise
        text = f"what is finished is kept in {checkpoint.path}: the same command goes on from there"
        raise KeyboardInterrupt(text) from None
    except EdgeqError as error:
        if checkpoint.holds_work:
            text = f"{error} (what is finished is kept in {checkpoint.path} for the next run)"
            error.args = (text, *error.args[1:])
        raise
    checkpoint.remove()


def _read(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(name) as member:
        return np.asarray(np.lib.format.read_array(member, allow_pickle=False))


def _check(name: str, array: Array) -> None:
    if np.asarray(array).dtype.kind not in _KINDS:
        raise TypeError(f"{name!r} is {array.dtype}: give numbers or text of numpy's own types")
