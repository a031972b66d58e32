"""Comparing bits, and inputs that hunt ties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgeq.errors import DataError, VerificationError
from edgeq.numerics.affine import QParams
from edgeq.numerics.qtype import INT8, UINT8
from edgeq.stimuli import KINDS, StimulusInput, other_sizes, resized, stimuli, stimulus
from edgeq.verify import Comparison, compare, verify


def f32(values: object) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def u8(values: object) -> NDArray[np.uint8]:
    return np.array(values, np.uint8)


NAN, OTHER_NAN = (np.array([bits], np.uint32).view(np.float32) for bits in (0x7FC00000, 0x7FC00001))

ROWS = [
    # rule                     expected               actual                   mismatches
    ("the same", u8([1, 2]), u8([1, 2]), 0),
    ("one code", u8([1, 2]), u8([1, 3]), 1),
    ("negative zero", f32([0.0]), f32([-0.0]), 1),
    ("one ulp", f32([1.0]), np.nextafter(f32([1.0]), np.float32(2)), 1),
    ("the same NaN", NAN, NAN, 0),
    ("another NaN", NAN, OTHER_NAN, 1),
    ("dtype", u8([1, 2]), np.array([1, 2], np.int8), 2),
    ("byte order", np.array([1], "<i4"), np.array([1], ">i4"), 1),
    ("shape", np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 6),
    ("empty, another shape", np.zeros((0, 3), np.uint8), np.zeros((0, 2), np.uint8), 1),
    ("empty", np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), 0),
    ("scalar", np.array(3, np.int64), np.array(4, np.int64), 1),
    ("strided", np.arange(8, dtype=np.int16)[::2], np.arange(4, dtype=np.int16) * 2, 0),
    ("16 bytes", np.array([1 + 2j]), np.array([1 + 3j]), 1),
    ("bool", np.array([True]), np.array([False]), 1),
    ("float64", np.array([0.1]), np.array([0.1]), 0),
]


@pytest.mark.parametrize(("rule", "expected", "actual", "mismatches"), ROWS)
def test_compare(rule, expected, actual, mismatches):
    count, first = compare("t", expected, actual)
    assert count == mismatches
    assert (first is None) == (mismatches == 0)


def test_the_first_difference_says_where_and_what():
    expected = f32([[1, 2], [3, 4]])
    actual = f32([[1, 2], [-0.0, 5]])
    _, first = compare("conv", expected, actual, sample=7)
    assert first is not None and first.index == (1, 0) and first.sample == 7
    assert (first.expected_bits, first.actual_bits) == ("40400000", "80000000")
    assert str(first) == (
        "tensor 'conv', feed 7, index [1, 0]: expected 3.0 (0x40400000), found -0.0 (0x80000000)"
    )


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3), elements=st.floats(width=32)),
    st.data(),
)
def test_every_flipped_bit_is_seen(array, data):
    flat = data.draw(st.integers(0, array.size - 1))
    bit = data.draw(st.integers(0, 31))
    other = array.copy()
    other.reshape(-1).view(np.uint32)[flat] ^= np.uint32(1 << bit)
    count, first = compare("t", array, other)
    assert count == 1 and first is not None
    assert np.ravel_multi_index(first.index, array.shape) == flat
    assert compare("t", array, array.copy()) == (0, None)


def test_a_comparison_accumulates_and_keeps_the_first():
    comparison = Comparison()
    comparison.add({"a": np.zeros(3), "b": np.zeros(2)}, {"b": np.zeros(2), "a": np.zeros(3)})
    comparison.add({"a": np.zeros(3), "b": np.zeros(2)}, {"a": np.ones(3), "b": np.ones(2)}, {})
    verdict = comparison.verdict()
    assert (verdict.tensors, verdict.compared, verdict.mismatches) == (2, 10, 5)
    assert [(c.name, c.compared, c.mismatches) for c in verdict.counts] == [
        ("a", 6, 3),
        ("b", 4, 2),
    ]
    assert verdict.first is not None and verdict.first.tensor == "a" and verdict.first.sample == 1
    assert verdict.evidence is not None and verdict.evidence.actual.tolist() == [1, 1, 1]
    assert not verdict.same
    with pytest.raises(VerificationError, match=r"5 of 10 elements differ.*tensor 'a', feed 1"):
        verdict.raise_for_mismatch()


@pytest.mark.parametrize("feeds", [[], [{}]])
def test_nothing_compared_is_no_success(feeds):
    with pytest.raises(VerificationError, match="nothing was compared"):
        verify(lambda f: {}, lambda f: {}, feeds)


def test_a_missing_tensor_is_no_success():
    with pytest.raises(VerificationError, match="no tensor 'b'"):
        verify(lambda f: {"b": np.zeros(1)}, lambda f: {"a": np.zeros(1)}, [{}])


def test_verify_streams():
    seen: list[int] = []
    verdict = verify(
        lambda f: {"y": f["x"] + 1}, lambda f: {"y": f["x"] + 1},
        ({"x": np.full(3, i)} for i in range(4)), seen.append,
    )  # fmt: skip
    assert verdict.same and verdict.compared == 12 and seen == [1, 2, 3, 4]
    verdict.raise_for_mismatch()


# Stimuli.

QPARAMS = QParams(UINT8, f32(0.03), np.array(117, np.int32))
REALS = StimulusInput("x", np.dtype(np.float32), (2, 3, 16, 16), QPARAMS)
CODES = StimulusInput("x", np.dtype(np.uint8), (2, 3, 16, 16), QPARAMS)


def codes_of(item, kind, number=0):
    array = stimulus(kind, item, 0, number)
    return QPARAMS.quantize(array) if array.dtype.kind == "f" else array


@pytest.mark.parametrize("item", [REALS, CODES], ids=["reals", "codes"])
def test_kinds_are_what_they_say(item):
    assert len(np.unique(codes_of(item, "random"))) == 256
    assert np.unique(codes_of(item, "zeros")).tolist() == [117]
    assert np.unique(codes_of(item, "low")).tolist() == [0]
    assert np.unique(codes_of(item, "high")).tolist() == [255]
    board = codes_of(item, "checkerboard")
    assert np.unique(board).tolist() == [0, 255] and board[0, 0, 0, 0] != board[0, 0, 0, 1]
    assert len(np.unique(codes_of(item, "equal"))) == 1
    assert len(np.unique(codes_of(item, "ramp"))) == 256
    assert {0, 255, 117} <= set(np.unique(codes_of(item, "sparse")).tolist())


def test_near_ties_stand_at_both_sides_of_a_tie():
    x = stimulus("ties", REALS)
    ratio = x.astype(np.float64) / np.float64(np.float32(0.03))
    assert np.abs(ratio - np.floor(ratio) - 0.5).max() < 1e-4
    # A rule that rounds half away, or adds the zero point before rounding, must be seen to differ.
    scaled = x / np.float32(0.03)
    away = np.clip(np.trunc(scaled + np.copysign(0.5, scaled)) + 117, 0, 255)
    early = np.clip(np.rint(scaled + np.float32(117)), 0, 255)
    codes = QPARAMS.quantize(x)
    assert np.count_nonzero(away != codes) > 100 and np.count_nonzero(early != codes) > 100


def test_outside_saturates_and_holds_negative_zeros():
    x = stimulus("outside", REALS)
    low, high = QPARAMS.range
    assert x.min() < low and x.max() > high and np.isfinite(x).all()
    assert (np.signbit(x) & (x == 0)).any()


def test_outside_of_the_largest_range_is_finite():
    qparams = QParams(UINT8, f32(1e36), np.array(117, np.int32))
    item = StimulusInput("x", np.dtype(np.float32), (2, 3, 16, 16), qparams)
    x = stimulus("outside", item)
    assert np.isfinite(x).all() and (x == np.finfo(np.float32).max).any()


def test_the_same_seed_gives_the_same_feeds():
    first, again, other = (list(stimuli([REALS, CODES], seed=s)) for s in (1, 1, 2))
    assert len(first) == 2 * len(KINDS)
    assert [f["x"].tobytes() for f in first] == [f["x"].tobytes() for f in again]
    assert [f["x"].tobytes() for f in first] != [f["x"].tobytes() for f in other]


def test_inputs_meet_in_different_kinds():
    left, right = (StimulusInput(n, np.dtype(np.uint8), (64,), QPARAMS) for n in "ab")
    feeds = list(stimuli([left, right], rounds=1))
    assert any(f["a"].max() == 0 and f["b"].min() == 255 for f in feeds)


@given(st.sampled_from(KINDS), st.sampled_from([UINT8, INT8]), st.integers(0, 5), st.data())
def test_codes_stay_in_range(kind, qtype, number, data):
    zero = data.draw(st.integers(qtype.qmin, qtype.qmax))
    item = StimulusInput(
        "x", qtype.dtype, (3, 5), QParams(qtype, f32(0.1), np.array(zero, np.int32))
    )
    array = stimulus(kind, item, 3, number)
    assert array.dtype == qtype.dtype and array.shape == (3, 5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.bool_])
def test_inputs_that_are_not_quantized_stay_within_what_was_seen(kind, dtype):
    item = StimulusInput("ids", np.dtype(dtype), (4, 9), None, 0.0, 1.0)
    array = stimulus(kind, item)
    assert array.dtype == dtype and array.min() >= 0 and array.max() <= 1


def test_integers_are_walked_from_end_to_end():
    item = StimulusInput("ids", np.dtype(np.int64), (4, 40), None, 3, 41)
    assert np.unique(stimulus("ramp", item)).tolist() == list(range(3, 42))
    assert np.unique(stimulus("checkerboard", item)).tolist() == [3, 41]
    assert np.unique(stimulus("low", item, number=1)).tolist() == [4]
    assert np.unique(stimulus("high", item)).tolist() == [41]
    assert np.unique(stimulus("zeros", item)).tolist() == [3]
    assert len(np.unique(stimulus("random", item))) > 20


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_may_have_no_axis(kind):
    step = StimulusInput("t", np.dtype(np.int64), (), None, 5, 9)
    found = [stimulus(kind, step, number=number) for number in range(3)]
    assert all(isinstance(a, np.ndarray) and a.dtype == np.int64 for a in found)
    assert all(a.shape == () and 5 <= a <= 9 for a in found)
    for qparams in (QPARAMS, None):
        real = stimulus(kind, StimulusInput("x", np.dtype(np.float32), (), qparams))
        assert isinstance(real, np.ndarray) and real.shape == () and real.dtype == np.float32


def sized(name, shape, symbols):
    return StimulusInput(name, np.dtype(np.int64), shape, None, 0, 9, symbols)


SIZES = [
    # what the inputs are, the largest sizes seen, the sizes that are tried
    ("nothing open", [sized("a", (1, 4), (None, None))], {}, []),
    ("samples", [sized("a", (1, 4), ("n", None))], {}, [{"n": 3}]),
    ("three samples", [sized("a", (3, 4), ("n", None))], {}, [{"n": 2}]),
    (
        "text",
        [sized("a", (1, 64), ("n", "l")), sized("b", (1, 64), ("n", "l"))],
        {"n": 1, "l": 64},
        [{"n": 3, "l": 32}, {"n": 2, "l": 17}, {"n": 5, "l": 3}, {"n": 3, "l": 2}],
    ),
    (
        "longer samples were seen",
        [sized("a", (1, 8), ("n", "l"))],
        {"l": 20},
        [{"n": 3, "l": 10}, {"n": 2, "l": 17}, {"n": 5, "l": 3}, {"n": 3, "l": 2}],
    ),
    ("short", [sized("a", (1, 2), ("n", "l"))], {}, [{"n": 3, "l": 1}]),
    ("one element", [sized("a", (1, 1), ("n", "l"))], {}, [{"n": 3, "l": 1}]),
    (
        "two lengths",
        [sized("a", (1, 6, 40), (None, "k", "l"))],
        {},
        [{"k": 3, "l": 20}, {"k": 2, "l": 17}, {"k": 3, "l": 3}, {"k": 2, "l": 2}],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "seen", "tried"), [r[1:] for r in SIZES], ids=[r[0] for r in SIZES]
)
def test_other_sizes(inputs, seen, tried):
    assert list(other_sizes(inputs, seen)) == tried


def test_no_size_is_beyond_what_is_proven():
    item = sized("a", (1, 20), ("n", "l"))
    assert list(other_sizes([item], max_dim=3)) == [{"n": 3, "l": 3}, {"n": 2, "l": 2}]


def test_an_input_takes_other_sizes():
    item = sized("a", (1, 6, 40), ("n", None, "l"))
    assert resized(item, {"n": 3, "l": 17, "k": 9}).shape == (3, 6, 17)
    assert resized(StimulusInput("b", np.dtype(np.int64), (2, 2)), {"n": 3}).shape == (2, 2)


@pytest.mark.parametrize("inputs", [[], [StimulusInput("x", np.dtype(np.uint8), (2, 0), QPARAMS)]])
def test_nothing_to_feed_is_refused(inputs):
    with pytest.raises(DataError):
        next(stimuli(inputs))


def test_a_feed_that_is_compared_twice_keeps_its_number():
    comparison = Comparison()
    for sample in (0, 0, 1):
        comparison.add({"a": np.zeros(3)}, {"a": np.zeros(3)}, {}, sample)
    comparison.add({"a": np.zeros(3)}, {"a": np.ones(3)}, {}, 1)
    first = comparison.verdict().first
    assert first is not None and first.sample == 1
