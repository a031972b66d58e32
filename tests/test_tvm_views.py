"""Views: what moves elements equals numpy, and kernels read the places that views say."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm", reason="needs TVM: pip install edgeq[tvm]")

from edgeq.tvm.builder import Builder
from edgeq.tvm.pointwise import Pointwise
from edgeq.tvm.program import Buffer, Layout, Program, Tensor
from edgeq.tvm.views import View, blocks_of, separated, stride_of
from tests.tvm_lowering import load

pytestmark = pytest.mark.tvm
Move = Callable[[Any], Any]


def a_slice(draw: Any, size: int) -> slice:
    """Return a slice of an axis, never empty."""
    return slice(draw(st.integers(0, size - 1)), None, draw(st.sampled_from([1, 2, 3, -1, -2])))


def a_move(draw: Any, shape: tuple[int, ...]) -> Move:
    """Return one operation that moves elements of an array of that shape."""
    rank = len(shape)
    kind = draw(st.sampled_from(["transpose", "join", "cut", "slice", "split", "expand", "depth"]))
    if kind == "transpose":
        order = draw(st.permutations(range(rank)))
        return lambda x: x.transpose(order)
    if kind == "join" and rank > 1:
        at = draw(st.integers(0, rank - 2))
        return lambda x: x.reshape(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
    if kind == "cut" and shape[0] % 2 == 0:
        return lambda x: x.reshape(2, shape[0] // 2, *shape[1:])
    if kind == "split":
        axis, part = draw(st.integers(0, rank - 1)), draw(st.integers(0, 1))
        return lambda x: np.array_split(x, 2, axis)[0 if x.shape[axis] == 1 else part]
    if kind == "expand":
        count = draw(st.integers(1, 3))
        return lambda x: np.repeat(x[..., None], count, -1)
    if kind == "depth" and rank == 3 and shape[0] % 2 == 0:
        half, height, width = shape[0] // 2, shape[1], shape[2]
        wide = (half, height * 2, width)
        return lambda x: x.reshape(2, half, height, width).transpose(1, 2, 0, 3).reshape(wide)
    index = tuple(a_slice(draw, size) for size in shape)
    return lambda x: x[index]


@st.composite
def moved_tensors(draw: Any) -> tuple[Tensor, View, Any]:
    """Return a tensor, a view of it after some moves, and numpy's result of these."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    layout = Layout(shape, tuple(draw(st.permutations(range(len(shape))))))
    memory = np.random.default_rng(0).permutation(int(np.prod(shape))).astype(np.int32)
    tensor = Tensor("x", Buffer("x", "int32", memory.size, "input"), layout)
    view, expected = View.of(tensor), layout.from_memory(memory)
    for _ in range(draw(st.integers(0, 4))):
        move = a_move(draw, expected.shape)
        found = view.moved(move)
        if found is None:
            break
        view, expected = found, move(expected)
    return tensor, view, expected


def memory_of(tensor: Tensor) -> Any:
    return np.random.default_rng(0).permutation(tensor.buffer.elements).astype(np.int32)


@settings(deadline=None)
@given(moved_tensors())
def test_any_composition_of_moves_equals_numpy(case):
    tensor, view, expected = case
    assert np.array_equal(memory_of(tensor)[view.places], expected)


@settings(deadline=None, max_examples=30)
@given(case=moved_tensors())
def test_kernels_read_where_views_say(case, tmp_path_factory):
    tensor, view, expected = case
    builder = Builder()
    y = builder.tensor("y", "int32", Layout.plain(expected.shape), "output")
    builder.write(Pointwise.of_view(view), View.of(y), "Elementwise y")
    given_x = Tensor("x", tensor.buffer, Layout.plain((tensor.buffer.elements,)))
    program = Program(tuple(builder.kernels), builder.constants, (given_x,), (y,), ())
    (compiled,) = load([program], "vector", tmp_path_factory.mktemp("kernel"))
    assert np.array_equal(compiled.run({"x": memory_of(tensor)})["y"], expected)


@given(st.lists(st.integers(-30, 30), min_size=1, max_size=12))
def test_formulas_of_an_axis_are_right_or_there_are_none(steps):
    axis = np.cumsum([0, *steps])
    index = np.arange(len(axis))
    step = stride_of(axis)
    assert step is None or np.array_equal(axis, index * step)
    if step is None and (found := blocks_of(axis)) is not None:
        size, outer, inner = found
        assert np.array_equal(axis, index // size * outer + index % size * inner)


def test_blocks_are_found():
    assert blocks_of(np.array([0, 1, 2, 10, 11, 12])) == (3, 10, 1)
    assert blocks_of(np.array([0, 0, 5, 5])) == (2, 5, 0)
    assert blocks_of(np.array([0, 1, 2, 10, 11, 13])) is None


def test_what_is_no_sum_over_the_axes_is_no_view():
    buffer = Buffer("x", "int32", 6, "workspace")
    assert separated(buffer, np.array([[0, 1], [2, 4]])) is None
    assert separated(buffer, np.zeros((0, 2), np.int64)) is None
    found = separated(buffer, np.array([[5, 3], [4, 2]]))
    assert found is not None and [list(axis) for axis in found.axes] == [[0, -1], [0, -2]]
