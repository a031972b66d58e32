"""The search of formats and scales: its errors are those of rounding, its choice is the best."""

import numpy as np
import pytest

from edgeq.float_search import (
    SHARES,
    candidates,
    choose_for_activation,
    choose_for_weight,
    magnitudes,
    squared_errors,
)
from edgeq.numerics.floating import FORMATS
from edgeq.statistics import Observer

BYTES = ("e4m3fn", "e5m2", "e3m4", "e2m5fn")


def drawn(kind: str, shape: tuple[int, ...] = (3000,)) -> np.ndarray:
    random = np.random.default_rng(0)
    draws = {
        "normal": random.normal(size=shape),
        "heavy": random.standard_t(2, shape),
        "powers": np.ldexp(1.0, -random.integers(0, 30, shape)),
        "uniform": random.uniform(-1, 1, shape),
        "relu": np.maximum(random.normal(size=shape), 0),
    }
    return draws[kind].astype(np.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", ["normal", "heavy", "relu"])
def test_errors_are_those_of_rounding(name, kind):
    x, form = drawn(kind).astype(np.float64), FORMATS[name]
    scales = candidates(float(np.abs(x).max()), form)
    found = squared_errors(magnitudes(x), form, scales)
    expected = [np.square(form.round(x / s) * s - x).sum() for s in scales]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(scales) == len(SHARES) == 111


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize(
    ("kind", "formats", "best"),
    [
        ("uniform", BYTES, "e2m5fn"),
        ("normal", BYTES[:3], "e3m4"),
        ("normal", BYTES[:2], "e4m3fn"),
        ("powers", BYTES, "e5m2"),
    ],
)
def test_the_format_follows_the_distribution(kind, formats, best, axis):
    """More mantissa where magnitudes are alike, more exponent where they differ."""
    weight = drawn(kind, (40, 40))
    found = choose_for_weight(weight, formats, axis, power_of_two=kind == "powers")
    assert found.form == best
    assert found.scale.shape == (() if axis is None else (40,))
    assert found.scale.dtype == np.float32


def test_channels_have_scales_of_their_own():
    weight = drawn("normal", (8, 500)) * np.exp2(np.arange(8, dtype=np.float32))[:, None]
    found = choose_for_weight(weight, ("e4m3fn",), 0)
    form = FORMATS["e4m3fn"]
    error = np.square(form.round(weight / found.scale[:, None]) * found.scale[:, None] - weight)
    np.testing.assert_allclose(error.sum(axis=1), found.errors, rtol=1e-4)
    one = choose_for_weight(weight, ("e4m3fn",), None)
    assert found.errors.sum() < one.errors


@pytest.mark.parametrize("kind", ["normal", "heavy", "relu"])
def test_a_histogram_knows_nearly_as_much(kind):
    x = drawn(kind, (50, 2000))
    observer = Observer()
    for sample in x:
        observer.add(sample)
    for form in ("e4m3fn", "e3m4"):
        found = choose_for_activation(observer.result(), (form,))
        exact = choose_for_weight(x, (form,), None)
        grid = FORMATS[form]

        def error(scale, grid=grid):
            return np.square(grid.round(x / scale) * scale - x).sum(dtype=np.float64)

        assert error(found.scale) < 1.02 * error(exact.scale)


def test_few_levels_are_exact():
    observer = Observer()
    levels = FORMATS["e4m3fn"].magnitudes.astype(np.float32) * np.float32(0.5)
    observer.add(np.repeat(levels, 10))
    found = choose_for_activation(observer.result(), BYTES)
    assert found.form == "e4m3fn" and found.errors < 1e-3 * np.square(levels).sum()


def test_powers_of_two():
    for kind in ("normal", "heavy"):
        weight = drawn(kind, (6, 300))
        found = choose_for_weight(weight, ("e4m3fn", "e5m2"), 0, power_of_two=True)
        assert np.all(np.frexp(found.scale)[0] == 0.5)
        free = choose_for_weight(weight, ("e4m3fn", "e5m2"), 0)
        assert free.errors.sum() <= found.errors.sum() * 1.05


@pytest.mark.parametrize("weight", [np.zeros((3, 4)), np.zeros((2, 0)), np.full((2, 3), 1e-30)])
def test_weights_of_nothing(weight):
    found = choose_for_weight(weight.astype(np.float32), ("e4m3fn",), 0)
    assert np.all(found.scale >= 2.0**-40) and np.isfinite(found.errors).all()
