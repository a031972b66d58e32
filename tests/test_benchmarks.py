"""What the benchmarks compute: noise, bounds, the table of peers, turns of the sessions."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.accuracy import HEAD, Peer, Row, notes
from benchmarks.cases import ZOO, ExportedCase, NoiseMeter
from benchmarks.deployed import LIMITS, Latency, cells, means, medians
from benchmarks.peers import Figure, Required, read_standings
from benchmarks.static_qdq import quantize_case

STANDINGS = read_standings()
BEST = {  # metric, SQNR: the best of all tools, each figure for itself
    "resnet20-cifar10": (81.2, 27.95),
    "mobilenet-v1-075": (83.0, 17.12),
    "kws-dscnn": (91.51, 31.06),
    "fsrcnn-x3": (29.27, 35.57),
    "vww-96": (None, 25.24),
    "ultraface-rfb-320": (None, 41.71),
    "vit-mnist": (97.4, 28.60),
    "opt-shakespeare": (3.546, 3.64),  # less is better; of those that left nothing float
    "ddpm-attn-mnist32": (0.0223, 24.46),
}


def test_best_of_the_peers():
    assert {n: (s.best.metric, s.best.sqnr_db) for n, s in STANDINGS.items()} == BEST


def test_figures_of_tools_that_left_operators_float_stand_apart():
    assert {n: list(s.partly) for n, s in STANDINGS.items() if s.partly} == {
        "fsrcnn-x3": ["ModelOpt"],
        "opt-shakespeare": ["NNCF", "ModelOpt"],
        "ddpm-attn-mnist32": ["NNCF"],
    }
    (line, failure) = notes(STANDINGS["ddpm-attn-mnist32"], Peer(None, "it fails"))
    assert line.endswith("NNCF, with operators left float: 0.02070 / 27.11")
    assert failure == "ddpm-attn-mnist32: it fails"


def test_every_bound_is_beyond_the_best_peer():
    """In SQNR, or in the metric where it says more."""
    for standing in STANDINGS.values():
        required, best = standing.required["int8"], standing.best
        if required.sqnr_db is not None:
            assert best.sqnr_db is not None and required.sqnr_db > best.sqnr_db
        else:
            assert not standing.higher_is_better
            assert required.metric is not None and best.metric is not None
            assert required.metric < best.metric


def test_what_the_zoo_says_of_each_case():
    assert {s.group for s in STANDINGS.values()} == set(LIMITS)
    attention = [n for n, s in STANDINGS.items() if s.group == "attention"]
    assert attention == ["vit-mnist", "opt-shakespeare", "ddpm-attn-mnist32"]
    assert STANDINGS["ddpm-attn-mnist32"].input_ranges == {"timestep": (0, 999)}
    less = [n for n, s in STANDINGS.items() if not s.higher_is_better]
    assert less == ["opt-shakespeare", "ddpm-attn-mnist32"]


def test_noise_is_summed_over_runs_before_the_logarithm():
    meter = NoiseMeter()
    meter.add([np.array([3.0]), np.array([1.0])], [np.array([2.0]), np.array([1.0])])
    meter.add([np.array([1.0]), np.array([1.0])], [np.array([1.0]), np.array([1.0])])
    first, second = meter.decibels()
    assert first == 10 * math.log10((9 + 1) / 1)
    assert second == math.inf


@pytest.mark.parametrize(
    ("rule", "more", "required", "reached", "float_metric", "misses"),
    [
        ("reached exactly", True, Required(metric=80.2), Figure(80.2), 80.4, 0),
        ("metric missed", True, Required(metric=80.2), Figure(80.1), 80.4, 1),
        ("both missed", True, Required(metric=80.2, sqnr_db=28.5), Figure(80.1, 28.4), 80.4, 2),
        ("drop reached", True, Required(drop=1.5), Figure(78.9), 80.4, 0),
        ("drop missed", True, Required(drop=1.5), Figure(78.8), 80.4, 1),
        ("not a number", True, Required(sqnr_db=1.0), Figure(None, math.nan), None, 1),
        ("not measured", True, Required(metric=1.0), Figure(None, 30.0), None, 1),
        ("nothing required", True, Required(), Figure(None, 30.0), None, 0),
        ("less, exactly", False, Required(metric=0.0203), Figure(0.0203), 0.02, 0),
        ("less, missed", False, Required(metric=0.0203), Figure(0.0204), 0.02, 1),
        ("less, not a number", False, Required(metric=0.0203), Figure(math.nan), 0.02, 1),
        ("less, drop reached", False, Required(drop=0.5), Figure(2.5), 2.0, 0),
        ("less, drop missed", False, Required(drop=0.5), Figure(2.6), 2.0, 1),
        ("more SQNR all the same", False, Required(sqnr_db=9.0), Figure(1.0, 8.0), 1.0, 1),
    ],
)
def test_bounds(rule, more, required, reached, float_metric, misses):
    assert len(required.misses(reached, float_metric, more)) == misses


def test_misses_are_said_in_enough_digits():
    assert Required(metric=0.0203).misses(Figure(0.020412), None, False) == [
        "metric 0.020412 > 0.0203"
    ]
    assert Required(metric=97.0, sqnr_db=29.0).misses(Figure(96.9, None), None) == [
        "metric 96.9 < 97", "SQNR not measured",
    ]  # fmt: skip


def test_rows_without_a_bundle_or_a_peer():
    """A compile or a peer that fails leaves dashes, not another number of columns."""
    row = Row(STANDINGS["opt-shakespeare"], 1.63758, Peer(None, "it fails"), misses=("a | b",))
    assert len(row.cells()) == len(HEAD)
    assert row.cells()[:4] == ["opt-shakespeare", "1.6376 nats", "3.5460 nats / 3.64",
                               "does not load"]  # fmt: skip
    assert set(row.cells()[4:-1]) == {"-"} and row.cells()[-1] == "a \\| b"


@pytest.mark.parametrize(
    ("rule", "latency", "misses"),
    [
        ("as fast", Latency("a", 2.0, 1.0, 1.0, 9), 0),
        ("too slow", Latency("a", 2.0, 1.0, 1.3, 9), 1),
        ("slower than float", Latency("a", 1.0, 1.0, 1.1, 9), 1),
        ("slower than a tiny float", Latency("a", 0.2, 0.2, 0.21, 9), 0),
        ("attention, however tiny", Latency("a", 0.2, 0.2, 0.21, 9, "attention"), 1),
        ("no peer", Latency("a", 2.0, None, 1.0, 9), 0),
        ("no peer, slower than float", Latency("a", 1.0, None, 1.1, 9), 1),
        ("a mean alone is limited", Latency("a", 2.0, 1.0, 1.5, 9, "attention"), 0),
    ],
)
def test_latency_bounds(rule, latency, misses):
    assert len(latency.misses()) == misses


def test_means_are_of_each_group_where_the_peer_loads():
    results = [Latency("a", 9.0, 1.0, 2.0, 9), Latency("b", 9.0, 1.0, 8.0, 9),
               Latency("c", 9.0, None, 1.0, 9, "attention")]  # fmt: skip
    assert means(results) == pytest.approx({"convolution": 4.0})
    assert cells(results[2])[2] == "does not load" and cells(results[2])[4] == "-"
    assert means([*results, Latency("d", 9.0, 2.0, 1.0, 9, "attention")])["attention"] == 0.5


class Zoo:
    """Samples of a case that is made up."""

    def calibration(self, batch):
        return iter([{"x": np.ones((batch, 4), np.float32)}] * 3)


def static_of(model: onnx.ModelProto, folder: Path):
    onnx.save(model, folder / "model.onnx")
    case = ExportedCase("made-up", folder / "model.onnx", folder / "none.npz", "sqnr", Zoo())
    return quantize_case(case, folder)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # onnxruntime's own tools
def test_quantize_static_and_what_it_cannot_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in "xy")
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    opset = [helper.make_opsetid("", 17)]
    for op, made in (("MatMul", True), ("NoSuchOp", False)):
        graph = helper.make_graph(
            [helper.make_node(op, ["x", "w"], ["y"])], "g", [x], [y], [weight]
        )
        (folder := tmp_path / op).mkdir()
        found = static_of(helper.make_model(graph, opset_imports=opset, ir_version=8), folder)
        assert (found.path is not None) == made and bool(found.note) != made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MatMul", "NoSuchOp"]


@pytest.mark.zoo
def test_accuracy_beside_quantize_static(tmp_path):
    """The whole command on the smallest case."""
    if not ZOO.is_dir():
        pytest.skip(f"{ZOO} is absent")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.accuracy", "kws-dscnn", "--recipe", "int8"],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    (row,) = [line for line in run.stdout.splitlines() if line.startswith("| kws-dscnn")]
    columns = dict(zip(HEAD, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
    assert " % / " in columns["quantize_static: metric / SQNR"]
    assert columns["required"] == "reached" and columns["mismatches"] == "0"


def test_sessions_take_turns():
    calls: list[str] = []

    class Session:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, outputs, feeds):
            calls.append(self.name)

    taken, rounds = medians({n: Session(n) for n in "abc"}, {}, seconds=0.0)
    timed = calls[15:]
    assert rounds == 50 and len(timed) == 150
    assert timed[:9] == list("abcbcacab")
    assert set(taken) == set("abc") and all(value > 0 for value in taken.values())
