"""Arrays of `.npz` files, row by row: the same as numpy's, in little memory, and nothing else."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.lib import format as npy

from edgeq.errors import DataError
from edgeq.npz import NpzFile

DTYPES = ["?", "i1", "u1", "<i2", ">i4", "<i8", "<f2", "<f4", ">f4", "<f8"]


def write(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def record(array: np.ndarray | np.generic, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    npy.write_array(stream, np.asarray(array), version=version, allow_pickle=False)
    return stream.getvalue()


def header(text: str, version: int = 1, data: bytes = b"") -> bytes:
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + data


def read(path: Path, name: str = "x") -> list[np.ndarray]:
    with NpzFile(path) as file:
        return list(file.rows(name))


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4))
    ),
    st.booleans(),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_rows_are_numpys(tmp_path_factory, array, deflated, version):
    path = tmp_path_factory.getbasetemp() / "any.npz"
    compression = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
    write(path, {"x.npy": record(array, version)}, compression)
    rows = read(path)
    assert len(rows) == len(array)
    for index, row in enumerate(rows):
        assert row.dtype == array.dtype and row.shape == array.shape[1:]
        assert row.tobytes() == array[index : index + 1].tobytes()
    with NpzFile(path) as file:
        assert file.names == ("x",) and file.header("x").shape == array.shape


def test_several_arrays_are_read_side_by_side(tmp_path):
    x, y = np.arange(12.0).reshape(4, 3), np.arange(4)
    np.savez_compressed(tmp_path / "two.npz", x=x, y=y)
    with NpzFile(tmp_path / "two.npz") as file:
        pairs = list(zip(file.rows("x"), file.rows("y"), strict=True))
    assert [p[0].tobytes() for p in pairs] == [row.tobytes() for row in x]
    assert [int(p[1]) for p in pairs] == [0, 1, 2, 3]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_rows(tmp_path, save):
    generator = np.random.default_rng(0)
    peaks = []
    for rows in (8, 128):
        save(tmp_path / "x.npz", x=generator.integers(0, 256, (rows, 2**17), np.uint8))
        tracemalloc.start()
        with NpzFile(tmp_path / "x.npz") as file:
            count = sum(1 for _ in file.rows("x"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == rows
    assert peaks[1] < 1.1 * peaks[0] and peaks[1] < 8 * 2**17, peaks


FIELDS = "{'descr': %s, 'fortran_order': %s, 'shape': %s}"
ONE = record(np.ones((2, 3), np.float32))
BAD = [
    ("no array of that name", {"y.npy": ONE}, "no array 'x'.*it holds y"),
    ("nothing", {}, "no array 'x'; it holds none"),
    ("not an array", {"x": b"text"}, "'x' is no array"),
    ("no magic", {"x.npy": b"\x80\x04pickle of something"}, "no .npy header"),
    ("unknown version", {"x.npy": header("", 9)}, "no .npy header"),
    ("empty member", {"x.npy": b""}, "its header .the file ends early"),
    ("cut in the header", {"x.npy": ONE[:40]}, "its header .the file ends early"),
    ("cut in the data", {"x.npy": ONE[:-4]}, "takes 152 bytes.*the file has 148"),
    ("bytes too many", {"x.npy": ONE + b"1234"}, "the file has 156"),
    ("header too long", {"x.npy": header(" " * 20000, 2)}, "a header of 20000 bytes"),
    ("no literal", {"x.npy": header("import os")}, "broken header: 'import os'"),
    ("code", {"x.npy": header("__import__('os')")}, "broken header"),
    ("deep nesting", {"x.npy": header("(" * 9000)}, "broken header"),
    ("missing field", {"x.npy": header("{'descr': '<f4'}")}, "broken header"),
    ("no dict", {"x.npy": header("[1, 2]")}, "broken header"),
    ("no dtype", {"x.npy": header(FIELDS % ("'nonsense'", False, (2,)))}, "broken header"),
    ("shape a list", {"x.npy": header(FIELDS % ("'<f4'", False, [2]))}, r"shape \[2\]"),
    ("shape of bool", {"x.npy": header(FIELDS % ("'<f4'", False, (True,)))}, "shape"),
    ("negative", {"x.npy": header(FIELDS % ("'<f4'", False, (-1,)))}, r"shape \(-1,\)"),
    ("huge", {"x.npy": header(FIELDS % ("'<f4'", False, (2**70,)))}, "the file has"),
    ("huge row", {"x.npy": header(FIELDS % ("'<f4'", False, (1, 2**40)))}, "over 2 GiB"),
    ("objects", {"x.npy": header(FIELDS % ("'|O'", False, (2,)))}, "x.npz: array 'x' .*pickled"),
    ("records", {"x.npy": header(FIELDS % ("[('a', '<f4')]", False, (2,)))}, "give booleans"),
    ("text", {"x.npy": record(np.array(["a", "b"]))}, "is <U1; give booleans"),
    ("complex", {"x.npy": record(np.ones(2, np.complex64))}, "is complex64"),
    ("times", {"x.npy": record(np.zeros(2, "M8[s]"))}, r"is datetime64\[s\]"),
    ("scalar", {"x.npy": record(np.float32(1))}, "single number; the first axis"),
    ("Fortran", {"x.npy": record(np.asfortranarray(np.ones((2, 3))))}, "ascontiguousarray"),
]  # fmt: skip


@pytest.mark.parametrize(("members", "complaint"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_cannot_be_read_is_refused(tmp_path, members, complaint):
    path = write(tmp_path / "x.npz", members)
    with pytest.raises(DataError, match=complaint) as error:
        read(path)
    assert str(path) in str(error.value)


def test_pickles_are_never_opened(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.array([{"a": 1}, None], object))
    with pytest.raises(DataError, match="pickled objects, which are never read"):
        read(tmp_path / "x.npz")


def test_one_axis_has_no_order(tmp_path):
    text = FIELDS % ("'<i2'", True, (3,))
    write(tmp_path / "x.npz", {"x.npy": header(text, data=np.arange(3, dtype="<i2").tobytes())})
    assert [int(row) for row in read(tmp_path / "x.npz")] == [0, 1, 2]


def test_two_members_of_one_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x", b"")
        archive.writestr("x.npy", ONE)
    with pytest.raises(DataError, match="two arrays named 'x'"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (None, "no such file"),
        (b"", "cannot be read as .npz"),
        (b"\x93NUMPY and more", "cannot be read as .npz .*numpy.savez"),
        (b"PK\x03\x04 cut", "cannot be read as .npz"),
    ],
)
def test_files_that_are_no_zip(tmp_path, data, complaint):
    path = tmp_path / "x.npz"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=complaint):
        read(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read as .npz \(.*directory"):
        read(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_flipped_byte_of_the_data_is_found(tmp_path, save):
    array = np.arange(64, dtype=np.uint8).reshape(4, 16)
    save(tmp_path / "x.npz", x=array)
    whole = (tmp_path / "x.npz").read_bytes()
    found = 0
    for place in range(len(whole)):
        (tmp_path / "bad.npz").write_bytes(
            whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]
        )
        try:
            rows = read(tmp_path / "bad.npz")
        except DataError:
            found += 1
        else:  # a byte that zip files do not use: a date, a permission
            assert np.stack(rows).tobytes() == array.tobytes()
    assert found > 120


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_cut_is_found(tmp_path, save):
    save(tmp_path / "x.npz", x=np.arange(64, dtype=np.uint8).reshape(4, 16))
    whole = (tmp_path / "x.npz").read_bytes()
    for size in range(len(whole)):
        (tmp_path / "bad.npz").write_bytes(whole[:size])
        with pytest.raises(DataError):
            read(tmp_path / "bad.npz")
