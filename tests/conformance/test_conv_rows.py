"""Convolutions by rows: the same codes as the other way, whatever the shape, type and memory."""

from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.numerics import linear, rows
from edgeq.numerics.windows import windows
from edgeq.simulate import Simulator
from tests.conformance.quantized import linear_model

Array = NDArray[Any]
NEVER = 1 << 60


@st.composite
def convolutions(draw: Any) -> dict[str, Any]:
    ndim = draw(st.integers(1, 3))
    kernel, strides, dilations = (
        draw(st.tuples(*[st.integers(1, high)] * ndim)) for high in (5, 3, 2)
    )
    pads = draw(st.lists(st.integers(0, 5), min_size=2 * ndim, max_size=2 * ndim))
    if draw(st.booleans()):  # as many columns as before
        reach = (kernel[-1] - 1) * dilations[-1]
        pads[ndim - 1] = draw(st.integers(0, reach))
        pads[-1] = reach - pads[ndim - 1]
    least = [
        max(1, (k - 1) * d + 1 - a - b)
        for k, d, a, b in zip(kernel, dilations, pads[:ndim], pads[ndim:], strict=True)
    ]
    sizes = tuple(size + draw(st.integers(0, 7)) for size in least)
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    channels, outputs = (groups * draw(st.integers(1, 5)) for _ in range(2))
    return {
        "x": (draw(st.integers(1, 5)), channels, *sizes),
        "w": (outputs, channels // groups, *kernel),
        "attributes": {
            "pads": pads,
            "strides": strides,
            "dilations": (1, *dilations[1:]),
            "group": groups,
        },
    }


def codes_of(model: Any, x: Array, columns: int) -> Array:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "COLUMNS", columns)
        found: Array = Simulator(model).run({"x": x})["y"]
    return found


@settings(max_examples=200, deadline=None)
@given(case=convolutions(), zero=st.integers(0, 255), seed=st.integers(0, 2**32))
def test_by_rows_and_otherwise_are_the_same_bits(case: Any, zero: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, case["x"]).astype(np.uint8)
    w = random.integers(-128, 128, case["w"]).astype(np.int8)
    bias = random.integers(-9999, 9999, len(w)).astype(np.int32)
    bias[:1] += 2**24 * (seed % 2)  # some round in float32
    scales: dict[str, Any] = {"w_scale": [0.01] * len(w), "y": (2.0**-5 * 17, 3)}
    model = linear_model(
        "Conv", x.shape, w, bias=bias, attributes=case["attributes"], x_zero=zero, **scales
    )
    by_rows, otherwise = codes_of(model, x, 1), codes_of(model, x, NEVER)
    assert by_rows.size and by_rows.tobytes() == otherwise.tobytes()
    event(f"{min(3, len(np.unique(by_rows)))} different codes at least")


def test_the_comparison_has_two_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    columns = rows.columns

    def counted(*arguments: Any) -> Array:
        calls.append(1)
        return columns(*arguments)

    monkeypatch.setattr(rows, "columns", counted)
    model = linear_model("Conv", (2, 3, 5, 7), np.ones((2, 3, 3, 3), np.int8))
    x = np.ones((2, 3, 5, 7), np.uint8)
    codes_of(model, x, NEVER)
    assert not calls
    codes_of(model, x, 1)
    assert calls


def test_sums_beyond_float32_are_carried_by_float64() -> None:
    x = np.full((1, 60, 40, 40), 255, np.uint8)
    w = np.full((1, 60, 5, 5), 127, np.int8)
    x[0, 0, 0, 0] = 254
    model = linear_model("Conv", x.shape, w, x_scale=1.0, w_scale=1.0, y=(200000.0, 0))
    assert 60 * 25 * 127 * 255 > 2**24
    assert codes_of(model, x, 1).tobytes() == codes_of(model, x, NEVER).tobytes()
    acc = linear.conv(x.astype(np.float64), w.astype(np.float64), windows((40, 40), (5, 5)))
    expected = np.rint(acc.astype(np.float32) * (np.float32(1) / np.float32(200000.0)))
    assert codes_of(model, x, 1).tobytes() == expected.astype(np.uint8).tobytes()


LAYOUTS: dict[str, tuple[tuple[Any, ...], int, bool]] = {
    "three by three": (((8, 8), (3, 3)), 6, True),
    "pointwise": (((8, 8), (1, 1)), 4, False),
    "few columns": (((8, 8), (3, 3)), 1, False),
    "rows apart": (((9, 40), (3, 3), (1, 1), (2, 1)), 4, False),
    "columns apart": (((8, 40), (3, 3), (1, 1), (1, 2)), 4, True),
    "one row": (((8, 40), (1, 3), (1, 1), (2, 1)), 4, True),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_which_convolutions_are_done_by_rows(name: str) -> None:
    arguments, samples, expected = LAYOUTS[name]
    sizes, kernel, *rest = arguments
    layout = windows(sizes, kernel, *rest)
    assert rows.suits(layout, samples) is expected


def test_rows_read_nothing_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(use: str, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.full(shape, 3e38, dtype)

    random = np.random.default_rng(5)
    x = random.integers(0, 256, (3, 4, 9, 20)).astype(np.uint8)
    w = random.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
    attributes = {"pads": [4, 0, 5, 2], "strides": [2, 1]}
    model = linear_model("Conv", x.shape, w, attributes=attributes, x_zero=7)
    clean = codes_of(model, x, 1)
    monkeypatch.setattr(rows, "scratch", poisoned)
    monkeypatch.setattr(linear, "scratch", poisoned)
    assert codes_of(model, x, 1).tobytes() == clean.tobytes()


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_every_padding_that_keeps_the_length_of_a_row(kernel: int, dilation: int) -> None:
    random = np.random.default_rng(kernel)
    x = random.integers(0, 256, (2, 3, 4, 6)).astype(np.uint8)
    w = random.integers(-128, 128, (2, 3, 2, kernel)).astype(np.int8)
    reach = (kernel - 1) * dilation
    for begin in range(reach + 1):
        attributes = {"pads": [0, begin, 1, reach - begin], "dilations": [1, dilation]}
        model = linear_model("Conv", x.shape, w, attributes=attributes, x_zero=99)
        by_rows = codes_of(model, x, 1)
        assert by_rows.shape == (2, 2, 4, 6)
        assert by_rows.tobytes() == codes_of(model, x, NEVER).tobytes()
