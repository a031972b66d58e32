"""Histograms that grow, what statistics keep, and the ranges that observers decide."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.clipping import power_of_two_ranges, squared_errors
from edgeq.entropy import entropy_threshold
from edgeq.histogram import BINS, GrowingHistogram
from edgeq.numerics.qtype import UINT4, UINT8
from edgeq.numerics.scale import choose_qparams
from edgeq.observe import (
    Observer,
    Statistics,
    choose_range,
    choose_weight_range,
    percentile_range,
)
from edgeq.recipe import OBSERVERS, QuantSpec
from edgeq.statistics import MAX_LEVELS, MOMENTUM

MSE = QuantSpec("uint8", observer="mse")
POWER = replace(MSE, scale="power_of_two")


def observed(*arrays) -> Statistics:
    observer = Observer(clip_ratios=[QuantSpec("uint8").clip_ratio(8)])
    for array in arrays:
        observer.add(np.asarray(array, np.float32))
    return observer.result()


def parts(seed: int, spread: float = 1.0) -> list[np.ndarray]:
    """Samples whose range keeps growing, with exact zeros among them."""
    generator = np.random.default_rng(seed)
    arrays = [generator.normal(0, spread * 4**i, (1, 3, 500)) for i in range(6)]
    return [np.where(generator.random(a.shape) < 0.1, 0, a).astype(np.float32) for a in arrays]


def heavy_tail(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (1, 4, 20000)).astype(np.float32)


def mean_square_error(values, low, high, spec) -> float:
    qparams = choose_qparams(low, high, spec)
    back = qparams.dequantize(qparams.quantize(values)).astype(np.float64)
    return float(np.square(back - values).mean())


# --- the histogram


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1.0, 1e4, 1e34])
def test_growing_gives_what_the_final_edges_give(spread):
    arrays = parts(0, spread)
    growing = GrowingHistogram()
    for array in arrays:
        growing.add(array)
    found = growing.view()
    everything = np.concatenate(arrays, axis=None)
    expected, _ = np.histogram(everything[everything != 0], found.edges)
    assert found.counts.tobytes() == expected.astype(np.int64).tobytes()
    assert found.zeros == (everything == 0).sum() > 0
    assert found.total == everything.size == 9000
    assert BINS // 4 < len(found.counts) <= BINS
    assert (found.edges == 0).sum() == 1


def test_order_does_not_matter():
    arrays = parts(1)
    views = []
    for order in itertools.islice(itertools.permutations(arrays), 0, 720, 45):
        growing = GrowingHistogram()
        for array in order:
            growing.add(array)
        view = growing.view()
        views.append((view.counts.tobytes(), view.edges.tobytes(), view.zeros))
    assert len(views) == 16 and len(set(views)) == 1


@pytest.mark.parametrize(
    ("rule", "values", "bins", "zeros"),
    [
        ("nothing", [], 1, 0),
        ("zeros only, of both signs", [0.0, -0.0], 1, 2),
        ("one value", [3.0], None, 0),
        ("far from 0", [1e6, 1e6 + 1], None, 0),
        ("denormal", [1e-45, 3e-45], None, 0),
        ("the largest floats", [-3.4e38, 3.4e38], None, 0),
        ("all negative", [-1.0, -2.0], None, 0),
    ],
)
def test_edge_cases(rule, values, bins, zeros):
    growing = GrowingHistogram()
    growing.add(np.array(values, np.float32))
    view = growing.view()
    assert (view.total, view.zeros) == (len(values), zeros)
    assert bins is None or len(view.counts) == bins
    assert view.edges[0] <= min([0.0, *np.array(values, np.float32)])
    assert view.edges[-1] > max([0.0, *np.array(values, np.float32)])


# --- statistics


def test_statistics_are_those_of_all_samples():
    arrays = parts(2)
    found = observed(*arrays)
    whole = np.concatenate(arrays, axis=2).astype(np.float64)[0]
    assert (found.low, found.high, found.count) == (whole.min(), whole.max(), whole.size)
    assert found.channel_low.tobytes() == whole.min(1).tobytes()
    assert found.channel_high.tobytes() == whole.max(1).tobytes()
    np.testing.assert_allclose(found.channel_mean, whole.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.channel_square, np.square(whole).mean(1), rtol=1e-12)
    assert found.levels is None


def test_moving_average_follows_the_extremes():
    found = observed([[-1.0, 2.0]], [[-3.0, 0.0]], [[-1.0, 1.0]])
    low, high = -1.0, 2.0
    for a, b in [(-3.0, 0.0), (-1.0, 1.0)]:
        low, high = low + MOMENTUM * (a - low), high + MOMENTUM * (b - high)
    spec = QuantSpec("uint8", observer="moving_average")
    assert choose_range(found, spec, UINT8) == (low, high)


@pytest.mark.parametrize(
    ("rule", "shapes", "channels"),
    [
        ("rank 4: axis 1", [(2, 3, 4, 5)], 3),
        ("rank 2: axis 1", [(2, 3)], 3),
        ("rank 1: axis 0", [(7,)], 7),
        ("a scalar", [()], 1),
        ("a length that changes: one channel", [(1, 3, 8), (1, 4, 8), (1, 3, 8)], 1),
        ("empty samples say nothing", [(0, 3), (2, 3), (0, 5)], 3),
        ("nothing but empty samples", [(0, 3)], 1),
    ],
)
def test_channel_axis(rule, shapes, channels):
    generator = np.random.default_rng(3)
    arrays = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    found = observed(*arrays)
    everything = np.concatenate(arrays, axis=None).astype(np.float64)
    assert found.channel_mean.shape == found.channel_square.shape == (channels,)
    assert found.channel_low.shape == found.channel_high.shape == (channels,)
    assert found.count == everything.size
    if everything.size:
        assert found.channel_low.min() == found.low == everything.min()
        assert abs(found.channel_mean.mean() - everything.mean()) < 1e-6


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "inf")])
def test_not_finite(bad, word):
    with pytest.raises(ValueError, match=word):
        observed([1.0, bad, 2.0])


def test_few_levels_are_kept_exactly():
    generator = np.random.default_rng(4)
    arrays = [generator.integers(0, MAX_LEVELS, (1, 1, 3000)) / 8 for _ in range(3)]
    found = observed(*arrays).levels
    values, counts = np.unique(np.concatenate(arrays, axis=None), return_counts=True)
    assert found is not None
    assert found.values.tolist() == values.tolist() and found.counts.tolist() == counts.tolist()
    assert observed(*arrays, [[MAX_LEVELS * 2.0]] * 2).levels is not None or len(values) > 1022
    assert observed(*arrays, np.arange(2000.0)).levels is None


# --- ranges


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("scale", ["float", "power_of_two"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("rule", "values", "usable"),
    [
        ("all zero", np.zeros(100), False),
        ("constant", np.full(100, 3.25), True),
        ("negative", -np.arange(5000.0), True),
        ("positive", np.arange(5000.0) + 100, True),
        ("tiny", np.linspace(-1e-20, 1e-20, 3000), False),
        ("huge", np.linspace(-1e37, 3e37, 3000), True),
        ("a spike at 0 and one outlier", [*np.zeros(5000), 1000.0], True),
    ],
)
def test_every_observer_decides(observer, scale, symmetric, rule, values, usable):
    spec = QuantSpec("uint8", observer=observer, scale=scale, symmetric=symmetric)
    found = observed(np.reshape(values, (1, 1, -1)))
    low, high = choose_range(found, spec, UINT8)
    assert np.isfinite([low, high]).all() and low <= 0 <= high
    qparams = choose_qparams(low, high, spec)
    if usable:
        assert (
            mean_square_error(np.array(values, np.float32), low, high, spec)
            <= np.square(values).mean()
        )
        assert qparams.range[0] < qparams.range[1]


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "entropy"])
@given(low=st.floats(-1e6, 0), high=st.floats(0, 1e6), symmetric=st.booleans())
def test_a_power_of_two_covers_what_was_observed(observer, low, high, symmetric):
    values = np.array([low, high], np.float32).reshape(1, 2, 1)
    spec = QuantSpec(
        "uint8", observer=observer, scale="power_of_two", symmetric=symmetric, percentile=100.0
    )
    qparams = choose_qparams(*choose_range(observed(values), spec, UINT8), spec)
    half = float(qparams.scale) / 2
    first, last = qparams.range
    assert first - half <= values.min() and values.max() <= last + half
    if float(qparams.scale) > 2.0**-40 and not symmetric:
        covers = float(values.max() - values.min()) / 256
        assert qparams.scale < 4 * covers or values.min() >= 0 or values.max() <= 0


@pytest.mark.parametrize("share", [90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("relu", [False, True])
def test_percentile_is_numpys_to_within_a_bin(share, relu):
    values = heavy_tail(5)
    values = np.maximum(values, 0) if relu else values
    found = observed(values)
    low, high = percentile_range(found, share)
    outside = 100 - share if relu else (100 - share) / 2
    width = found.histogram.width
    for end, percent in ((low, outside), (high, 100 - outside)):
        if relu and end == low:
            assert low == 0
            continue
        # Between two values far apart, both are right, and so is all between them.
        below, above = (np.percentile(values, percent, method=m) for m in ("lower", "higher"))
        assert below - width <= end <= above + width


def test_entropy_clips_outliers_only():
    values = np.random.default_rng(6).normal(size=(1, 1, 100000))
    outlier = np.concatenate([values, np.full((1, 1, 1), 60.0)], axis=2)
    plain, clipped = (entropy_threshold(observed(v).histogram, UINT8) for v in (values, outlier))
    assert 2.5 < plain <= 6
    assert 2.5 < clipped < 20
    few = observed(np.arange(64.0)).histogram
    assert entropy_threshold(few, UINT8) >= 63


# --- the MSE observer


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("outlier", [20.0, 60.0])
def test_mse_beats_minmax_on_heavy_tails(relu, outlier):
    values = np.random.default_rng(7).normal(size=(1, 4, 20000)).astype(np.float32)
    values[0, 0, :2] = -outlier, outlier
    values = np.maximum(values, 0) if relu else values
    found = observed(values)
    mse, minmax = (
        mean_square_error(values, *choose_range(found, spec, UINT8), spec)
        for spec in (MSE, replace(MSE, observer="minmax"))
    )
    assert mse < 0.96 * minmax


@pytest.mark.parametrize("scale", ["float", "power_of_two"])
@pytest.mark.parametrize("seed", range(3))
def test_mse_is_the_optimum_of_a_full_search(scale, seed):
    """Every pair of ends on a grid finer than the search's first, errors of the values."""
    spec = replace(MSE, scale=scale)
    generator = np.random.default_rng(seed)
    values = np.float32(heavy_tail(seed)[:, :, :1500] + generator.uniform(-1, 1))
    found = observed(values)
    low, high = choose_range(found, spec, UINT8)
    shrinks = np.linspace(0.05, 1, 60)
    lowest = min(
        mean_square_error(values, found.low * a, found.high * b, spec)
        for a in shrinks
        for b in shrinks
    )
    # Bins spread 6,000 values evenly: that, and nothing else, is left to chance.
    assert mean_square_error(values, low, high, spec) <= 1.02 * lowest


