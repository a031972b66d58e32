"""What is predicted for a CPU is what it computes: here, and on the emulated CPUs."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.emulation import ROOT, installed, run_python
from edgeq.cpus import ALL, CPUS, find_cpu, in_words
from edgeq.errors import UnknownNameError
from edgeq.numerics.ort_kernels import AVX2, host_cpu
from edgeq.numerics.saturating import lost_products, saturable
from edgeq.optimized import optimize
from edgeq.predict import Prediction
from edgeq.runtime import make_session, run
from tests.conformance.broken_rules import BASE, RNG, X, build, conv, f32, s8, u8

HOST = "x86-64-vnni"
RUNNER = str(ROOT / "benchmarks" / "run_on_cpu.py")
W1 = RNG.integers(-127, 128, (8, 4, 1, 1)).astype(np.int8)
DEPTH = RNG.integers(-127, 128, (4, 1, 3, 3)).astype(np.int8)
DENSE = RNG.integers(-127, 128, (64, 24)).astype(np.int8)
A = RNG.integers(0, 256, (40, 64)).astype(np.uint8)
ROWS = RNG.integers(0, 256, (2, 3, 40, 64)).astype(np.uint8)
MATRICES = RNG.integers(-127, 128, (2, 3, 64, 24)).astype(np.int8)

DQ = "xd = DequantizeLinear(x, sx, zx) "
WD = "wd = DequantizeLinear(w, sw, zw) "
Q = " y = QuantizeLinear(r, sy, zy)"
IMAGES = "uint8[2,4,64,64] x, uint8[2,4,64,64] v"
PAIR = DQ + "vd = DequantizeLinear(v, sv, zv) "
SECOND = {"sv": f32(0.03), "zv": u8(7)}
MORE = {"w1": W1, "depth": DEPTH, "dense": DENSE, **SECOND, "v1": X[:1, :, :1, :1]}
V = np.roll(X, 5)

# name: (nodes, inputs, feeds, changed constants, the kernel that runs)
MODELS: dict[str, Any] = {
    "conv": (DQ + WD + "r = Conv(xd, wd)" + Q, "uint8[2,4,64,64] x", {"x": X}, {}, "QLinearConv"),
    "conv, padded": (
        DQ + WD + "r = Conv<pads=[1,2,1,0], strides=[2,1], group=2>(xd, wd)" + Q,
        "uint8[2,4,64,64] x", {"x": X}, {"w": BASE["w"][:, :2]}, "QLinearConv",
    ),
    "depthwise": (
        DQ + WD + "r = Conv<group=4>(xd, wd)" + Q,
        "uint8[2,4,64,64] x", {"x": X}, {"w": DEPTH}, "QLinearConv",
    ),
    "uint8 weights": (
        DQ + WD + "r = Conv(xd, wd)" + Q, "uint8[2,4,64,64] x", {"x": X},
        {"w": (W1.astype(int) + 128).astype(np.uint8), "zw": u8(128)}, "QLinearConv",
    ),
    "int8": (
        DQ + WD + "r = Conv(xd, wd)" + Q, "int8[2,4,64,64] x",
        {"x": (X.astype(int) - 128).astype(np.int8)}, {"zx": s8(3), "zy": s8(-5)}, "",
    ),
    "gemm": (
        DQ + WD + "r = Gemm(xd, wd)" + Q,
        "uint8[40,64] x", {"x": A}, {"w": DENSE, "sy": f32(0.7)}, "QGemm",
    ),
    "gemm, float": (
        DQ + WD + "y = Gemm(xd, wd)", "uint8[40,64] x", {"x": A}, {"w": DENSE}, "QGemm",
    ),
    "matmul": (
        DQ + "vd = DequantizeLinear(v, sw, zw) r = MatMul(xd, vd)" + Q,
        "uint8[2,3,40,64] x, int8[2,3,64,24] v", {"x": ROWS, "v": MATRICES}, {"sy": f32(0.7)},
        "QLinearMatMul",
    ),
    "add": (PAIR + "r = Add(xd, vd)" + Q, IMAGES, {"x": X, "v": V}, {"sy": f32(0.1)}, "QLinearAdd"),
    "add, ties": (
        PAIR + "r = Add(xd, vd)" + Q, IMAGES, {"x": X, "v": V},
        {"sx": f32(0.5), "sv": f32(0.5), "sy": f32(1), "zy": u8(9)}, "QLinearAdd",
    ),
    "add, broadcast": (
        PAIR + "r = Add(vd, xd)" + Q, "uint8[2,4,64,64] x, uint8[1,4,1,1] v",
        {"x": X, "v": X[:1, :, :1, :1]}, {}, "QLinearAdd",
    ),
    "mul": (PAIR + "r = Mul(xd, vd)" + Q, IMAGES, {"x": X, "v": V}, {"zy": u8(9)}, "QLinearMul"),
    "average": (
        DQ + "r = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(xd)" + Q,
        "uint8[2,4,64,64] x", {"x": X}, {"sy": f32(0.1)}, "QLinearAveragePool",
    ),
    "global average": (
        DQ + "r = GlobalAveragePool(xd)" + Q,
        "uint8[2,4,64,64] x", {"x": X}, {"sy": f32(0.02)}, "QLinearGlobalAveragePool",
    ),
    "concat": (
        PAIR + "r = Concat<axis=1>(xd, vd)" + Q, IMAGES, {"x": X, "v": V}, {}, "QLinearConcat",
    ),
    "softmax": (
        DQ + "r = Softmax<axis=-1>(xd)" + Q, "uint8[40,64] x", {"x": A}, {"sy": f32(1 / 255)},
        "QLinearSoftmax",
    ),
    "softmax, another axis": (
        DQ + "r = Softmax<axis=1>(xd)" + Q, "uint8[2,4,64,64] x", {"x": X},
        {"sy": f32(0.013), "zy": u8(9), "sx": f32(0.02)}, "QLinearSoftmax",
    ),
    "sigmoid": (
        DQ + "r = Sigmoid(xd)" + Q, "uint8[2,4,64,64] x", {"x": X},
        {"sx": f32(2), "sy": f32(1 / 64)}, "QLinearSigmoid",
    ),
    "leaky": (
        DQ + "r = LeakyRelu<alpha=0.1>(xd)" + Q,
        "uint8[2,4,64,64] x", {"x": X}, {}, "QLinearLeakyRelu",
    ),
}  # fmt: skip


def model(name):
    body, inputs, _, changes, _ = MODELS[name]
    output = "float y" if name.endswith("float") else "int8 y" if name == "int8" else "uint8 y"
    proto = build(body, {**BASE, **MORE, **changes}, inputs, output)
    return ir.from_proto(proto)


@pytest.mark.skipif(host_cpu() != AVX2, reason="predicted for x86 with AVX2")
@pytest.mark.parametrize("name", MODELS)
def test_the_prediction_for_this_cpu(name):
    from edgeq.check_saturation import saturates

    made, (_, _, feeds, _, kernel) = model(name), MODELS[name]
    cpu = CPUS["x86-64-avx2" if saturates() else HOST]
    assert not kernel or kernel in {n.op_type for n in optimize(made, cpu).graph}
    prediction = Prediction(made, cpu)
    expected, found = run(make_session(made), feeds)["y"], prediction.run(feeds).get("y")
    if name == "int8":  # it comes from outside, and stays float on x86: no guess
        assert found is None and "order" in str(prediction.unpredicted)
        return
    assert prediction.unpredicted == {} and found is not None
    assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
    assert found.size >= 8


@pytest.mark.emulated
@pytest.mark.skipif(not installed(), reason="python -m benchmarks.emulation installs it")
@pytest.mark.parametrize("name", [cpu.name for cpu in CPUS.values() if cpu.emulated])
def test_the_prediction_for_an_emulated_cpu(name, tmp_path, monkeypatch):
    """Every bit is predicted; what differs from this CPU differs there in the same elements."""
    monkeypatch.setenv("CPU", name)
    folders = []
    for number, kind in enumerate(MODELS):
        folder = tmp_path / str(number)
        folder.mkdir()
        ir.save(model(kind), folder / "model.onnx")
        np.savez(folder / "feeds.npz", **MODELS[kind][2])
        folders.append(folder)
    made = run_python(CPUS[name], [RUNNER, *map(str, folders)])
    assert made.returncode == 0, made.stderr
    compared, differing = 0, set()
    for folder, kind in zip(folders, MODELS, strict=True):
        with np.load(folder / f"{name}.npz") as data:
            found = data["y"]
        predicted = Prediction(model(kind), CPUS[name]).run(MODELS[kind][2]).get("y")
        if predicted is None:
            assert kind == "int8" and not CPUS[name].arm
            continue
        assert predicted.tobytes() == found.tobytes(), kind
        compared += found.size
        other = Prediction(model(kind), CPUS[HOST]).run(MODELS[kind][2]).get("y")
        if other is not None and other.tobytes() != found.tobytes():
            differing.add(kind)
    assert compared > 300_000
    if CPUS[name].saturates:
        assert {"conv", "conv, padded", "gemm", "matmul"} <= differing
        assert not differing & {"depthwise", "uint8 weights", "add", "mul"}
    elif CPUS[name].arm:
        assert "add, ties" in differing and not differing & {"conv", "gemm", "matmul"}
    else:
        assert not differing & {"conv", "gemm", "matmul", "add, ties"}


def test_pairs_of_products_saturate():
    a, b = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    assert lost_products(a, b)[0, 0] == 2 * (2**15 - 1 - 2 * 255 * 127)
    assert lost_products(a, np.full((4, 1), 64, np.int8))[0, 0] == 0
    odd = np.array([[64], [64], [127]], np.int8)  # the last has no neighbour
    assert lost_products(a[:, :3], odd)[0, 0] == 0
    rng = np.random.default_rng(3)
    first, second = rng.integers(-128, 128, (2, 500)).astype(np.int8)
    reach = [
        [255 * int(max(v, 0)) + 255 * int(max(w, 0)), 255 * int(min(v, 0)) + 255 * int(min(w, 0))]
        for v, w in zip(first, second, strict=True)
    ]
    expected = [high > 2**15 - 1 or low < -(2**15) for high, low in reach]
    assert saturable(first, second).tolist() == expected and 0 < sum(expected) < 500


def test_what_overflows_on_arm_is_not_guessed():
    feeds = {"x": np.zeros_like(X)}  # -128 as int8
    proto = conv(w=np.full_like(BASE["w"], -128), zx=u8(0))
    prediction = Prediction(ir.from_proto(proto), CPUS["aarch64"])
    assert prediction.run(feeds) == {} and "overflow" in str(prediction.unpredicted)
    assert "y" in Prediction(ir.from_proto(proto), CPUS["aarch64-dotprod"]).run(feeds)


def test_the_precision_option_widens_constant_weights():
    made = model("conv")
    option = {"session.x64quantprecision": "1"}
    found = [
        Prediction(made, CPUS[cpu], options).run({"x": X})["y"].tobytes()
        for cpu, options in ((HOST, {}), ("x86-64-avx2", option), ("x86-64-avx2", {}))
    ]
    assert found[0] == found[1] != found[2]
    dynamic, feeds = model("matmul"), MODELS["matmul"][2]
    found = [
        Prediction(dynamic, CPUS["x86-64-avx2"], options).run(feeds)["y"].tobytes()
        for options in ({}, option)
    ]
    assert found[0] == found[1]  # it is computed at run time: nothing is widened


def test_values_that_were_seen_are_read_in_place_of_predictions():
    body = DQ + "r = Relu(xd) q = QuantizeLinear(r, sx, zx) qd = DequantizeLinear(q, sx, zx)"
    proto = build(body + " s = Neg(qd) y = QuantizeLinear(s, sx, zx)", BASE, "uint8[4] x",
                  "uint8 y, uint8 q")  # fmt: skip
    prediction = Prediction(ir.from_proto(proto), CPUS["aarch64"])
    feeds = {"x": np.array([0, 10, 20, 255], np.uint8)}
    alone = prediction.run(feeds)
    assert alone["q"].tolist() == [10, 10, 20, 255] and alone["y"].tolist() == [10, 10, 0, 0]
    seen = prediction.run(feeds, {"q": np.array([11, 10, 20, 255], np.uint8)})
    assert seen["q"].tolist() == [10, 10, 20, 255] and seen["y"].tolist() == [9, 10, 0, 0]


def test_cpus_have_names():
    assert find_cpu("Haswell").name == "x86-64-avx2" and find_cpu("aarch64").arm
    with pytest.raises(UnknownNameError, match=r"cortex-a73.*known: x86-64-vnni"):
        find_cpu("cortex-a73")
    assert in_words(ALL) == "every CPU" and in_words(ALL[1:2]) == "x86-64-avx2"
    assert in_words(["armv7", "aarch64"]) == "aarch64, armv7"
