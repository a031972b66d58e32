"""Exact forms of Softmax: what they compute, and the bits of every runtime setting."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.certify import certify
from edgeq.errors import ModelError
from edgeq.onnx_api import infer_shapes
from edgeq.passing import Context, run_pipeline
from edgeq.qdq import quantized_tensors
from edgeq.recipe import load_recipe
from edgeq.runtime import LEVELS, make_session, run
from edgeq.simulate import Simulator
from edgeq.softmax_form import exponentials, peak
from edgeq.targeting import find_target

TARGET = find_target("ort-cpu")
NO_SAMPLES: Any = ()
Array = NDArray[Any]
Feeds = Mapping[str, Array]


def exact(text: str, max_dim: int = 4096, *, rewrites: int = 1, proven: bool = True) -> ir.Model:
    """Return the graph `text` with its exact forms; every node is `proven`."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]> {text}')
    infer_shapes(model)
    context = Context(load_recipe("int8", {}), TARGET.capabilities, NO_SAMPLES, max_dim=max_dim)
    (record,) = run_pipeline("exact-softmax", model, context)
    assert record.rewrites == rewrites
    infer_shapes(model)
    assert (certify(model, TARGET.capabilities, max_dim).unproven == ()) == proven
    return model


def settings_of(model: ir.Model, levels: tuple[str, ...]) -> Iterator[tuple[str, int, Any]]:
    for level in levels:
        for threads in (1, 2):
            options = TARGET.capabilities.session_options
            yield level, threads, make_session(model, options=options, level=level, threads=threads)


def everywhere(
    model: ir.Model, feeds: Feeds, levels: tuple[str, ...] = tuple(LEVELS)
) -> dict[str, Array]:
    """Hold ONNX Runtime at every level, 1 and 2 threads, against the simulator; return outputs."""
    expected = Simulator(model).run(feeds)
    for level, threads, session in settings_of(model, levels):
        for name, array in run(session, feeds).items():
            assert array.dtype == expected[name].dtype and array.shape == expected[name].shape
            assert array.tobytes() == expected[name].tobytes(), (name, level, threads)
    taps = quantized_tensors(model)
    tapped = TARGET.load(model, taps=taps).run(feeds)
    simulated = Simulator(model).run(feeds, taps)
    for name in taps:
        assert tapped[name].tobytes() == simulated[name].tobytes(), name
    return expected


def ideal(x: Array, axis: int) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True).astype(np.float64))
    return np.asarray(e / e.sum(axis, keepdims=True))


# -- Softmax of codes and of reals -----------------------------------------------------------------

SCALES = {"uint8": 0.0731, "int8": 0.0731, "uint16": 0.000213, "float": 1.0}


def softmax_text(kind: str, scale: float, shape: str, axis: int, to: str) -> str:
    zero = {"uint8": 117, "int8": -9, "uint16": 31000}.get(kind, 0)
    head, read = f"<float s = {{{scale}}}", "x = Identity(c)"
    if kind != "float":
        head += f", {kind} z = {{{zero}}}"
        read = "x = DequantizeLinear(c, s, z)"
    write, result = "", f"float[{shape}] y"
    if to != "float":
        head += f", float sy = {{{1 / 255 if to == 'uint8' else 1 / 65535}}}, {to} zy = {{0}}"
        write, result = "q = QuantizeLinear(y, sy, zy)", f"{to}[{shape}] q"
    return (
        f"g ({kind}[{shape}] c) => ({result}) {head}> {{ {read}"
        f" y = Softmax<axis = {axis}>(x) {write} }}"
    )


def some(kind: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    if kind == "float":
        return (random.standard_normal(shape) * 3).astype(np.float32)
    limits = np.iinfo(kind)
    return random.integers(limits.min, limits.max + 1, shape).astype(kind)


@pytest.mark.parametrize("to", ["uint8", "uint16", "float"])
@pytest.mark.parametrize("kind", SCALES)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((5, 2), -1), ((5, 3), 1), ((3, 17, 4), 1), ((17, 5), 0), ((2, 3, 256), 2), ((4, 257), -1)],
)
def test_softmax(shape: tuple[int, ...], axis: int, kind: str, to: str) -> None:
    scale = SCALES[kind]
    model = exact(softmax_text(kind, scale, ",".join(map(str, shape)), axis, to))
    codes = some(kind, shape)
    codes.flat[: shape[axis]] = codes.flat[0]  # a row of equal numbers, at least along a last axis
    (found,) = everywhere(model, {"c": codes}).values()
    wanted = ideal(codes.astype(np.float64) * scale, axis)
    if to == "float":
        by_codes = kind in ("uint8", "int8")  # distances are those of the codes: none is rounded
        assert np.abs(found - wanted).max() <= (1e-5 if by_codes else 6e-4)
    else:
        # A distance is off by at most half a step, 0.024 or 0.0021, a share by a quarter of that.
        step, off = (1 / 255, 0.024) if to == "uint8" else (1 / 65535, 0.0021)
        off = 1e-5 if kind in ("uint8", "int8") else off / 4
        assert np.abs(found - wanted / step).max() <= off / step + 1