def test_mse_shrinks_one_end_alone():
    spec = replace(MSE, qtype="uint4")
    values = np.random.default_rng(11).normal(size=(1, 1, 6000)).astype(np.float32)
    values[0, 0, 0] = -20
    low, high = choose_range(observed(values), spec, UINT4)
    lows, highs = np.linspace(-20, -0.5, 79), np.linspace(0.5, values.max(), 20)
    errors = [[mean_square_error(values, a, b, spec) for b in highs] for a in lows]
    assert low > -6 and high > 2
    assert mean_square_error(values, low, high, spec) <= 1.01 * np.min(errors)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-2, 2))
def test_power_of_two_decisions_reproduce(seed, spread, middle):
    values = np.random.default_rng(seed).laplace(middle * spread, spread, (1, 1, 2000))
    found = observed(values)
    low, high = choose_range(found, POWER, UINT8)
    qparams = choose_qparams(low, high, POWER)
    assert float(qparams.scale) * 255 == high - low
    assert int(qparams.zero_point) * float(qparams.scale) == -low
    chosen = squared_errors(found, choose_qparams([low], [high], POWER, axis=0))
    lows, highs = power_of_two_ranges(min(found.low, 0), max(found.high, 0), UINT8)
    assert chosen[0] == squared_errors(found, choose_qparams(lows, highs, POWER, axis=0)).min()


