"""Samples that do not fit: each mistake is a message with the file, the array, what to do."""

import sys
from pathlib import Path

import numpy as np
import pytest

from edgeq.data import InputSpec, open_samples
from edgeq.errors import DataError

F4, U1, I8 = (np.dtype(name) for name in ("float32", "uint8", "int64"))
X = InputSpec("x", F4, (None, 2, 3))
FRAME = InputSpec("x", U1, (None, 2, 3))
IDS = InputSpec("ids", I8, (None, 4))
XS = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
LABELS = np.arange(6)


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, feeds):
        self._feeds = iter(feeds)

    def get_next(self):
        return next(self._feeds, None)


def npz(folder: Path, name: str = "x.npz", **arrays) -> Path:
    np.savez(folder / name, **arrays)
    return folder / name


def module(path: Path, monkeypatch, text: str) -> str:
    """Write a module in the current folder; return its name."""
    name = f"user_{path.name.replace('-', '_')}"
    (path / f"{name}.py").write_text(text)
    monkeypatch.chdir(path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


BAD_ARRAYS = [
    ("unknown name", {"xx": XS}, "x.npz: array 'xx' is no input.*did you mean 'x'.*inputs: x"),
    ("missing input", {"label": LABELS}, "x.npz: no array for the input 'x'; it holds label"),
    ("nothing at all", {}, "no array for the input 'x'; it holds none"),
    ("integers", {"x": XS.astype(int)}, "'x' is int64, the input takes float32.*--input-type x="),
    ("bytes", {"x": XS.astype(np.uint8)}, "'x' is uint8, the input takes float32.*--input-type"),
    ("bools", {"x": XS > 0}, "'x' is bool"),
    ("complex", {"x": XS.astype(complex)}, "'x' is complex128"),
    ("text", {"x": XS.astype(str)}, "'x' is <U32; give"),
    ("objects", {"x": XS.astype(object)}, "x.npz: array 'x' holds pickled objects"),
    ("rank", {"x": XS[..., None]}, r"'x' has shape \[6, 2, 3, 1\], the input \[\?, 2, 3\]"),
    ("dimension", {"x": XS[:, :, :2]}, r"shape \[6, 2, 2\], the input \[\?, 2, 3\]"),
    ("no sample axis", {"x": XS[0]}, "the first axis must be that of the samples"),
    ("scalar", {"x": np.float32(1)}, "single number"),
    ("empty", {"x": XS[:0]}, "holds no samples"),
    ("counts", {"x": XS, "label": LABELS[:5]}, "different numbers of samples: 'x' 6, 'label' 5"),
    ("label of objects", {"x": XS, "label": np.array([None] * 6)}, "'label' holds pickled objects"),
    ("label of text", {"x": XS, "label": np.array(["cat"] * 6)}, "'label' is <U3"),
    ("Fortran", {"x": np.asfortranarray(XS)}, "Fortran order"),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "complaint"), [b[1:] for b in BAD_ARRAYS],
                         ids=[b[0] for b in BAD_ARRAYS])  # fmt: skip
def test_bad_arrays_in_files(tmp_path, arrays, complaint):
    with pytest.raises(DataError, match=complaint):
        open_samples(npz(tmp_path, **arrays), inputs=[X])


BAD_FEEDS = [
    ("unknown name", {"xx": XS[:1]}, "feed 1: array 'xx' is no input.*did you mean 'x'"),
    ("missing input", {}, "feed 1: no array for the input 'x'"),
    ("no dict", XS[:1], "feed 1 is ndarray; give a dict of input names"),
    ("a list", {"x": [1.0]}, "feed 1: array 'x' is list; give a numpy array"),
    ("integers", {"x": np.ones((1, 2, 3), int)}, "feed 1: array 'x' is int64"),
    ("objects", {"x": np.array([[None]])}, "feed 1: array 'x' is object"),
    ("rank", {"x": XS[:1, 0]}, r"has shape \[1, 3\], the input \[\?, 2, 3\]"),
    ("no batch axis", {"x": XS[0]}, r"add the batch axis, array\[None\]"),
    ("no samples", {"x": XS[:0]}, "feed 1: holds no samples"),
    ("label of text", {"x": XS[:1], "label": np.array(["a"])}, "array 'label' is <U1"),
    ("label a number", {"x": XS[:1], "label": 3}, "'label' is int; give a numpy array"),
    ("NaN in the label", {"x": XS[:1], "label": np.array([np.nan])}, r"'label' holds nan at \[0\]"),
]  # fmt: skip


