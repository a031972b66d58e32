"""A small program for TVM's devices, made by hand, and the same in numpy: a convolution, its
requantize, a change of layout and a float tail; uint8, int8, int32 and float32 buffers."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import s_tir, te, tirx

from edgeq.check_bits import digest
from edgeq.tvm.codegen import compile_kernels
from edgeq.tvm.devices import Device
from edgeq.tvm.program import Buffer, Kernel, Layout, Program, Tensor
from edgeq.tvm.sources import Codes, GoldenRun, Sources, make_sources

CHANNELS, HEIGHT, WIDTH, FILTERS = 3, 6, 7, 5
ZERO_X, ZERO_Y = 117, 9
NHWC = (0, 2, 3, 1)
IMAGE_ELEMENTS = CHANNELS * HEIGHT * WIDTH
SHAPE_X, SHAPE_Y = (1, CHANNELS, HEIGHT, WIDTH), (1, FILTERS, HEIGHT, WIDTH)
MAGIC = np.float32(12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, half to even
CODES = {"image": Codes(0.0078125, ZERO_X), "codes": Codes(0.1, ZERO_Y)}
Rounded = Callable[[te.Tensor], te.Tensor]
SCALE, OFFSET = np.float32(0.1), np.float32(0.7)


@dataclass(frozen=True)
class Constants:
    """What the program holds."""

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.float32]


def constants(seed: int = 0) -> Constants:
    """Return weights, and multipliers whose products have ties."""
    random = np.random.default_rng(seed)
    weight = random.integers(-127, 128, (3, 3, CHANNELS, FILTERS)).astype(np.int8)
    bias = random.integers(-500, 500, FILTERS).astype(np.int32)
    multiplier = np.array([0.5, 0.25, 0.0123, 0.125, 0.00371], np.float32) / np.float32(16)
    return Constants(weight, bias, multiplier)


def expected(held: Constants, image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return the outputs and taps by numpy."""
    padded = np.full((HEIGHT + 2, WIDTH + 2, CHANNELS), ZERO_X, np.int64)
    padded[1:-1, 1:-1] = image[0].transpose(1, 2, 0)
    acc = np.zeros((HEIGHT, WIDTH, FILTERS), np.int64) + held.bias
    for i in range(3):
        for j in range(3):
            window = padded[i : i + HEIGHT, j : j + WIDTH] - ZERO_X
            acc += window @ held.weight[i, j].astype(np.int64)
    real = np.rint(acc.astype(np.float32) * held.multiplier)
    codes = np.clip(real + ZERO_Y, 0, 255).astype(np.uint8).transpose(2, 0, 1)[None]
    codes = np.ascontiguousarray(codes)
    centred = codes.astype(np.float32) - np.float32(ZERO_Y)
    acc = np.ascontiguousarray(acc.astype(np.int32).transpose(2, 0, 1)[None])
    return {"codes": codes, "reals": centred * SCALE + OFFSET, "conv": codes, "acc": acc}


def expected_of_zero() -> dict[str, NDArray[Any]]:
    """Return what an image of zeros gives."""
    return expected(constants(), np.full(SHAPE_X, ZERO_X, np.uint8))


def half_to_even(value: te.Tensor) -> te.Tensor:
    """Round as the definition does."""
    shifted = tirx.reinterpret("int32", value + tirx.const(float(MAGIC), "float32"))
    return shifted - tirx.const(0x4B400000, "int32")


def zero_point_first(value: te.Tensor) -> te.Tensor:
    """Add the zero point before rounding, as it must not be done: an odd one moves ties."""
    return half_to_even(value + tirx.const(float(ZERO_Y), "float32")) - ZERO_Y


def half_up(value: te.Tensor) -> te.Tensor:
    """Round as it must not be done."""
    return tirx.floor(value + tirx.const(0.5, "float32")).astype("int32")


