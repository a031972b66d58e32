"""Integer accumulators: exact beyond 2**24, and the dtype that carries them is proven per node."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.errors import ModelError
from edgeq.numerics import linear
from edgeq.numerics.parallel import for_each
from edgeq.numerics.windows import at, planes, windows
from edgeq.simulate import Simulator
from tests.conformance.quantized import linear_model

Array = NDArray[Any]


def direct_conv(x: Array, w: Array, layout: Any, groups: int, zero: int) -> Array:
    """The definition, in int64: every product of every window."""
    units = x.astype(np.int64) - zero
    padded = np.zeros((*x.shape[:2], *layout.padded), np.int64)
    inside = tuple(slice(b, b + i) for b, i in zip(layout.begin, layout.input, strict=True))
    padded[(slice(None), slice(None), *inside)] = units
    out = np.zeros((len(x), len(w), *layout.output), np.int64)
    per_group, channels = len(w) // groups, w.shape[1]
    for index, offset in zip(np.ndindex(*layout.kernel), layout.offsets(), strict=True):
        visited = at(padded, offset)
        for group in range(groups):
            mine = visited[:, group * channels : (group + 1) * channels]
            rows = slice(group * per_group, (group + 1) * per_group)
            share = w[(rows, slice(None), *index)].astype(np.int64)
            out[:, rows] += np.einsum("nc...,oc->no...", mine, share)
    return out


@st.composite
def convolutions(draw: Any) -> tuple[Any, ...]:
    ndim = draw(st.integers(1, 3))
    axes = [st.tuples(*[st.integers(1, high)] * ndim) for high in (3, 3, 2)]
    kernel, strides, dilations = (draw(a) for a in axes)
    pads = draw(st.tuples(*[st.integers(0, 2)] * (2 * ndim)))
    sizes = tuple(
        (k - 1) * d + 1 + draw(st.integers(0, 6)) for k, d in zip(kernel, dilations, strict=True)
    )
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.integers(1, 3))
    outputs = groups * draw(st.integers(1, 5))
    return ndim, kernel, strides, dilations, pads, sizes, groups, channels, outputs


@settings(max_examples=150, deadline=None)
@given(
    case=convolutions(), zero=st.integers(0, 255), samples=st.integers(1, 3), seed=st.integers(0)
)
def test_conv_equals_the_definition(case: Any, zero: int, samples: int, seed: int) -> None:
    _, kernel, strides, dilations, pads, sizes, groups, channels, outputs = case
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (samples, channels, *sizes)).astype(np.uint8)
    w = random.integers(-128, 128, (outputs, channels // groups, *kernel)).astype(np.int8)
    layout = windows(sizes, kernel, strides, dilations, pads)
    found = np.full((samples, outputs, *layout.output), np.nan)

    def store(n: slice, c: slice, rows: slice, acc: Array) -> None:
        linear.put(found, n, c, rows, acc)

    matrices = linear.conv_weights(w.astype(np.float32), groups)
    linear.conv_blocks(x, zero, matrices, layout, store)
    assert np.array_equal(found, direct_conv(x, w, layout, groups, zero))


def test_planes_hold_every_window() -> None:
    layout = windows((7, 9), (3, 2), (2, 3), (2, 1), (1, 0, 2, 3))
    target = planes(layout)
    assert len(target.taps) == 6
    last = [(o - 1) * step for o, step in zip(layout.output, (target.row, 1), strict=True)]
    assert sum(last) + target.reach < target.area


RULES = {
    "two minima": (np.int8(-128), np.uint8(0), 128, 1),  # (-128) * (-128)
    "just below 2**24": (np.int8(127), np.uint8(255), 0, 518),
    "just beyond 2**24": (np.int8(-127), np.uint8(255), 0, 519),
    "far beyond 2**24": (np.int8(127), np.uint8(255), 0, 60000),
    "odd sum beyond 2**24": (np.int8(1), np.uint8(255), 0, 65795),
}


@pytest.mark.parametrize("rule", RULES)
def test_extreme_accumulators(rule: str) -> None:
    weight, code, zero, depth = RULES[rule]
    x = np.full((1, depth), code, np.uint8)
    w = np.full((depth, 3), weight, np.int8)
    bias = np.array([0, 1, -1], np.int32)
    acc = depth * (int(code) - zero) * int(weight) + bias.astype(np.int64)
    model = linear_model(
        "Gemm", x.shape, w, x_zero=zero, bias=bias, y=None, w_scale=1.0, x_scale=0.5
    )
    assert np.array_equal(
        Simulator(model).run({"x": x})["y"], (acc.astype(np.float32) * np.float32(0.5))[None]
    )


@pytest.mark.parametrize("bias", [2**24, 2**24 + 1, 2**30 + 1, -(2**30) - 3, 2**31 - 60000])
def test_a_bias_of_any_size_is_rounded_once_with_the_sum(bias: int) -> None:
    """`float32(acc + bias)` must be one rounding, although the products are summed in float32."""
    random = np.random.default_rng(abs(bias))
    x = random.integers(0, 256, (64, 2)).astype(np.uint8)
    w = random.integers(-50, 50, (2, 4)).astype(np.int8)
    values = np.array([bias, 5, bias // 2, 0], np.int32)
    model = linear_model("Gemm", x.shape, w, bias=values, y=None, w_scale=1.0, x_scale=0.5)
    acc = x.astype(np.int64) @ w.astype(np.int64) + values
    expected = acc.astype(np.float32) * np.float32(0.5)
    assert Simulator(model).run({"x": x})["y"].tobytes() == expected.tobytes()


def test_accumulators_beyond_int32_are_refused_by_name() -> None:
    w = np.full((70000, 1), 127, np.int8)
    with pytest.raises(ModelError, match=r"'the_linear'.*beyond int32"):
        Simulator(linear_model("Gemm", (1, 70000), w, y=None))


def test_dynamic_accumulators_beyond_int32_are_refused_by_name() -> None:
    model = linear_model("MatMul", (1, 70000), None, w_shape=(70000, 1))
    feeds = {"x": np.zeros((1, 70000), np.uint8), "w": np.zeros((70000, 1), np.uint8)}
    with pytest.raises(ModelError, match=r"'the_linear'.*beyond int32"):
        Simulator(model).run(feeds)


@pytest.mark.parametrize(
    ("products", "name"), [(2**24 - 1, "float32"), (2**24, "float64"), (2**31 - 1, "float64")]
)
def test_the_dtype_follows_the_bound(products: int, name: str) -> None:
    assert linear.exact_dtype(products).__name__ == name


def test_float32_would_be_wrong_beyond_the_bound() -> None:
    """The bound matters: at 2**24 + 1 a float32 sum loses the last bit."""
    w = np.full((1, 1, 65795), 1, np.int8)
    x = np.full((65795,), 255, np.uint8)
    exact = int(x.astype(np.int64).sum())
    in_float32 = float((w[0, 0].astype(np.float32) * x.astype(np.float32)).sum(dtype=np.float32))
    assert exact == 16777725
    assert in_float32 != exact


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    x = random.integers(0, 256, (9, 8, 40, 40)).astype(np.uint8)
    w = random.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8)
    model = linear_model("Conv", x.shape, w, attributes={"pads": [1, 1, 1, 1]})
    simulator = Simulator(model)
    many = simulator.run({"x": x})["y"]
    monkeypatch.setattr("edgeq.numerics.parallel.THREADS", 1)
    assert simulator.run({"x": x})["y"].tobytes() == many.tobytes()
    assert isinstance(model, ir.Model)


def test_nothing_is_read_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reused memory holds anything; the largest float must neither show nor overflow."""

    def poisoned(use: str, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.full(shape, 3e38 if np.dtype(dtype).kind == "f" else 77, dtype)

    random = np.random.default_rng(5)
    x = random.integers(0, 256, (3, 4, 9, 8)).astype(np.uint8)
    for group in (1, 4):
        w = random.integers(-127, 128, (4, 4 // group, 3, 3)).astype(np.int8)
        attributes = {"pads": [1, 0, 2, 1], "strides": [2, 1], "group": group}
        scales: dict[str, Any] = {"x_scale": 1.0, "w_scale": 1.0, "y": (0.1, 3)}  # M above 1
        model = linear_model("Conv", x.shape, w, attributes=attributes, x_zero=7, **scales)
        simulator = Simulator(model)
        clean = simulator.run({"x": x})["y"]
        with monkeypatch.context() as patch:
            patch.setattr("edgeq.numerics.linear.scratch", poisoned)
            patch.setattr("edgeq.numerics.windows.scratch", poisoned)
            assert simulator.run({"x": x})["y"].tobytes() == clean.tobytes()


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def work(index: int) -> None:
        if index == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        for_each(8, work)