def test_a_step_integral_is_the_error_of_evenly_spread_values():
    found = observed(np.linspace(-3, 5, 400001, dtype=np.float32).reshape(1, 1, -1))
    ranges = [(-3.0, 5.0), (-1.0, 5.0), (-3.0, 0.5), (-0.01, 0.01), (-100.0, 100.0)]
    lows, highs = np.transpose(ranges)
    sums = squared_errors(found, choose_qparams(lows, highs, MSE, axis=0))
    values = np.linspace(-3, 5, 400001, dtype=np.float32)
    for (low, high), total in zip(ranges, sums, strict=True):
        direct = mean_square_error(values, low, high, MSE)
        assert abs(total / found.count / direct - 1) < 0.01


def test_images_on_rounding_ties_are_seen():
    """uint8 normalised to [-1, 1] has an exact form; its ties make half a step everywhere else."""
    image = (np.arange(256) * np.float32(2 / 255) - 1).astype(np.float32)
    found = observed(np.tile(image, 20).reshape(1, 1, -1))
    low, high = choose_range(found, MSE, UINT8)
    error = mean_square_error(image, low, high, MSE)
    seen = squared_errors(found, choose_qparams([low, -1], [high, 1], MSE, axis=0)) / found.count
    assert abs(seen[0] / error - 1) < 1e-6
    assert abs(seen[1] / mean_square_error(image, -1.0, 1.0, MSE) - 1) < 1e-6
    assert error < (2 / 255) ** 2 / 12
    assert error < mean_square_error(image, -1.0, 1.0, MSE) / 3


