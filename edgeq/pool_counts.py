"""How many elements the windows of an AveragePool hold: the divisors that occur.

Also where the fused kernel takes other divisors than AveragePool, or none.
"""

import itertools
import math

import onnx_ir as ir

from edgeq.graph import int_attribute, ints_attribute, static_shape, string_attribute


def pool_counts(node: ir.Node) -> tuple[int, ...]:
    """Return the element counts of all windows of an AveragePool, ascending.

    Windows at a border hold fewer elements, unless padding is counted. Where the image's size is
    unknown every smaller window is assumed to occur.
    """
    kernel = ints_attribute(node, "kernel_shape", ())
    full = math.prod(kernel)
    pads = ints_attribute(node, "pads", [0] * 2 * len(kernel))
    ceil = bool(int_attribute(node, "ceil_mode", 0))
    automatic = string_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    padded = any(pads) or automatic
    if not ceil and (not padded or int_attribute(node, "count_include_pad", 0)):
        return (full,)
    lengths = [range(1, k + 1) for k in kernel]
    return tuple(sorted({math.prod(window) for window in itertools.product(*lengths)}))


def fusion_obstacle(node: ir.Node) -> str:
    """Return why QLinearAveragePool does not stand for this AveragePool; empty if it does."""
    if int_attribute(node, "ceil_mode", 0) and int_attribute(node, "count_include_pad", 0):
        return "with ceil_mode and count_include_pad it divides by another count than AveragePool"
    if set(ints_attribute(node, "dilations", (1,))) != {1}:
        return "it has no dilations; the session does not load"
    return ""


def whole_image(node: ir.Node) -> bool:
    """Whether one window may cover the whole image, which runs as a global pool."""
    value = node.inputs[0]
    shape = None if value is None else static_shape(value)
    kernel = ints_attribute(node, "kernel_shape", ())
    if shape is None:
        return value is None or value.shape is None or _may_cover(value.shape, kernel)
    return tuple(shape[2:]) == tuple(kernel)


def _may_cover(shape: ir.Shape, kernel: tuple[int, ...]) -> bool:
    pairs = zip(list(shape)[2:], kernel, strict=True)
    return all(not isinstance(size, int) or size == k for size, k in pairs)
