"""What is done to weights piece by piece gives the bits of what is done to the whole."""

import numpy as np
import onnx_ir as ir
import pytest

import edgeq.exactness
import edgeq.weight_range
from edgeq.exactness import DETERMINED, Grid, grid_of
from edgeq.graph import Editor
from edgeq.numerics import magnitudes
from edgeq.numerics.affine import QParams
from edgeq.numerics.magnitudes import magnitude_sums, pieces
from edgeq.numerics.qtype import INT8
from edgeq.operators import large_weights
from edgeq.operators.large_weights import multiply
from edgeq.qdq import Operand, operand
from edgeq.recipe import QuantSpec
from edgeq.weight_range import choose_weight_range

RNG = np.random.default_rng(0)


def test_pieces_cover_the_axis_once(monkeypatch):
    monkeypatch.setattr(magnitudes, "PIECE", 20)
    found = list(pieces((7, 6, 2), 1))
    assert np.concatenate([np.arange(6)[p] for p in found]).tolist() == list(range(6))
    assert len(found) == 6 and list(pieces((3, 0), 0)) == [slice(0, 3)]


@pytest.mark.parametrize("shape", [(9,), (9, 5), (4, 9, 5), (9, 5, 2, 2)])
@pytest.mark.parametrize("size", [1, 13, 10**6])
def test_magnitude_sums(monkeypatch, shape, size):
    monkeypatch.setattr(magnitudes, "PIECE", size)
    codes = RNG.integers(-128, 128, shape).astype(np.int8)
    for axis in (None, *range(len(shape))):
        zero = RNG.integers(-9, 9, () if axis is None else shape[axis]).astype(np.int32)
        view = [1] * len(shape)
        if axis is not None:
            view[axis] = -1
        whole = np.abs(codes.astype(np.int64) - zero.reshape(view if axis is not None else ()))
        for over in ((0,), (len(shape) - 1,), tuple(range(1, len(shape)))):
            found = magnitude_sums(codes, zero, axis, over)
            assert found.dtype == np.int64 and np.array_equal(found, whole.sum(axis=over))


@pytest.mark.parametrize("spoil", [None, 0.1, np.inf, np.nan])
def test_grids_of_parts(monkeypatch, spoil):
    values = (RNG.integers(-100, 100, 1000) * 4.0).astype(np.float32)
    values[:64] = 0
    if spoil is not None:
        values[777] = spoil
    whole = grid_of(values)
    monkeypatch.setattr(edgeq.exactness, "_PART", 32)
    assert grid_of(values) == whole
    assert isinstance(whole, Grid) == (spoil is None) and (spoil is None or whole == DETERMINED)
    assert grid_of(values[:64]) == Grid(1.0, 0.0, 0.0) == grid_of(values[:0])


@pytest.mark.parametrize("columns", [3, 577, 8193])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("observer", ["mse", "minmax"])
def test_ranges_of_parts(monkeypatch, columns, axis, observer):
    shape = (33, columns) if axis == 0 else (columns, 33)
    weight = RNG.standard_normal(shape, dtype=np.float32)
    spec = QuantSpec("int8", "per_channel", True, observer=observer)
    whole = choose_weight_range(weight, spec, axis, 127)
    for size in (1, 4 * columns, 16 * columns):
        monkeypatch.setattr(edgeq.weight_range, "PIECE", size)
        found = choose_weight_range(weight, spec, axis, 127)
        assert [f.tobytes() for f in found] == [w.tobytes() for w in whole]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_products_of_codes(monkeypatch, transposed, per_channel):
    monkeypatch.setattr(magnitudes, "PIECE", 100)
    codes = RNG.integers(-127, 128, (21, 40) if transposed else (40, 21)).astype(np.int8)
    axis = (0 if transposed else 1) if per_channel else None
    zero = RNG.integers(-3, 4, 21 if per_channel else ()).astype(np.int32)
    w = _operand(codes, QParams(INT8, np.ones(zero.shape, np.float32), zero, axis))
    monkeypatch.setattr(large_weights, "HELD", codes.size)
    assert not large_weights.is_large(w)
    monkeypatch.setattr(large_weights, "HELD", codes.size - 1)
    assert large_weights.is_large(w)
    x = RNG.integers(-255, 256, (2, 6, 40))
    expected = x @ ((codes.T if transposed else codes).astype(np.int64) - zero)
    for dtype in (np.float32, np.float64):
        found = multiply(x.astype(dtype), w, transposed=transposed)
        assert found.dtype == dtype and np.array_equal(found, expected)


def _operand(codes: np.ndarray, qparams: QParams) -> Operand:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 21}), ir_version=10)
    editor = Editor(model.graph)
    zero = qparams.zero_point.astype(codes.dtype)
    values = [
        editor.initializer(n, a) for n, a in (("w", codes), ("s", qparams.scale), ("z", zero))
    ]
    attributes = {} if qparams.axis is None else {"axis": qparams.axis}
    found = operand(editor.node("DequantizeLinear", values, "real", attributes=attributes))
    assert found is not None and found.qparams.same_as(qparams)
    return found
