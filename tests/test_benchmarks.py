"""What the benchmarks compute: noise, bounds, the table of peers, turns of the sessions."""

import math

import numpy as np
import pytest

from benchmarks.cases import NoiseMeter
from benchmarks.deployed import Latency, medians
from benchmarks.peers import Figure, Required, read_standings

BEST = {  # metric, SQNR: the best of all tools, each figure for itself
    "resnet20-cifar10": (81.2, 27.95),
    "mobilenet-v1-075": (83.0, 17.12),
    "kws-dscnn": (91.51, 31.06),
    "fsrcnn-x3": (29.27, 35.57),
    "vww-96": (None, 25.24),
    "ultraface-rfb-320": (None, 41.71),
}


def test_best_of_the_peers():
    best = {n: (s.best.metric, s.best.sqnr_db) for n, s in read_standings().items()}
    assert best == BEST


def test_every_bound_is_at_or_above_the_best_peers_sqnr():
    for standing in read_standings().values():
        bound, best = standing.required["int8"].sqnr_db, standing.best.sqnr_db
        assert bound is not None and best is not None and bound > best


def test_noise_is_summed_over_runs_before_the_logarithm():
    meter = NoiseMeter()
    meter.add([np.array([3.0]), np.array([1.0])], [np.array([2.0]), np.array([1.0])])
    meter.add([np.array([1.0]), np.array([1.0])], [np.array([1.0]), np.array([1.0])])
    first, second = meter.decibels()
    assert first == 10 * math.log10((9 + 1) / 1)
    assert second == math.inf


@pytest.mark.parametrize(
    ("rule", "required", "reached", "float_metric", "misses"),
    [
        ("reached exactly", Required(metric=80.2), Figure(80.2), 80.4, 0),
        ("metric missed", Required(metric=80.2), Figure(80.1), 80.4, 1),
        ("both missed", Required(metric=80.2, sqnr_db=28.5), Figure(80.1, 28.4), 80.4, 2),
        ("drop reached", Required(drop=1.5), Figure(78.9), 80.4, 0),
        ("drop missed", Required(drop=1.5), Figure(78.8), 80.4, 1),
        ("not a number is a miss", Required(sqnr_db=1.0), Figure(None, math.nan), None, 1),
        ("not measured is a miss", Required(metric=1.0), Figure(None, 30.0), None, 1),
        ("nothing required", Required(), Figure(None, 30.0), None, 0),
    ],
)
def test_bounds(rule, required, reached, float_metric, misses):
    assert len(required.misses(reached, float_metric)) == misses


@pytest.mark.parametrize(
    ("rule", "latency", "misses"),
    [
        ("as fast", Latency("a", 2.0, 1.0, 1.0, 9), 0),
        ("too slow", Latency("a", 2.0, 1.0, 1.3, 9), 1),
        ("slower than float", Latency("a", 1.0, 1.0, 1.1, 9), 1),
        ("slower than a tiny float", Latency("a", 0.2, 0.2, 0.21, 9), 0),
    ],
)
def test_latency_bounds(rule, latency, misses):
    assert len(latency.misses()) == misses


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
