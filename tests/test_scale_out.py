"""Compiling with learned weights: the same bundle however the work is spread, also resumed."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import edgeq
from edgeq import tasks

SAMPLE = Path(__file__).parent.parent / "samples/digits"
RECIPE = """
schema_version = 1
summary = "4-bit weights, rounded layer by layer"
[activation]
qtype = "uint8"
[weight]
qtype = "int4"
granularity = "per_channel"
symmetric = true
[residual]
qtype = "uint16"
[pipeline]
prepare = "cleanup, fold-batchnorm, linear-form"
quantize = '''choose-qparams, relate-scales, insert-qdq, fold-clip, quantize-weights, unit-scales,
  prove-fused, round-weights'''
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "w4.toml"
    path.write_text(RECIPE)
    return path


def bundle(recipe, output, **options: Any) -> dict[str, bytes]:
    """Compile the digits classifier; return every file of its bundle."""
    found = edgeq.compile(
        SAMPLE / "digits.onnx",
        calibration=SAMPLE / "calibration.npz",
        recipe=recipe,
        samples=4,
        output=output,
        **options,
    )
    files = sorted(path for path in found.path.rglob("*") if path.is_file())
    return {str(path.relative_to(found.path)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def expected(recipe, tmp_path_factory):
    return bundle(recipe, tmp_path_factory.mktemp("one") / "b")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_spread_over_workers(recipe, expected, tmp_path, kind):
    if kind == "processes":
        assert bundle(recipe, tmp_path / "b", workers=2) == expected
    else:
        with ThreadPoolExecutor(2) as executor:
            assert bundle(recipe, tmp_path / "b", executor=executor) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.slow
def test_spread_over_a_cluster(recipe, expected, tmp_path):
    distributed = pytest.importorskip("distributed", reason="pip install edgeq[cluster]")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, processes=True
    ) as cluster:
        assert bundle(recipe, tmp_path / "b", cluster=cluster.scheduler_address) == expected


@pytest.mark.slow
def test_interrupted_and_resumed(recipe, expected, tmp_path, monkeypatch):
    computed: list[object] = []
    real = tasks.alone

    def counting(function: Any, task: Any) -> Any:
        computed.append(task)
        return real(function, task)

    def alone(function: Any, task: Any) -> Any:
        if len(computed) == 3:
            raise KeyboardInterrupt
        return counting(function, task)

    monkeypatch.setattr(tasks, "alone", alone)
    with pytest.raises(KeyboardInterrupt, match=r"b.unfinished: the same command goes on"):
        bundle(recipe, tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b.unfinished"]
    assert len(computed) == 3
    computed.clear()
    monkeypatch.setattr(tasks, "alone", counting)
    assert bundle(recipe, tmp_path / "b") == expected
    layers = re.search(rb"(\d+) layers by descent", expected["report.json"])
    assert layers is not None and len(computed) == int(layers[1]) - 3  # one task each, here
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
