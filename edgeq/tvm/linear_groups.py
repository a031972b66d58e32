"""Integer linear groups as kernels: constant weights packed, dynamic operands in plain loops.

A Clip behind the codes of a result costs nothing: the kernel saturates to its limits. Weights that
the model stores in 4 bits lie so in flash too: a kernel unpacks them to workspace right before the
one that multiplies.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from tvm.ir import Expr

from edgeq.errors import UnsupportedOperatorError
from edgeq.graph import int_attribute, ints_attribute, string_attribute
from edgeq.numerics.requantize import multiplier
from edgeq.numerics.windows import windows
from edgeq.operators.binding import describe
from edgeq.operators.integer import integer_kernel
from edgeq.qdq import LimitedCodes, LinearGroup, limited_codes
from edgeq.stored_codes import packed_source
from edgeq.tvm.arithmetic import const
from edgeq.tvm.linear import lower_linear
from edgeq.tvm.linear_problem import Codes, LinearProblem
from edgeq.tvm.nibbles import Nibbles, in_nibbles, unpack
from edgeq.tvm.products import write_product
from edgeq.tvm.program import NHWC, Buffer, Tensor
from edgeq.tvm.quantization import product, requantized

if TYPE_CHECKING:
    from edgeq.tvm.lower import Lowering

Array = NDArray[Any]


def lower_group(to: "Lowering", group: LinearGroup) -> list[ir.Node]:
    """Write the kernels of a linear group; return the nodes behind it that they do the work of.

    Raises:
        UnsupportedOperatorError: There is no kernel for it; the message names the node.
    """
    behind = [] if group.y is None else [group.y.node]
    if group.node.op_type == "Mul":
        _mul(to, group)
    elif group.w.array is None or group.w.codes.shape is None or _rank(group) != 2:
        _dynamic(to, group)
    else:
        limits = _limits(group)
        behind += [] if limits is None else [limits.node]
        (_conv if group.node.op_type == "Conv" else _dense)(to, group)
    return behind


def _rank(group: LinearGroup) -> int:
    assert group.w.array is not None
    return group.w.array.ndim if group.node.op_type != "Conv" else 2


def _codes(group: LinearGroup) -> Codes | None:
    if group.y is None:
        return None
    y, limits = group.y.qparams, _limits(group)
    low, high = (y.qtype.qmin, y.qtype.qmax) if limits is None else (limits.low, limits.high)
    return Codes(y.qtype.dtype.name, int(y.zero_point), low, high)


def _limits(group: LinearGroup) -> LimitedCodes | None:
    """Return the Clip that alone reads the result; it limits to codes of its type."""
    return None if group.y is None else limited_codes(group.y.codes)


def _output(group: LinearGroup) -> ir.Value:
    limits = _limits(group)
    return group.output if limits is None else limits.codes


def _multiplier(group: LinearGroup) -> Array:
    x, w = group.x.qparams.scale, group.w.qparams.scale
    if group.y is None:
        return np.asarray(x * w, np.float32).reshape(-1)
    return multiplier(x, w, group.y.qparams.scale).reshape(-1)


def _conv(to: "Lowering", group: LinearGroup) -> None:
    node, weight = group.node, group.w.array
    assert weight is not None
    shape = to.shape(group.x.codes)
    pads, strides, dilations = (
        ints_attribute(node, name, ()) for name in ("pads", "strides", "dilations")
    )
    auto_pad: Any = string_attribute(node, "auto_pad", "NOTSET")
    found = windows(shape[2:], weight.shape[2:], strides, dilations, pads, auto_pad)
    if len(shape) not in (3, 4):
        raise UnsupportedOperatorError(f"{describe(node)}: {len(shape) - 2} spatial axes")
    line = len(shape) == 3

    def pair(sizes: tuple[int, ...], filler: int) -> tuple[int, int]:
        return (filler, sizes[0]) if line else (sizes[0], sizes[1])

    begin, end = pair(found.begin, 0), pair(found.end, 0)
    height, width = pair(tuple(shape[2:]), 1)
    problem = LinearProblem(
        shape[0], height, width, shape[1], len(weight), *pair(found.kernel, 1),
        strides=pair(found.strides, 1), dilations=pair(found.dilations, 1),
        pads=(*begin, *end), groups=int_attribute(node, "group", 1),
        x_dtype=group.x.qparams.qtype.dtype.name, x_zero=int(group.x.qparams.zero_point),
        y=_codes(group),
    )  # fmt: skip
    order = (0, 2, 1) if line else NHWC
    _emit(to, group, problem, weight.reshape(len(weight), -1, problem.kernel_h, problem.kernel_w),
          to.stored(group.x.codes, order), to.new(_output(group), order))  # fmt: skip


def _dense(to: "Lowering", group: LinearGroup) -> None:
    weight = group.w.array
    assert weight is not None
    if group.node.op_type == "MatMul" or not int_attribute(group.node, "transB", 0):
        weight = weight.T
    shape = to.shape(group.x.codes)
    rows = int(np.prod(shape[:-1]))
    problem = LinearProblem(
        1, 1, rows, shape[-1], len(weight), 1, 1,
        x_dtype=group.x.qparams.qtype.dtype.name, x_zero=int(group.x.qparams.zero_point),
        y=_codes(group),
    )  # fmt: skip
    x = to.stored(group.x.codes, tuple(range(len(shape))))
    y = to.new(_output(group), tuple(range(len(shape))))
    _emit(to, group, problem, np.ascontiguousarray(weight)[:, :, None, None], x, y)


def _emit(
    to: "Lowering", group: LinearGroup, problem: LinearProblem, weight: Array, x: Tensor, y: Tensor
) -> None:
    bias = None if group.bias is None else group.bias.array
    if bias is not None:
        if bias.size > 1 and bias.shape[-1] != bias.size:
            raise UnsupportedOperatorError(f"{describe(group.node)}: a bias for each row")
        bias = np.broadcast_to(bias.reshape(-1), (problem.out_c,))
    zero = group.w.qparams.zero_point
    symbol = to.builder.symbol(group.node.op_type)
    made = lower_linear(symbol, problem, weight, np.asarray(zero), bias, _multiplier(group), to.isa)
    places = {"x": x.buffer, "y": y.buffer}
    packed = packed_source(group.w.codes) is not None
    for role, array in made.constants.items():
        nibbles = in_nibbles(array) if packed and array.dtype.kind == "i" else None
        if nibbles is None or array.dtype.itemsize > 2:
            places[role] = to.builder.constant(array)
        else:
            places[role] = _unpacked(to, nibbles, str(group.w.codes.name))
    for role, (dtype, elements) in made.scratch.items():
        places[role] = to.builder.buffer(dtype, elements)
    for step in made.steps:
        scratch = [places[role] for role in step.roles if role in made.scratch]
        writes = y.buffer if "y" in step.roles else scratch[-1]
        to.builder.add(
            step.function,
            [places[role] for role in step.roles],
            writes,
            f"{group.node.op_type} {y.name}",
            step.symbol,
            scratch,
        )


def _unpacked(to: "Lowering", nibbles: Nibbles, name: str) -> Buffer:
    """Return the workspace that a kernel of its own unpacks weights to."""
    arrays = [nibbles.data] + ([] if nibbles.table is None else [nibbles.table])
    buffer = to.builder.buffer(nibbles.dtype, nibbles.elements)
    symbol, function = unpack(nibbles)
    places = [*(to.builder.constant(array) for array in arrays), buffer]
    to.builder.add(function, places, buffer, f"Unpack {name}", symbol)
    return buffer


def _finish(group: LinearGroup) -> Callable[[Expr], Expr]:
    scale = const(np.float32(_multiplier(group)[0]), "float32")

    def finish(acc: Expr) -> Expr:
        if group.y is None:
            return acc.astype("float32") * scale
        y = group.y.qparams
        return requantized(acc, scale, int(y.zero_point), y.qtype)

    return finish


def _mul(to: "Lowering", group: LinearGroup) -> None:
    kernel = integer_kernel(group)
    x = product(
        to.pointwise(group.x.codes),
        to.pointwise(group.w.codes),
        (int(group.x.qparams.zero_point), int(group.w.qparams.zero_point)),
        _finish(group),
        to.shape(group.output),
        to.dtype(group.output),
        lambda a, b: kernel(a, b)[0],
    )
    to.keep(group.output, x)


def _dynamic(to: "Lowering", group: LinearGroup) -> None:
    """A product of two values: `y[..., i, j] = sum(a[..., i, k] * b[..., k, j])`."""
    if _multiplier(group).size > 1 or group.bias is not None:
        raise UnsupportedOperatorError(f"{describe(group.node)}: its operands are values")
    zeros = int(group.x.qparams.zero_point), int(group.w.qparams.zero_point)
    transposed = bool(int_attribute(group.node, "transB", 0))
    operands = group.x.codes, group.w.codes
    write_product(to, operands, group.output, zeros, _finish(group), transposed=transposed)