@pytest.mark.parametrize("kind", [list, iter, Reader])
@pytest.mark.parametrize(("feed", "complaint"), [b[1:] for b in BAD_FEEDS],
                         ids=[b[0] for b in BAD_FEEDS])  # fmt: skip
def test_bad_feeds(feed, complaint, kind):
    with pytest.raises(DataError, match=f"samples: .*{complaint}|{complaint}"):
        list(open_samples(kind([{"x": XS[:1]}, feed]), inputs=[X]))


@pytest.mark.parametrize(("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_values_that_are_not_finite(tmp_path, value, text):
    bad = XS.copy()
    bad[4, 1, 2] = bad[5, 0, 0] = value
    with pytest.raises(DataError, match=rf"array 'x', sample 4 holds {text} at \[1, 2\]"):
        list(open_samples(npz(tmp_path, x=bad), inputs=[X]))
    with pytest.raises(DataError, match=rf"feed 0: array 'x' holds {text} at \[4, 1, 2\]"):
        open_samples([{"x": bad}], inputs=[X])
    assert len(list(open_samples(npz(tmp_path, x=bad), inputs=[X], limit=4))) == 4


@pytest.mark.parametrize("found", ["float64", "float16"])
def test_floats_of_another_width(tmp_path, found):
    says = rf"is {found}, the input takes float32: convert it with \.astype\(numpy\.float32\)"
    for data in (npz(tmp_path, x=XS.astype(found)), [{"x": XS.astype(found)}]):
        with pytest.raises(DataError, match=says):
            open_samples(data, inputs=[X])


def test_nan_in_a_label_of_a_file(tmp_path):
    label = np.zeros(6)
    label[2] = np.nan
    with pytest.raises(DataError, match="array 'label', sample 2 holds nan"):
        list(open_samples(npz(tmp_path, x=XS, label=label), inputs=[X]))


@pytest.mark.parametrize("found", ["float32", "int8", "int64"])
def test_what_are_no_frames(tmp_path, found):
    with pytest.raises(DataError, match=f"is {found}, the input takes uint8: give frames of 0..25"):
        open_samples(npz(tmp_path, x=XS.astype(found)), inputs=[FRAME])


@pytest.mark.parametrize("found", ["float32", "uint64"])
def test_what_does_not_widen(tmp_path, found):
    with pytest.raises(DataError, match=f"is {found}, the input takes int64: convert it with"):
        open_samples(npz(tmp_path, ids=np.ones((2, 4), found)), inputs=[IDS])


def test_batches_that_do_not_come_out_even(tmp_path):
    path, fixed = npz(tmp_path, x=XS), InputSpec("x", F4, (4, 2, 3))
    with pytest.raises(DataError, match=r"6 samples do not fill batches of 4.*give a multiple"):
        open_samples(path, inputs=[fixed])
    with pytest.raises(DataError, match="3 samples do not fill batches of 4"):
        open_samples(path, inputs=[fixed], limit=3)
    with pytest.raises(DataError, match=r"feed 0: array 'x' holds 6 samples, .* exactly 4 at once"):
        open_samples([{"x": XS}], inputs=[fixed])


def test_inputs_that_differ_in_their_batch(tmp_path):
    specs = [InputSpec("x", F4, (2, 2, 3)), InputSpec("t", F4, (1, 1))]
    path = npz(tmp_path, x=XS, t=XS[:, 0, :1])
    with pytest.raises(DataError, match=r"differ in their first axis \('x' 2, 't' 1\)"):
        open_samples(path, inputs=specs)
    assert open_samples([{"x": XS[:2], "t": XS[:1, 0, :1]}], inputs=specs).count == 1


def test_feeds_whose_arrays_differ_in_number():
    specs = [X, IDS]
    feed = {"x": XS[:2], "ids": np.zeros((1, 4), np.int64)}
    with pytest.raises(DataError, match="feed 0: different numbers of samples: 'x' 2, 'ids' 1"):
        open_samples([feed], inputs=specs)


def test_files_that_do_not_fit_each_other(tmp_path):
    npz(tmp_path, "a.npz", x=XS, label=LABELS)
    npz(tmp_path, "b.npz", x=XS)
    with pytest.raises(DataError, match=r"b.npz: no array 'label', though .*a.npz has"):
        open_samples(tmp_path, inputs=[X])
    free = InputSpec("x", F4, (None, None, None))
    npz(tmp_path, "b.npz", x=XS[:, :1], label=LABELS)
    assert open_samples(tmp_path, inputs=[free]).count == 12
    with pytest.raises(DataError, match="array 'x' has samples of different shapes"):
        list(open_samples(tmp_path, inputs=[free], batch=4))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("gone.npz", "gone.npz: no such file"),
        ("gone", "gone: no such file; give a .npz file, a folder"),
        (".", "the folder holds no .npz file"),
        ("file.pkl", "file.pkl: give a .npz file.*pickles never"),
        ("no_such_module:frames", "cannot import no_such_module: ModuleNotFoundError"),
        (":frames", "write MODULE:FUNCTION"),
        ("math:sine", r"math has no function 'sine' \(did you mean 'sin'\?\)"),
        ([], "there are no samples"),
        (iter([]), "there are no samples"),
        (Reader([]), "there are no samples"),
        ({"x": XS}, "a dict is one feed; give a list"),
        (XS, "feed 0 is ndarray"),
        (3, "samples: int cannot be read"),
        (None, "samples: NoneType cannot be read"),
    ],
)
def test_bad_sources(tmp_path, monkeypatch, data, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.pkl").write_bytes(b"\x80\x04N.")
    with pytest.raises(DataError, match=complaint):
        open_samples(data, inputs=[X])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("def frames():\n    return 3", "returned int; let it yield feeds"),
        ("def frames():\n    return {'x': 1}", "returned dict; let it yield feeds"),
        ("def frames():\n    return []", "there are no samples"),
        ("def frames():\n    yield {}\n", "feed 0: no array for the input 'x'"),
        ("def frames():\n    yield from [1 / 0]", "frames failed: ZeroDivisionError"),
        ("frames = 3", "has no function 'frames'"),
        ("1 / 0", "cannot import .*ZeroDivisionError"),
        ("def", "cannot import .*SyntaxError"),
    ],
)
def test_bad_functions(tmp_path, monkeypatch, text, complaint):
    name = module(tmp_path, monkeypatch, text)
    with pytest.raises(DataError, match=complaint):
        open_samples(f"{name}:frames", inputs=[X])


def test_limits_and_batches_that_are_none(tmp_path):
    for options, complaint in (({"limit": 0}, "0 samples are none"), ({"batch": 0}, "batch of 0")):
        with pytest.raises(DataError, match=complaint):
            open_samples(npz(tmp_path, x=XS), inputs=[X], **options)
    with pytest.raises(DataError, match="the model has no inputs"):
        open_samples(npz(tmp_path, x=XS), inputs=[])


def test_a_full_disk_is_said(monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeq.spool.npy.write_array", full)
    with pytest.raises(DataError, match=r"No space left on device.*set TMPDIR"):
        open_samples(iter([{"x": XS[:1]}]), inputs=[X])