@pytest.mark.parametrize("length", [1, 2, 3, 17, 256, 257, 1024, 4096])
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_rows_of_open_length(length: int, kind: str) -> None:
    model = exact(softmax_text(kind, 0.05, "N,L", -1, "uint8"))
    codes = some(kind, (3, length))
    codes[0] = codes[0, 0]
    (found,) = everywhere(model, {"c": codes}).values()
    wanted = ideal(codes * np.float64(0.05 if kind == "uint8" else 1), -1) * 255
    assert np.abs(found - wanted).max() <= (1 if kind == "uint8" else 2.5)


def test_the_longest_rows_add_up_exactly() -> None:
    """All terms are the highest: one element more and the sum would leave 2**24."""
    model = exact("g (uint8[1,65536] c) => (float[1,65536] y) <float s = {0.1}, uint8 z = {0}> {"
                  " x = DequantizeLinear(c, s, z) y = Softmax(x) }")  # fmt: skip
    (found,) = everywhere(model, {"c": np.full((1, 65536), 255, np.uint8)}).values()
    assert np.all(found == np.float32(2**-16))
    assert peak(65536) * 65536 < 2**24 <= (peak(65536) + 1) * 65536


@pytest.mark.parametrize(("shape", "max_dim"), [("1,65537", 4096), ("1,L", 65537)])
def test_longer_rows_are_refused(shape: str, max_dim: int) -> None:
    with pytest.raises(ModelError, match=r"Softmax\): rows of 65537 .*--keep-float"):
        exact(softmax_text("float", 1, shape, -1, "float"), max_dim)


def test_a_lower_max_dim_makes_finer_terms() -> None:
    tables = {}
    for max_dim in (256, 4096):
        model = exact(softmax_text("uint8", 0.05, "N,L", -1, "uint8"), max_dim)
        arrays = [v.const_value.numpy() for v in model.graph.initializers.values() if v.const_value]
        tables[max_dim] = max(arrays, key=lambda array: array.size).max()
    assert tables == {256: 65535, 4096: 4095}


@pytest.mark.parametrize("length", [2048, 4096, 4099])
@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_rows_of_known_length_keep_small_terms(length: int, kind: str) -> None:
    """Their sums leave 2**24: those of pieces do not, where a length has divisors."""
    model = exact(softmax_text(kind, 0.02, f"2,{length}", -1, "float"))
    codes = some(kind, (2, length))
    (found,) = everywhere(model, {"c": codes}).values()
    wanted = ideal(codes * np.float64(0.02 if kind == "uint8" else 1), -1)
    kept = wanted > wanted.max() / 500
    assert np.abs(found / wanted - 1)[kept].max() < (0.004 if kind == "uint8" else 0.0055)
    assert kept.sum() > 50
    sums = [node.inputs[0] for node in model.graph if node.op_type == "ReduceSum"]
    sizes = [None if v is None or v.shape is None else list(v.shape) for v in sums]
    pieces = {2048: [[2, 8, 256], [2, 8]], 4096: [[2, 16, 256], [2, 16]], 4099: [[2, 4099]]}
    assert sizes == pieces[length]


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(2.0**-13, 8.0, width=32),
    out=st.sampled_from([1 / 256, 1 / 255, 0.0023, 2.0**-9]),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40)),
    seed=st.integers(0, 99),
)
def test_any_scale(scale: float, out: float, shape: tuple[int, int], seed: int) -> None:
    model = exact(
        f"g (uint8[N,L] c) => (uint8[N,L] q) <float s = {{{scale}}}, uint8 z = {{3}},"
        f" float sy = {{{out}}}, uint8 zy = {{0}}>"
        " { x = DequantizeLinear(c, s, z) y = Softmax(x) q = QuantizeLinear(y, sy, zy) }"
    )
    everywhere(model, {"c": some("uint8", shape, seed)}, ("none", "all"))


# -- LogSoftmax ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), [((7, 2), -1), ((3, 10, 2), 1), ((2, 1000), 1)])
@pytest.mark.parametrize("kind", SCALES)
def test_log_softmax(shape: tuple[int, ...], axis: int, kind: str) -> None:
    scale = SCALES[kind]
    text = softmax_text(kind, scale, ",".join(map(str, shape)), axis, "float")
    model = exact(text.replace("Softmax", "LogSoftmax"))
    codes = some(kind, shape)
    (found,) = everywhere(model, {"c": codes}).values()
    x = codes.astype(np.float64) * scale
    wanted = x - x.max(axis, keepdims=True)
    wanted = wanted - np.log(np.exp(wanted).sum(axis, keepdims=True))
    assert np.abs(found - wanted).max() <= 2e-3


def test_the_logarithm_of_shares_is_that_of_float64() -> None:
    """All rows that the logarithm can meet: shares from 1 to one in 65536."""
    model = exact("g (uint8[N,2] c) => (float[N,2] y) <float s = {0.0625}, uint8 z = {0}> {"
                  " x = DequantizeLinear(c, s, z) y = LogSoftmax(x) }")  # fmt: skip
    codes = np.stack([np.arange(256), np.zeros(256)], 1).astype(np.uint8)
    (found,) = everywhere(model, {"c": codes}).values()
    terms = exponentials(0.0625, peak(2)).astype(np.float64)
    wanted = -np.log((terms + terms[0]) / terms[0])
    assert np.abs(found[:, 0] - wanted).max() < 1e-7
