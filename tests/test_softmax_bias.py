"""What the corrections of a softmax are and what they are worth, against direct computation."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.softmax_bias import Form, Observed, SoftmaxBiasMeter, SoftmaxRow, softmax

Float64 = NDArray[np.float64]
SCALE = 1 / 40


def observed(
    random: np.random.Generator, shape: tuple[int, int, int, int], mask: str = "none"
) -> Observed:
    """Return a sample of an attention whose probabilities are rounded to steps of SCALE."""
    batch, heads, rows, keys = shape
    kept: Any = None
    if mask == "causal":
        kept = np.tril(np.ones((rows, keys), bool))
    elif mask == "some":  # whole rows among them
        kept = random.random((batch, 1, rows, keys)) < 0.5
    ideal = softmax(random.normal(size=shape), kept)
    rounded = np.rint(ideal * random.uniform(0.9, 1.1, size=(heads, 1, 1)) / SCALE) * SCALE
    step = np.maximum(ideal.max(-1, keepdims=True), 1e-9) * SCALE
    v = random.normal(size=(batch, heads, keys, 3)) + 1
    return Observed(ideal, rounded, np.rint(ideal / step) * step, v, kept)


def corrected(sample: Observed, form: str, value: Float64) -> Float64:
    """Return the probabilities with a correction; `value` is broadcastable to them."""
    mask = sample.mask
    if form in ("row", "row+beta"):
        rows = sample.by_row.copy()
        for place in np.argwhere(mask.any(-1)) if form == "row+beta" else ():
            row, seen = rows[tuple(place)], mask[tuple(place)] > 0
            row[seen] += (1 - row.sum()) / seen.sum()
        return rows
    rounded = sample.rounded * mask.any(-1, keepdims=True)
    return rounded * value if form == "scale" else rounded + value * mask


def decibels(samples: list[Observed], probabilities: list[Float64]) -> float:
    wanted = np.concatenate([(s.ideal @ s.v).ravel() for s in samples])
    found = np.concatenate([(p @ s.v).ravel() for s, p in zip(samples, probabilities, strict=True)])
    return float(10 * np.log10(np.sum(wanted**2) / np.sum((wanted - found) ** 2)))


def metered(samples: list[Observed], heads: int) -> SoftmaxBiasMeter:
    meter = SoftmaxBiasMeter(heads)
    for sample in samples:
        meter.add(sample)
    return meter


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(2, 30))


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, mask=st.sampled_from(["none", "causal", "some"]), seed=st.integers(0, 999))
def test_a_value_is_the_mean_of_what_rounding_took(
    shape: tuple[int, int, int, int], mask: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    samples = [observed(random, shape, mask) for _ in range(3)]
    meter = metered(samples, shape[1])
    masks = [s.mask for s in samples]
    lost = [(s.ideal - s.rounded) * m for s, m in zip(samples, masks, strict=True)]
    axes = (0, 2, 3)
    kept, mass = (sum(a.sum(axes) for a in arrays) for arrays in (masks, lost))
    rows = sum(s.ideal.sum(axes) for s in samples)
    by_head = meter.correction("beta", "head").value
    whole = meter.correction("beta").value
    np.testing.assert_allclose(whole, np.sum(mass) / max(np.sum(kept), 1), atol=1e-12)
    if np.all(np.asarray(kept) > 0):
        np.testing.assert_allclose(by_head[0], np.divide(mass, kept), atol=1e-12)
    if np.all(np.asarray(rows - mass) > 0):
        rho = meter.correction("scale", "head").value
        np.testing.assert_allclose(rho[0], rows / (rows - mass), rtol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    shape=SHAPES,
    mask=st.sampled_from(["none", "causal", "some"]),
    form=st.sampled_from(["none", "scale", "beta", "row", "row+beta"]),
    granularity=st.sampled_from(["tensor", "head"]),
    seed=st.integers(0, 999),
)
def test_worth_is_that_of_the_corrected_result(
    shape: tuple[int, int, int, int], mask: str, form: Any, granularity: Any, seed: int
) -> None:
    """Found on every other sample, measured on those between them."""
    random = np.random.default_rng(seed)
    samples = [observed(random, shape, mask) for _ in range(5)]
    meter = metered(samples, shape[1])
    found = meter.correction(form, granularity)
    probabilities = []
    for number, sample in enumerate(samples):
        others = samples[(number + 1) % 2 :: 2]
        value = metered([_together(others)], shape[1]).correction(form, granularity).value
        probabilities.append(corrected(sample, form, value[:, :, None, None]))
    if not any(np.any(s.ideal != p) for s, p in zip(samples, probabilities, strict=True)):
        return
    assert found.sqnr_db == pytest.approx(decibels(samples, probabilities), abs=1e-6)
    rows = sum(s.ideal.sum() for s in samples)
    if rows:
        assert found.row_sum == pytest.approx(sum(p.sum() for p in probabilities) / rows)


def _together(samples: list[Observed]) -> Observed:
    """Return samples as one batch."""
    kept = None
    if samples[0].kept is not None:
        kept = np.concatenate([s.mask > 0 for s in samples])
    names = ("ideal", "rounded", "by_row", "v")
    ideal, rounded, by_row, v = (
        np.concatenate([getattr(s, name) for s in samples]) for name in names
    )
    return Observed(ideal, rounded, by_row, v, kept)


def test_rows_that_a_mask_hides_whole_count_nothing() -> None:
    random = np.random.default_rng(1)
    sample = observed(random, (1, 2, 5, 12))
    kept = np.ones((5, 12), bool)
    kept[3] = False
    rounded, by_row = sample.rounded.copy(), sample.by_row.copy()
    rounded[:, :, 3] = by_row[:, :, 3] = 0.3  # whatever the kernel makes of them
    hidden = Observed(softmax(np.log(sample.ideal), kept), rounded, by_row, sample.v, kept)
    rest = [0, 1, 2, 4]
    a, b, c = (part[:, :, rest] for part in (sample.ideal, sample.rounded, sample.by_row))
    seen = Observed(a, b, c, sample.v)
    forms: tuple[Form, ...] = ("none", "scale", "beta", "row", "row+beta")
    for form in forms:
        one, other = (metered([s], 2).correction(form, "head") for s in (hidden, seen))
        np.testing.assert_allclose(one.value, other.value)
        assert one.sqnr_db == pytest.approx(other.sqnr_db)
        assert one.row_sum == pytest.approx(other.row_sum)
        assert one.row_sum == pytest.approx(1) or form in ("none", "row")


def test_each_part_of_the_timesteps_has_a_value_of_its_own() -> None:
    random = np.random.default_rng(2)
    meter, direct = SoftmaxBiasMeter(2, 4), [SoftmaxBiasMeter(2) for _ in range(3)]
    for _ in range(4):
        sample = observed(random, (3, 2, 4, 20))
        meter.add(sample, np.array([0, 1, 2]))
        for place, one in enumerate(direct):
            part = slice(place, place + 1)
            codes = sample.rounded[part], sample.by_row[part]
            one.add(Observed(sample.ideal[part], *codes, sample.v[part]))
    value = meter.correction("beta", "timestep").value
    for place, one in enumerate(direct):
        np.testing.assert_allclose(value[place], one.correction("beta", "head").value[0])
    # Where no sample was: what holds for all timesteps.
    np.testing.assert_allclose(value[3], meter.correction("beta", "head").value[0])
    pooled = meter.correction("beta").value
    assert pooled.shape == (4, 2) and np.all(pooled == pooled[0, 0])


def test_a_value_that_fits_its_samples_alone_wins_nothing() -> None:
    """Noise differs from sample to sample: what is found on some does not help others."""
    random = np.random.default_rng(3)
    meter = SoftmaxBiasMeter(1, 50)
    for number in range(50):
        ideal = softmax(random.normal(size=(1, 1, 3, 8)) * 0.1)
        noise = random.choice([-0.01, 0.01]) * np.ones_like(ideal)
        v = random.normal(size=(1, 1, 8, 4)) + 1
        meter.add(Observed(ideal, ideal + noise, ideal, v), number)
    before = meter.correction("none").sqnr_db
    assert meter.correction("beta", "timestep").sqnr_db < before + 0.2


def test_rounding_is_part_of_the_value() -> None:
    meter = metered([observed(np.random.default_rng(4), (2, 2, 5, 40)) for _ in range(4)], 2)
    found = meter.correction("beta", "tensor", lambda value: np.zeros_like(value))
    assert not found.value.any()
    assert found.sqnr_db == pytest.approx(meter.correction("none").sqnr_db)


def test_what_rounding_the_result_costs_hides_small_gains() -> None:
    samples = [observed(np.random.default_rng(5), (2, 2, 5, 40)) for _ in range(2)]
    plain, coarse = SoftmaxBiasMeter(2), SoftmaxBiasMeter(2, step=0.5)
    for sample in samples:
        plain.add(sample)
        coarse.add(sample)
    signal = sum(float(np.square(s.ideal @ s.v).sum()) for s in samples)
    noise = signal / 10 ** (plain.correction("beta").sqnr_db / 10) + 2 * 2 * 2 * 5 * 3 * 0.25 / 12
    wanted = 10 * np.log10(signal / noise)
    assert coarse.correction("beta").sqnr_db == pytest.approx(wanted)


def test_nothing_lost_is_nothing_to_correct() -> None:
    ideal = softmax(np.zeros((1, 1, 2, 4)))
    meter = metered([Observed(ideal, ideal, ideal, np.ones((1, 1, 4, 1)))] * 2, 1)
    none, beta = meter.correction("none"), meter.correction("beta")
    assert none.sqnr_db == np.inf and none.row_sum == 1 and not beta.value.any()
    row = SoftmaxRow.of("a", none, none)
    assert row.sqnr_before_db is None and row.form == "none"
    assert SoftmaxRow.of("a", none, meter.correction("beta", "head")).form == "beta by head"
    assert SoftmaxRow.of("a", none, meter.correction("row+beta")).form == "row+beta"


def test_a_scale_for_each_row_loses_less_where_rows_differ() -> None:
    random = np.random.default_rng(6)
    samples = []
    for _ in range(4):
        sharpness = 10.0 ** -np.arange(9).reshape(-1, 1)  # from one key to all alike
        ideal = softmax(random.normal(size=(1, 2, 9, 60)) * 4 * sharpness)
        step = ideal.max(-1, keepdims=True) * SCALE
        v = random.normal(size=(1, 2, 60, 3)) + 1
        by_row = np.rint(ideal / step) * step
        samples.append(Observed(ideal, np.rint(ideal / SCALE) * SCALE, by_row, v))
    meter = metered(samples, 2)
    none, beta, row, refilled = (
        meter.correction(form).sqnr_db for form in ("none", "beta", "row", "row+beta")
    )
    assert row > beta + 6 > none + 6 and refilled > row
