"""Files that were altered at random: a message and a status, never a traceback, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeq.bundle import open_bundle
from edgeq.check import check
from edgeq.check_folder import UNSEALED, CheckError, seal
from edgeq.errors import EdgeqError
from edgeq.lint import lint
from edgeq.opening import open_model

DIGITS = Path(__file__).parent.parent / "samples" / "digits" / "digits.onnx"
BOUNDED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
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


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def survives(call: Callable[[], object]) -> bool:
    """Run `call`; whether it was refused with a message. Any other exception is a failure."""
    try:
        call()
    except (CheckError, EdgeqError) as error:
        assert str(error) and error.exit_status in (1, 2)
        return True
    return False


@BOUNDED
@given(data=st.data())
def test_a_manifest_with_anything_in_it(bundle, data):
    path = bundle.path / "manifest.json"
    before = path.read_text()
    manifest = json.loads(before)
    for _ in range(data.draw(st.integers(1, 3))):
        put(manifest, data.draw(st.sampled_from(places(manifest))), data.draw(Odd))
    path.write_text(seal(json.dumps(manifest | {"sha256": UNSEALED})))
    try:
        stand = tree(bundle.path.parent)
        survives(lambda: check(bundle.path, taps=True, repeat=1, runs=1).raise_for_mismatch())
        survives(lambda: open_bundle(bundle.path))
        assert tree(bundle.path.parent) == stand
    finally:
        path.write_text(before)


@BOUNDED
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


@pytest.mark.parametrize("reads", ["load", "lint"])
def test_an_onnx_file_with_bytes_that_differ(reads, tmp_path):
    original = DIGITS.read_bytes()
    refused = 0

    @BOUNDED
    @given(data=st.data())
    def one(data: Any) -> None:
        nonlocal refused
        changed = bytearray(original[: data.draw(st.sampled_from([len(original), 4000, 70_000]))])
        for _ in range(data.draw(st.integers(1, 8))):
            place = data.draw(st.integers(0, min(len(changed) - 1, 3000)))
            changed[place] = data.draw(st.integers(0, 255))
        path = tmp_path / "model.onnx"
        path.write_bytes(changed)

        def call() -> None:
            model = open_model(path)
            if reads == "lint":
                lint(model)

        refused += survives(call)
        assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]

    one()
    assert refused > 4
