"""Files that were altered at random: a message and a status, never a traceback, nothing written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.bundle import Bundle, open_bundle
from edgeq.check import check
from edgeq.check_folder import UNSEALED, seal
from edgeq.predicted_check import predict_check
from tests.conftest import tiny_float_proto
from tests.fuzzing import bounded, command, limited_memory, survives, tree

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "samples" / "digits" / "digits.onnx"
RECIPES = ROOT / "edgeq" / "recipes"
Odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["../out", "/etc/passwd", "a/../../b", "", "golden", "\0", "C:\\x", "ort-cpu"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where in a JSON value something else can stand."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            found += places(inner, (*path, key))
    return found


def put(value: Any, path: tuple[Any, ...], new: object) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def flipped(data: Any, original: bytes, most: int) -> bytes:
    """Return `original`, perhaps cut short, with some of its first bytes changed."""
    length = data.draw(st.one_of(st.just(len(original)), st.integers(1, len(original))))
    changed = bytearray(original[:length])
    for _ in range(data.draw(st.integers(1, 8))):
        changed[data.draw(st.integers(0, min(length, most) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


def read_with(bundle: Bundle, manifest: dict[str, Any]) -> list[bool]:
    """Read a bundle with another manifest in every way; return which of them refused it."""
    path = bundle.path / "manifest.json"
    before = path.read_text()
    if manifest.get("sha256") == json.loads(before)["sha256"]:
        text = seal(json.dumps(manifest | {"sha256": UNSEALED}))
    else:
        text = json.dumps(manifest)
    path.write_text(text)
    try:
        stand = tree(bundle.path.parent)
        refused = [
            survives(lambda: check(bundle.path, taps=True, repeat=1, runs=1).raise_for_mismatch()),
            survives(lambda: open_bundle(bundle.path).session()),
            survives(lambda: predict_check(bundle.path, "aarch64", runs=1)),
        ]
        assert tree(bundle.path.parent) == stand
        return refused
    finally:
        path.write_text(before)


@bounded(25)
@given(data=st.data())
def test_a_manifest_with_anything_in_it(bundle, data):
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        put(manifest, data.draw(st.sampled_from(places(manifest))), data.draw(Odd))
    read_with(bundle, manifest)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("golden", "scalars"), ["x"]),
        (("runtime", "at_least"), "\u00b2"),  # a digit, and no decimal one
        (("runtime", "at_least"), "9" * 5000),
        (("session_options",), {"": "1"}),
        (("taps", 1, "name"), []),
        (("certificate", "proven"), float("inf")),
    ],
)
def test_a_manifest_that_led_to_a_traceback_once(bundle, path, value):
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    put(manifest, path, value)
    assert any(read_with(bundle, manifest))


@bounded(40)
@given(data=st.data())
def test_a_bundle_with_a_byte_that_differs(bundle, data):
    """Every file is found out, the manifest by its own digest."""
    names = [str(p.relative_to(bundle.path)) for p in bundle.path.rglob("*") if p.is_file()]
    name = data.draw(st.sampled_from(sorted(names)))
    path = bundle.path / name
    before = path.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        refused = survives(
            lambda: check(bundle.path, taps=True, repeat=1, runs=1).raise_for_mismatch()
        )
        assert refused, f"{name}, byte {place}"
    finally:
        path.write_bytes(before)


READERS = {
    "lint": ["lint", "model.onnx"],
    "fix": ["lint", "model.onnx", "--fix", "-o", "made.onnx", "--force"],
    "inspect": ["inspect", "model.onnx"],
    "simulate": ["simulate", "model.onnx", "--inputs", "x.npz", "-o", "made.npz", "--force"],
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_an_onnx_file_with_bytes_that_differ(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original, refused = DIGITS.read_bytes(), 0
    np.savez("x.npz", input=np.zeros((1, 1, 8, 8), np.float32))

    @bounded(40)
    @given(data=st.data())
    def one(data: Any) -> None:
        nonlocal refused
        Path("model.onnx").write_bytes(flipped(data, original, 3000))
        with limited_memory():
            refused += command(*READERS[name])
        assert {p.name for p in tmp_path.iterdir()} <= {"model.onnx", "x.npz", *READERS[name]}

    one()
    assert refused > 4


SAMPLES = {
    "simulate": ["simulate", "model.onnx", "--inputs", "x.npz", "-o", "made.npz", "--force"],
    "compare": ["compare", "model.onnx", "model.onnx", "--inputs", "x.npz"],
    "check": ["check", "model.onnx", "--as", "aarch64", "--inputs", "x.npz", "--runs", "1"],
    "compile": ["compile", "model.onnx", "--target", "ort-cpu", "--calibration", "x.npz",
                "--dry-run"],
}  # fmt: skip
Arrays = st.builds(
    np.zeros,
    st.lists(st.integers(0, 7), max_size=5),
    st.sampled_from(["f4", "f8", "f2", "u1", "i8", "?", "c8", "U3", "M8[s]", "S2", ">f4"]),
)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_that_were_altered(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny_float_proto(), "model.onnx")
    np.savez("x.npz", x=np.ones((3, 2, 5, 5), np.float32))
    original = Path("x.npz").read_bytes()
    assert not command(*SAMPLES[name])

    @bounded(20)
    @given(data=st.data())
    def one(data: Any) -> None:
        if data.draw(st.booleans()):
            Path("x.npz").write_bytes(flipped(data, original, len(original)))
        else:
            names = st.sampled_from(["x", "y", "label", "x.npy", "../x", ""])
            np.savez("x.npz", **data.draw(st.dictionaries(names, Arrays, max_size=2)))
        with limited_memory():
            command(*SAMPLES[name])
        assert {p.name for p in tmp_path.iterdir()} <= {"model.onnx", "x.npz", "made.npz"}

    one()


def test_a_recipe_with_anything_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(tiny_float_proto(), "model.onnx")
    np.savez("x.npz", x=np.ones((3, 2, 5, 5), np.float32))
    texts = [path.read_text() for path in sorted(RECIPES.glob("*.toml"))]
    values = st.one_of(
        st.sampled_from(["-1", "0", "1e9", "nan", "true", '""', '"int4"', "[]", '["x"]', "{a=1}"]),
        st.sampled_from(['"cleanup, cleanup"', '"nothing"', '"equalize{iterations=-1}"', '"a{"']),
        st.text(max_size=6),
    )

    @bounded(60)
    @given(data=st.data())
    def one(data: Any) -> None:
        lines = data.draw(st.sampled_from(texts)).splitlines()
        for _ in range(data.draw(st.integers(1, 2))):
            place = data.draw(st.sampled_from([i for i, line in enumerate(lines) if line]))
            key = lines[place].partition("=")[0]
            lines[place] = data.draw(st.one_of(st.just(key), values)) + "=" + data.draw(values)
        Path("recipe.toml").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
        command("compile", "model.onnx", "--target", "ort-cpu", "--calibration", "x.npz",
                "--recipe", "recipe.toml", "--dry-run")  # fmt: skip
        assert {p.name for p in tmp_path.iterdir()} == {"model.onnx", "x.npz", "recipe.toml"}

    one()