def program(held: Constants, rounded: Rounded = half_to_even) -> Program:
    """Return the program; `rounded` is for planted faults."""
    y_size = FILTERS * HEIGHT * WIDTH
    image = Buffer("image", "uint8", IMAGE_ELEMENTS, "input")
    lying = Buffer("lying", "uint8", image.elements, "workspace")
    weight = Buffer("weight", "int8", held.weight.size, "constant")
    bias = Buffer("bias", "int32", FILTERS, "constant")
    multiplier = Buffer("multiplier", "float32", FILTERS, "constant")
    acc = Buffer("acc", "int32", y_size, "workspace")
    conv = Buffer("conv", "uint8", y_size, "workspace")
    codes = Buffer("codes", "uint8", y_size, "output")
    reals = Buffer("reals", "float32", y_size, "output")

    x = te.placeholder(SHAPE_X, "uint8", "x")
    x_lies = te.placeholder((1, HEIGHT, WIDTH, CHANNELS), "uint8", "x_lies")
    w = te.placeholder(held.weight.shape, "int8", "w")
    b = te.placeholder((FILTERS,), "int32", "b")
    m = te.placeholder((FILTERS,), "float32", "m")
    a = te.placeholder((1, HEIGHT, WIDTH, FILTERS), "int32", "a")
    y = te.placeholder((1, HEIGHT, WIDTH, FILTERS), "uint8", "y")
    to_nhwc = te.compute(x_lies.shape, lambda n, h, k, c: x[n, c, h, k], "to_nhwc")
    inside = te.compute(
        (1, HEIGHT + 2, WIDTH + 2, CHANNELS),
        lambda n, h, k, c: tirx.if_then_else(
            tirx.all(h >= 1, h <= HEIGHT, k >= 1, k <= WIDTH),
            x_lies[n, h - 1, k - 1, c].astype("int32") - ZERO_X,
            tirx.const(0, "int32"),
        ),
        "inside",
    )
    i, j, c = (te.reduce_axis((0, n), name) for n, name in ((3, "i"), (3, "j"), (CHANNELS, "c")))
    product = te.compute(
        a.shape,
        lambda n, h, k, f: te.sum(
            inside[n, h + i, k + j, c] * w[i, j, c, f].astype("int32"), axis=[i, j, c]
        ),
        "product",
    )
    total = te.compute(a.shape, lambda n, h, k, f: product[n, h, k, f] + b[f], "total")

    def requantized(n, h, k, f):
        low, high = tirx.const(0.0 - ZERO_Y, "float32"), tirx.const(255.0 - ZERO_Y, "float32")
        value = a[n, h, k, f].astype("float32") * m[f]
        return (rounded(te.max(te.min(value, high), low)) + ZERO_Y).astype("uint8")

    narrow = te.compute(a.shape, requantized, "narrow")
    to_nchw = te.compute(SHAPE_Y, lambda n, f, h, k: y[n, h, k, f], "to_nchw")
    y_plain = te.placeholder(SHAPE_Y, "uint8", "y_plain")
    real = te.compute(
        SHAPE_Y,
        lambda n, f, h, k: (
            (y_plain[n, f, h, k].astype("float32") - float(ZERO_Y))
            * tirx.const(float(SCALE), "float32")
            + tirx.const(float(OFFSET), "float32")
        ),
        "real",
    )

    def kernel(symbol, tensors, arguments, does):
        function = te.create_prim_func(tensors)
        return Kernel(symbol, function, arguments, arguments[-1], does)

    layout = Layout(SHAPE_Y, NHWC)
    return Program(
        kernels=(
            kernel("lay", [x, to_nhwc], (image, lying), "to NHWC"),
            kernel("conv", [x_lies, w, b, total], (lying, weight, bias, acc), "Conv 'conv'"),
            kernel("narrow", [a, m, narrow], (acc, multiplier, conv), "QuantizeLinear"),
            kernel("back", [y, to_nchw], (conv, codes), "to NCHW"),
            kernel("reals", [y_plain, real], (codes, reals), "DequantizeLinear, Add"),
        ),
        constants={
            "weight": held.weight.reshape(-1),
            "bias": held.bias,
            "multiplier": held.multiplier,
        },
        inputs=(Tensor("image", image, Layout.plain(SHAPE_X)),),
        outputs=(
            Tensor("codes", codes, Layout.plain(SHAPE_Y)),
            Tensor("reals", reals, Layout.plain(SHAPE_Y)),
        ),
        taps=(Tensor("acc", acc, layout), Tensor("conv", conv, layout)),
    )