def test_decisions_are_deterministic():
    ranges = [choose_range(observed(*parts(8)), spec, UINT8) for spec in (MSE, POWER) * 2]
    assert ranges[:2] == ranges[2:]


# --- weights

W = QuantSpec("int8", "per_channel", symmetric=True, observer="mse")


@pytest.mark.parametrize("axis", [0, 1, 3, None])
@pytest.mark.parametrize("scale", ["float", "power_of_two"])
@pytest.mark.parametrize(("qtype", "limit"), [("int8", 127), ("int8", 64), ("int4", 7)])
def test_weight_search_lowers_the_error_of_every_channel(axis, scale, qtype, limit):
    weight = np.random.default_rng(9).standard_t(4, (6, 5, 3, 4)).astype(np.float32)
    errors = []
    for observer in ("mse", "minmax"):
        spec = replace(W, qtype=qtype, scale=scale, observer=observer)
        low, high = choose_weight_range(weight, spec, axis, limit)
        qparams = choose_qparams(low, high, spec, axis=axis, limit=limit)
        assert qparams.scale.shape == (() if axis is None else (weight.shape[axis],))
        codes = np.clip(qparams.quantize(weight).astype(int), -limit, limit).astype(
            qparams.qtype.dtype
        )
        difference = np.square((qparams.dequantize(codes) - weight).astype(np.float64))
        others = tuple(a for a in range(4) if a != axis)
        errors.append(difference.sum(others))
        if observer == "minmax":
            assert np.abs(qparams.quantize(weight).astype(int)).max() <= limit
    assert (errors[0] <= errors[1] * (1 + 1e-6)).all()
    if qtype == "int4":
        assert errors[0].sum() < errors[1].sum()


def test_weight_power_of_two_is_the_best_exponent():
    weight = np.random.default_rng(10).standard_t(4, (40, 30)).astype(np.float32)
    spec = replace(W, scale="power_of_two")
    found = choose_qparams(*choose_weight_range(weight, spec, 0, 127), spec, axis=0)
    compared = 0
    for row, scale in zip(weight, found.scale, strict=True):
        candidates = np.ldexp(1.0, np.arange(-14, 3))
        errors = [
            np.square(np.clip(np.rint(row / s), -127, 127) * s - row.astype(np.float64)).sum()
            for s in candidates
        ]
        assert float(scale) == candidates[int(np.argmin(errors))]
        compared += 1
    assert compared == 40


def test_weights_of_zeros_and_none():
    for weight in (np.zeros((3, 4), np.float32), np.zeros((3, 0), np.float32)):
        low, high = choose_weight_range(weight, W, 0, 127)
        assert low.tolist() == high.tolist() == [0, 0, 0]
