"""Read the arrays of an `.npz` row by row: memory for one row, however long the array.

`numpy.load` reads a whole member. Nothing is unpickled: an array of objects is refused. The header
of each array is held against the size of its member before the first row is read.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import ast
import math
import struct
import zipfile
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import DataError, suggest

SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 10_000  # bytes; numpy's own limit for files that are not trusted
_MAX_ROW = 2**31  # bytes; more than any runtime takes in one tensor
_KINDS = "biuf"
# What zipfile and zlib raise on bytes that are not what they say; RuntimeError: encrypted,
# NotImplementedError: a compression that this Python does not have.
_BROKEN = (
    OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What an array's header says.

    Attributes:
        dtype: Of the elements: bool, integer or float, of any byte order.
        shape: The sample axis first.
        size: Bytes of the header itself.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    size: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class NpzFile:
    """An open `.npz`; a context manager.

    Attributes:
        path: Where it lies.
        names: The arrays, in the order of the file.
    """

    def __init__(self, path: Path) -> None:
        """Open `path` and read its directory.

        Raises:
            DataError: It is no zip file, or cannot be read.
        """
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except _BROKEN as error:
            raise DataError(
                f"{path}: cannot be read as .npz ({_reason(error)}); write it with numpy.savez"
            ) from error
        members = [info.filename for info in self._zip.infolist()]
        self.names = tuple(name.removesuffix(SUFFIX) for name in members)
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            self.close()
            raise DataError(f"{path}: holds two arrays named {twice!r}; write it anew")

    def __enter__(self) -> "NpzFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; rows can no longer be read."""
        self._zip.close()

    def header(self, name: str) -> Header:
        """Return what the header of the array `name` says, held against the member's size.

        Raises:
            DataError: There is no such array, or it cannot be read row by row.
        """
        with self._open(name) as stream:
            return self._header(name, stream)

    def rows(self, name: str) -> Generator[NDArray[Any], None, None]:
        """Yield the rows of the array `name`, shape `header.shape[1:]`; read-only.

        Raises:
            DataError: There is no such array, or its bytes are broken.
        """
        with self._open(name) as stream:
            header = self._header(name, stream)
            for index in range(header.shape[0]):
                data = self._read(name, stream, header.row_bytes, f"sample {index}")
                yield np.frombuffer(data, header.dtype).reshape(header.shape[1:])

    def _open(self, name: str) -> IO[bytes]:
        if name not in self.names:
            raise DataError(
                f"{self.path}: no array {name!r}{suggest(name, list(self.names))};"
                f" it holds {', '.join(self.names) or 'none'}"
            )
        member = name + SUFFIX
        if member not in self._zip.NameToInfo:
            raise DataError(f"{self.path}: {name!r} is no array; write the file with numpy.savez")
        try:
            return self._zip.open(member)
        except _BROKEN as error:
            raise self._broken(name, "its start", error) from error

    def _header(self, name: str, stream: IO[bytes]) -> Header:
        where = f"{self.path}: array {name!r}"
        start = self._read(name, stream, len(_MAGIC) + 2, "its header")
        if start[:-2] != _MAGIC or start[-2] not in (1, 2, 3):
            raise DataError(f"{where} has no .npy header; write the file with numpy.savez")
        layout = "<H" if start[-2] == 1 else "<I"
        (length,) = struct.unpack(
            layout, self._read(name, stream, struct.calcsize(layout), "its header")
        )
        if length > _MAX_HEADER:
            raise DataError(f"{where}: a header of {length} bytes is none of an array of numbers")
        text = self._read(name, stream, length, "its header").decode("utf-8", "replace")
        size = len(start) + struct.calcsize(layout) + length
        header = parse_header(text, size, where)
        expected = size + header.row_bytes * header.shape[0]
        found = self._zip.getinfo(name + SUFFIX).file_size
        if expected != found:
            raise DataError(
                f"{where}: {header.dtype} of shape {list(header.shape)} takes {expected} bytes with"
                f" its header, the file has {found}; it is damaged, write it anew"
            )
        return header

    def _read(self, name: str, stream: IO[bytes], size: int, where: str) -> bytes:
        """Read exactly `size` bytes; zipfile compares the checksum with the member's last byte."""
        try:
            data = stream.read(size)
            if len(data) != size:
                raise EOFError("the file ends early")
        except _BROKEN as error:
            raise self._broken(name, where, error) from error
        return data

    def _broken(self, name: str, where: str, error: Exception) -> DataError:
        return DataError(
            f"{self.path}: array {name!r} cannot be read at {where} ({_reason(error)});"
            " write the file anew"
        )


def parse_header(text: str, size: int, where: str) -> Header:
    """Return what the text of a `.npy` header says.

    Args:
        text: A Python literal: `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
        size: Bytes of the header.
        where: File and array, for messages.

    Raises:
        DataError: It is not valid, or no array of numbers in C order with a first axis.
    """
    try:
        fields = ast.literal_eval(text.strip())
        descr, fortran, shape = (fields[key] for key in ("descr", "fortran_order", "shape"))
        dtype = np.dtype(descr)
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{where} has a broken header: {text.strip()[:80]!r}") from error
    if dtype.hasobject:
        raise DataError(
            f"{where} holds pickled objects, which are never read; convert it to an array of"
            " numbers (rows of different shapes: one file each, in a folder)"
        )
    if dtype.kind not in _KINDS or dtype.subdtype is not None:
        raise DataError(f"{where} is {dtype}; give booleans, integers or floats")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise DataError(f"{where} has a broken header: shape {shape!r}")
    if not shape:
        raise DataError(f"{where} is a single number; the first axis must be that of the samples")
    if fortran and len(shape) > 1:
        raise DataError(
            f"{where} is in Fortran order, which cannot be read sample by sample; save"
            " numpy.ascontiguousarray(array)"
        )
    header = Header(dtype, shape, size)
    if header.row_bytes > _MAX_ROW:
        raise DataError(f"{where}: one sample of shape {list(shape[1:])} is over 2 GiB")
    return header


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