def golden(held: Constants, made: Program, runs: int = 4) -> list[GoldenRun]:
    """Return runs on random images by numpy."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(runs):
        image = random.integers(0, 256, SHAPE_X).astype(np.uint8)
        values = expected(held, image)
        outputs = tuple(values[t.name] for t in made.outputs)
        found.append(GoldenRun((image,), outputs, tuple(digest(values[t.name]) for t in made.taps)))
    return found


def sources(device: Device, *, rounded: Rounded = half_to_even, runs: int = 4) -> Sources:
    """Return a bundle's files for `device`."""
    held = constants()
    made = program(held, rounded)
    kernels = compile_kernels(made.kernels, tvm.target.Target(dict(device.target)))
    return make_sources(made, device, kernels, golden(held, made, runs), CODES, model="tiny")


def copied(dtype: str, elements: int) -> list[te.Tensor]:
    """Return what is read and what is written by a kernel that copies."""
    x = te.placeholder((elements,), dtype, "x")
    return [x, te.compute(x.shape, lambda n: x[n], "y")]


def copies(dtypes: Sequence[str], shape: tuple[int, ...]) -> tuple[Program, list[GoldenRun]]:
    """Return a program with an input and an output of each type, and runs of it."""
    kernels, inputs, outputs = [], [], []
    random = np.random.default_rng(3)
    arrays = []
    for dtype in dtypes:
        values = random.integers(0, 256, (*shape, np.dtype(dtype).itemsize)).astype(np.uint8)
        values = values % 2 if dtype == "bool" else values
        arrays.append(np.ascontiguousarray(values).view(dtype).reshape(shape))
        layout = Layout.plain(shape)
        source, result = (
            Buffer(f"{kind}_{dtype}", dtype, arrays[-1].size, kind) for kind in ("input", "output")
        )
        function = te.create_prim_func(copied(dtype, source.elements))
        kernels.append(Kernel(f"copy_{dtype}", function, (source, result), result, "Identity"))
        inputs.append(Tensor(source.name, source, layout))
        outputs.append(Tensor(result.name, result, layout))
    program = Program(tuple(kernels), {}, tuple(inputs), tuple(outputs), ())
    return program, [GoldenRun(tuple(arrays), tuple(arrays))]


def denormals() -> tuple[Program, list[GoldenRun]]:
    """Return a program whose vectors of sums and products are denormal, and a run of it."""
    x = te.placeholder((16,), "float32", "x")
    quarter, tiny = (float(np.float32(v)) for v in (0.25, 1.05e-38))
    results = {
        "product": te.compute(x.shape, lambda n: x[n] * tirx.const(quarter, "float32"), "y"),
        "sum": te.compute(x.shape, lambda n: x[n] + tirx.const(-tiny, "float32"), "y"),
    }
    source = Buffer("x", "float32", 16, "input")
    kernels, outputs = [], []
    for name, result in results.items():
        schedule = s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([x, result])}))
        (loop,) = schedule.get_loops(schedule.get_sblock("y"))
        schedule.vectorize(schedule.split(loop, [None, 4])[1])
        buffer = Buffer(name, "float32", 16, "output")
        kernels.append(Kernel(f"{name}_of", schedule.mod["main"], (source, buffer), buffer, name))
        outputs.append(Tensor(name, buffer, Layout.plain((16,))))
    values = np.arange(1, 17).astype(np.float32) * np.float32(1e-39)
    golden = GoldenRun((values,), (values * np.float32(quarter), values + np.float32(-tiny)))
    assert all(np.abs(y).max() < np.finfo(np.float32).tiny for y in golden.outputs[:1])
    inputs = (Tensor("x", source, Layout.plain((16,))),)
    return Program(tuple(kernels), {}, inputs, tuple(outputs), ()), [golden]


def altered_weight(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files with one byte of the weights changed."""
    head, _, data = files["edgeq_weights.c"].decode().partition(" =\n")
    assert re.match(r"\{\d\d,|\"[^\\]", data), "another byte would be easier to change"
    other = "#" if data[1] == "!" else "!"
    changed = "{99," + data[4:] if data[0] == "{" else '"' + other + data[2:]
    return {**files, "edgeq_weights.c": f"{head} =\n{changed}".encode()}
