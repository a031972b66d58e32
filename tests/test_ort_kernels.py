"""The formulas of ONNX Runtime's fused kernels give the bits of its kernels, on this CPU."""

from fractions import Fraction

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgeq.numerics.affine import QParams
from edgeq.numerics.fma import fma
from edgeq.numerics.ort_kernels import (
    ADD_KERNELS,
    ARM,
    AVX2,
    MUL_KERNELS,
    SSE,
    arm_add_multipliers,
    host_cpu,
    lookup_table,
    qlinear_add_arm,
    qlinear_average_pool,
    qlinear_concat,
    qlinear_global_average_pool,
)
from edgeq.numerics.qtype import INT8, UINT8

HOST = host_cpu()
known_host = pytest.mark.skipif(HOST is None, reason="kernels of this CPU are not written down")
CODES = np.arange(256, dtype=np.uint8)


def qp(scale, zero_point, qtype=UINT8):
    return QParams(qtype, np.array(scale, np.float32), np.array(zero_point, np.int32))


def fused(op_type, inputs, y, attributes=None):
    """A model of DequantizeLinear(s) - op - QuantizeLinear."""
    nodes, initializers, graph_inputs = [], [], []

    def initializer(name, array):
        initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def parameters(name, qparams):
        zero_point = qparams.zero_point.astype(qparams.qtype.dtype)
        return [
            initializer(f"{name}_scale", qparams.scale),
            initializer(f"{name}_zero_point", zero_point),
        ]

    operands = []
    for index, (qparams, array) in enumerate(inputs):
        name = f"x{index}"
        elem = helper.np_dtype_to_tensor_dtype(array.dtype)
        graph_inputs.append(helper.make_tensor_value_info(name, elem, array.shape))
        node = helper.make_node(
            "DequantizeLinear", [name, *parameters(name, qparams)], [f"{name}_dq"]
        )
        nodes.append(node)
        operands.append(f"{name}_dq")
    nodes.append(helper.make_node(op_type, operands, ["r"], **(attributes or {})))
    nodes.append(helper.make_node("QuantizeLinear", ["r", *parameters("y", y)], ["y"]))
    elem = helper.np_dtype_to_tensor_dtype(y.qtype.dtype)
    graph = helper.make_graph(
        nodes,
        "g",
        graph_inputs,
        [helper.make_tensor_value_info("y", elem, None)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model


def run(model, feeds, kernel, tmp_path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    path = tmp_path / "optimized.onnx"
    options.optimized_model_filepath = str(path)
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kinds = {n.op_type for n in onnx.load(path).graph.node}
    assert kernel in kinds, f"{kernel} is not among {sorted(kinds)}"
    return session.run(None, feeds)[0]


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
near = st.builds(
    lambda m, e: float(np.float32(m * 2.0**e)), st.integers(-(2**24), 2**24), st.integers(-40, 10)
)


def rounded(value: Fraction) -> np.float32:
    """Round a fraction to float32, half to even, by comparing neighbours exactly."""
    guess = np.float32(float(value))
    around = [
        np.nextafter(guess, np.float32(-np.inf)),
        guess,
        np.nextafter(guess, np.float32(np.inf)),
    ]
    around = [v for v in around if np.isfinite(v)]
    best = min(abs(Fraction(float(v)) - value) for v in around)
    ties = [v for v in around if abs(Fraction(float(v)) - value) == best]
    return next((v for v in ties if not int(v.view(np.int32)) & 1), ties[0])


@settings(max_examples=2000, deadline=None)
@given(near, near, near)
def test_fma_rounds_once(a, b, c):
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if abs(exact) > 2**126:
        return
    got = fma(np.float32(a), np.float32(b), np.float32(c))
    assert Fraction(float(got)) == Fraction(float(rounded(exact)))


@settings(max_examples=1000, deadline=None)
@given(near, near, st.integers(-2, 2), st.integers(-60, 0))
def test_fma_rounds_once_beside_a_tie(a, b, half, tiny):
    """`c` puts the sum onto, or a hair beside, the middle between two float32."""
    product = Fraction(a) * Fraction(b)
    base = np.float32(float(product))
    c = np.float32(float(Fraction(float(np.spacing(base))) * half / 2 + Fraction(2) ** tiny))
    exact = product + Fraction(float(c))
    got = fma(np.float32(a), np.float32(b), c)
    assert Fraction(float(got)) == Fraction(float(rounded(exact)))


def test_fma_would_round_twice_without_care():
    """The planted fault: a float64 sum just below a tie lands on it, and then rounds up."""
    a, b = np.float32(1 + 2.0**-15), np.float32(2.0**-24 * (1 - 2.0**-15))
    c = np.float32(1 + 2.0**-23)  # a * b = 2**-24 - 2**-54: the sum is just below the middle
    assert float(fma(a, b, c)) == 1 + 2.0**-23
    assert float(np.float32(float(a) * float(b) + float(c))) == 1 + 2.0**-22


def related(seed, zero_points):
    """Scales of two operands and a result: equal, doubled, powers of two apart, products, free."""
    rng = np.random.default_rng(seed)
    sa = np.float32(rng.uniform(0.005, 0.05))
    sb = [sa, sa * np.float32(2), sa / np.float32(8), sa * np.float32(3)]
    sb = [*sb, np.float32(rng.uniform(0.005, 0.05))][seed % 5]
    sy = [sa, sa * np.float32(2), sa + sb, sa * np.float32(0.75)]
    sy = [*sy, np.float32(rng.uniform(0.005, 0.1))][seed // 5 % 5]
    zeros = rng.integers(0, 256, 3)
    zeros = zeros & ~1 if zero_points == "even" else zeros | 1
    return (qp(sa, zeros[0]), qp(sb, zeros[1]), qp(sy, zeros[2]))


def kernel_of(kernels, order=""):
    return next(k.compute for k in kernels if k.cpu == HOST and k.order == order)


@known_host
@pytest.mark.parametrize("zero_points", ["even", "odd"])
def test_qlinear_add(zero_points, tmp_path):
    qa, qb = np.repeat(CODES, 256), np.tile(CODES, 256)
    compared = 0
    for seed in range(25):
        a, b, y = related(seed, zero_points)
        model = fused("Add", [(a, qa), (b, qb)], y)
        got = run(model, {"x0": qa, "x1": qb}, "QLinearAdd", tmp_path)
        expected = kernel_of(ADD_KERNELS)(qa, a, qb, b, y)
        assert got.tobytes() == expected.tobytes(), (seed, np.flatnonzero(got != expected)[:3])
        compared += got.size
    assert compared == 25 * 65536


@known_host
@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_qlinear_add_of_a_broadcast_operand(first, tmp_path):
    compared = 0
    for seed in range(25):
        a, b, y = related(seed, "odd")
        for code in (0, 1, 77, 255):
            one = np.array([code], np.uint8)
            qa, qb = (one, CODES) if first else (CODES, one)
            model = fused("Add", [(a, qa), (b, qb)], y)
            got = run(model, {"x0": qa, "x1": qb}, "QLinearAdd", tmp_path)
            place = "first" if first else "second"
            order = f"{place} operand broadcast"
            orders = {k.order for k in ADD_KERNELS if k.cpu == HOST}
            kernel = kernel_of(ADD_KERNELS, order if order in orders else "")
            assert got.tobytes() == kernel(qa, a, qb, b, y).tobytes(), (seed, code)
            compared += got.size
    assert compared == 25 * 4 * 256


@known_host
@pytest.mark.parametrize("zero_points", ["even", "odd"])
def test_qlinear_mul(zero_points, tmp_path):
    qa, qb = np.repeat(CODES, 256), np.tile(CODES, 256)
    compared = 0
    for seed in range(25):
        a, b, y = related(seed, zero_points)
        factor = [1, 64, 128, 77.7, 33][seed // 5 % 5]
        y = qp(a.scale * b.scale * np.float32(factor), y.zero_point)
        model = fused("Mul", [(a, qa), (b, qb)], y)
        got = run(model, {"x0": qa, "x1": qb}, "QLinearMul", tmp_path)
        assert got.tobytes() == kernel_of(MUL_KERNELS)(qa, a, qb, b, y).tobytes(), seed
        compared += got.size
    assert compared == 25 * 65536


def windows(rng, count, zero_point):
    """Windows with every sum that can be, each in one random arrangement."""
    sums = np.arange(255 * count + 1)
    base, rest = np.divmod(sums, count)
    data = np.repeat(base[:, None], count, 1) + (np.arange(count) < rest[:, None])
    return rng.permuted(data, axis=1).astype(np.uint8)


@known_host
@pytest.mark.parametrize("zero_points", ["even", "odd"])
@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("units", [True, False], ids=["units", "scaled"])
def test_qlinear_average_pool(zero_points, side, units, tmp_path):
    rng = np.random.default_rng(side)
    compared = 0
    for seed in range(10):
        _, x, y = related(seed, zero_points)
        x, y = (qp(1, x.zero_point), qp(y.scale / x.scale, y.zero_point)) if units else (x, y)
        data = windows(rng, side * side, 0)
        image = data.reshape(1, 1, -1, side, side).transpose(0, 1, 3, 2, 4)
        image = image.reshape(1, 1, side, -1)
        model = fused(
            "AveragePool",
            [(x, image)],
            y,
            {"kernel_shape": [side, side], "strides": [side, side]},
        )
        got = run(model, {"x0": image}, "QLinearAveragePool", tmp_path).reshape(-1)
        real = x.dequantize(data)
        total = np.zeros(len(data), np.float32)
        for column in range(real.shape[1]):
            total = total + real[:, column]
        expected = qlinear_average_pool(total / np.float32(side * side), y)
        assert got.tobytes() == expected.tobytes(), seed
        compared += got.size
    assert compared == 10 * (255 * side * side + 1)


@known_host
@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "AveragePool"])
@pytest.mark.parametrize("shape", [(7, 7), (6, 10), (5, 6)])
def test_qlinear_global_average_pool(op_type, shape, tmp_path):
    """One window over the whole image runs the global kernel, whatever the node is called."""
    rng = np.random.default_rng(0)
    count = shape[0] * shape[1]
    attributes = {"kernel_shape": list(shape)} if op_type == "AveragePool" else {}
    kernel = f"QLinear{op_type}"
    compared = 0
    for seed in range(10):
        _, x, y = related(seed, ["even", "odd"][seed % 2])
        data = windows(rng, count, 0)
        image = data.reshape(1, -1, *shape)
        model = fused(op_type, [(x, image)], y, attributes)
        got = run(model, {"x0": image}, kernel, tmp_path).reshape(-1)
        acc = (data.astype(np.int64) - x.zero_point).sum(1)
        assert got.tobytes() == qlinear_global_average_pool(acc, count, x, y).tobytes(), seed
        compared += got.size
    assert compared == 10 * (255 * count + 1)


@known_host
def test_qlinear_concat_and_tables(tmp_path):
    compared = 0
    for seed in range(25):
        a, b, y = related(seed, "odd")
        qa, qb = CODES[None], CODES[None, ::-1].copy()
        model = fused("Concat", [(a, qa), (b, qb)], y, {"axis": 1})
        got = run(model, {"x0": qa, "x1": qb}, "QLinearConcat", tmp_path)
        expected = np.concatenate([qlinear_concat(qa, a, y), qlinear_concat(qb, b, y)], 1)
        assert got.tobytes() == expected.tobytes()
        model = fused("LeakyRelu", [(a, CODES)], y, {"alpha": 0.1})
        got = run(model, {"x0": CODES}, "QLinearLeakyRelu", tmp_path)
        table = lookup_table(lambda r: np.where(r >= 0, r, r * np.float32(0.1)), a, y)
        assert got.tobytes() == table.tobytes()
        compared += 3 * 256
    assert compared == 25 * 768


@known_host
def test_int8_add(tmp_path):
    codes = np.arange(-128, 128).astype(np.int8)
    qa, qb = np.repeat(codes, 256), np.tile(codes, 256)
    a, b, y = qp(0.02, -3, INT8), qp(0.04, 8, INT8), qp(0.05, 5, INT8)
    model = fused("Add", [(a, qa), (b, qb)], y)
    got = run(model, {"x0": qa, "x1": qb}, "QLinearAdd", tmp_path)
    assert got.tobytes() == kernel_of(ADD_KERNELS)(qa, a, qb, b, y).tobytes()


# rule                              a    b    expected, with za = zb = 0, zy = 10, all ratios 1/2
ARM_ROWS = [
    ("half goes away from zero, up", 1, 0, 11),
    ("three halves go up", 1, 2, 12),
    ("no tie, no change", 1, 1, 11),
]


@pytest.mark.parametrize(("rule", "a", "b", "expected"), ARM_ROWS, ids=[r[0] for r in ARM_ROWS])
def test_arm_add_rounds_halves_away_from_zero(rule, a, b, expected):
    x, y = qp(0.5, 0), qp(1.0, 10)
    assert qlinear_add_arm(np.array(a), x, np.array(b), x, y) == expected
    x8 = qp(0.5, 4)  # below zero: -1/2 goes to -1
    assert qlinear_add_arm(np.array(3), x8, np.array(4), x8, y) == 9


def test_arm_add_multipliers_have_22_bits_or_none():
    assert arm_add_multipliers(qp(1, 0), qp(0.5, 0), qp(1, 0)) == (2**21, 2**20, 21)
    assert arm_add_multipliers(qp(256, 0), qp(1, 0), qp(1, 0)) is None
    assert arm_add_multipliers(qp(1, 0), qp(2.0**-15, 0), qp(1, 0)) is None


def test_cpus_have_their_forms():
    assert [k.cpu for k in ADD_KERNELS] == [AVX2, AVX2, SSE, SSE, SSE, ARM]
    assert [k.cpu for k in MUL_KERNELS] == [AVX2, SSE, ARM]
