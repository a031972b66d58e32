"""The clip ratio observer: the share clipped converges to the target, in constant memory."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from edgeq.clip_ratio import SMALLEST, ClipMeter
from edgeq.errors import RecipeError
from edgeq.numerics.qtype import UINT8
from edgeq.observe import Observer, choose_range
from edgeq.recipe import QuantSpec, Rule, load_recipe


def ranges(arrays, ratios):
    meter = ClipMeter(ratios)
    for array in arrays:
        array = np.asarray(array, np.float32)
        meter.add(array, float(array.min()), float(array.max()))
    return meter.result()


def shares(values, low, high) -> tuple[float, float]:
    return float((values < low).mean()), float((values > high).mean())


@pytest.mark.parametrize("ratio", [1e-3, 1e-2, 5e-2])
@pytest.mark.parametrize(
    ("rule", "draw", "sides"),
    [
        ("normal", lambda random, n: random.normal(2e4, 1, n) - 2e4, 2),
        ("heavy tails", lambda random, n: random.standard_t(3, n), 2),
        ("skewed, both signs", lambda random, n: random.gumbel(0, 1, n), 2),
        ("behind a Relu", lambda random, n: np.maximum(random.normal(0, 1, n), 0), 1),
        ("exponential", lambda random, n: random.exponential(1e-6, n), 1),
        ("negative", lambda random, n: -random.lognormal(0, 1, n), -1),
    ],
)
def test_the_share_clipped_is_the_target(rule, draw, sides, ratio):
    random = np.random.default_rng(0)
    low, high = ranges((draw(random, 20_000) for _ in range(200)), [ratio])[ratio]
    below, above = shares(draw(random, 2_000_000), low, high)
    parts = {2: (ratio / 2, ratio / 2), 1: (0, ratio), -1: (ratio, 0)}[sides]
    np.testing.assert_allclose((below, above), parts, rtol=0.25)
    assert sides != 1 or low == 0
    assert sides != -1 or high == 0


@pytest.mark.parametrize("count", [16, 64, 500])
def test_a_share_of_less_than_one_element_of_a_sample(count):
    random = np.random.default_rng(1)
    found = [ranges(random.exponential(1, (1000, count)), [0.004])[0.004][1] for _ in range(10)]
    assert 0.5 < np.exp(-np.array(found)).mean() / 0.004 < 1.5


def test_an_outlier_does_not_stay():
    random = np.random.default_rng(2)
    arrays = list(random.normal(size=(200, 5000)))
    arrays[0][0] = 1e6  # the first range is a million wide
    low, high = ranges(arrays, [0.01])[0.01]
    assert high < 1e6 * SMALLEST * 1.01 and -4 < low < -2


@pytest.mark.parametrize(
    ("rule", "arrays", "expected"),
    [
        ("nothing", [], (0, 0)),
        ("zeros", [np.zeros(5)] * 3, (0, 0)),
        ("one sample", [[-1.0, 2.0, 0.5]], (-1, 2)),
        ("the second side comes late", [[1.0, 2.0], [-3.0, 1.0]], (-3, 2)),
        ("never beyond what was seen", [[1.0]] + [[2.0]] * 500, (0, 2)),
    ],
)
def test_few_values(rule, arrays, expected):
    low, high = ranges(arrays, [0.25])[0.25]
    assert low == expected[0] and 0.99 * expected[1] <= high <= expected[1]


def test_several_shares_at_once_are_each_as_alone():
    arrays = np.random.default_rng(3).normal(size=(50, 3000))
    ratios = (0.001, 0.01, 0.1)
    assert ranges(arrays, ratios) == {r: ranges(arrays, [r])[r] for r in ratios}


def test_memory_does_not_grow():
    def size(meter):
        ends = [end for pair in meter._ends.values() for end in pair]
        return sum(sys.getsizeof(v) for end in ends for v in vars(end).values())

    meter, random = ClipMeter([0.01]), np.random.default_rng(4)
    sizes = set()
    for array in random.normal(size=(300, 100)).astype(np.float32):
        meter.add(array, float(array.min()), float(array.max()))
        sizes.add(size(meter))
    assert len(sizes) == 1


def test_recipes_ask_for_what_their_observers_read():
    recipe = load_recipe("int8", {"activation.observer": "clip_ratio"})
    spec = recipe.activation
    ratio = spec.clip_ratio(8)
    assert ratio == spec.clip_alpha / 255 and ratio in recipe.clip_ratios()
    observer = Observer(clip_ratios=recipe.clip_ratios())
    for array in np.random.default_rng(5).normal(size=(100, 5000)).astype(np.float32):
        observer.add(array)
    low, high = choose_range(observer.result(), spec, UINT8)
    assert -5 < low < -3 and 3 < high < 5
    assert load_recipe("int8").clip_ratios() == ()
    rule = Rule("Conv", activation=(("clip_alpha", 0.5), ("observer", "clip_ratio")))
    assert 0.5 / 15 in load_recipe("int8").with_rules([rule]).clip_ratios()


@pytest.mark.parametrize("alpha", ["0", "-0.5", "1.5"])
def test_alphas_that_are_none(alpha):
    with pytest.raises(RecipeError, match="clip_alpha must be above 0"):
        load_recipe("int8", {"activation.clip_alpha": alpha})


def test_a_wider_share_is_a_narrower_range():
    spec = QuantSpec("uint8", observer="clip_ratio")
    widths = []
    for alpha in (0.01, 0.1, 1.0):
        wide = replace(spec, clip_alpha=alpha)
        arrays = np.random.default_rng(6).normal(size=(100, 5000))
        low, high = ranges(arrays, [wide.clip_ratio(8)])[wide.clip_ratio(8)]
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2]
