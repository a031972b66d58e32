"""A linear op as a product of matrices: each output is a row of weights times a row of inputs.

    y[n, o] = sum over k of  w[o, k] * x[n, k]      per group of a Conv

The columns of a Conv are its windows (im2col), the channel first, then the place in the window: the
order in which a row of its weight is stored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.graph import int_attribute, ints_attribute, string_attribute
from edgeq.numerics.windows import AutoPad, windows
from edgeq.qdq import LinearGroup

Array = NDArray[Any]
BLOCK = 256  # rows; products of 8-bit units stay below 2**24 in their sums: exact in float32


@dataclass(frozen=True, eq=False)
class LinearRows:
    """How the operands of one linear op are read as matrices.

    Attributes:
        group: The integer linear op, with a constant weight.
        groups: Groups of a Conv; 1 elsewhere.
        outputs: Output channels, of all groups.
        depth: Weights per output.
    """

    group: LinearGroup
    groups: int
    outputs: int
    depth: int

    @classmethod
    def of(cls, group: LinearGroup) -> "LinearRows | None":
        """Return how `group` is read; None where its right operand is no constant matrix."""
        codes = group.w.array
        if codes is None or group.node.op_type not in ("Conv", "Gemm", "MatMul"):
            return None
        if group.node.op_type == "Conv":
            count = int_attribute(group.node, "group", 1)
            return cls(group, count, codes.shape[0], int(np.prod(codes.shape[1:])))
        if codes.ndim != 2:
            return None
        outputs = codes.shape[0 if _transposed(group) else 1]
        return cls(group, 1, outputs, codes.size // max(1, outputs))

    def rows(self, weight: Array) -> Array:
        """Return an array of the weight's shape as (outputs, depth)."""
        if self.group.node.op_type != "Conv" and not _transposed(self.group):
            weight = weight.T
        return weight.reshape(self.outputs, self.depth)

    def weight(self, rows: Array) -> Array:
        """Return (outputs, depth) in the weight's shape."""
        codes = self.group.w.array
        assert codes is not None
        if self.group.node.op_type != "Conv" and not _transposed(self.group):
            return np.ascontiguousarray(rows.T)
        return rows.reshape(codes.shape)

    def inputs(self, codes: Array) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield the input rows in units, a few at a time.

        Args:
            codes: What the op reads; the batch first.

        Yields:
            Which rows of `results` they belong to, and float32 (groups, rows, depth).
        """
        zero = int(self.group.x.qparams.zero_point)
        if self.group.node.op_type != "Conv":
            flat = codes.reshape(-1, self.depth)
            for start in range(0, len(flat), BLOCK):
                place = slice(start, min(len(flat), start + BLOCK))
                yield place, (flat[place].astype(np.float32) - np.float32(zero))[None]
            return
        done = 0
        for sample in codes:
            for block in self._windows(sample.astype(np.float32) - np.float32(zero)):
                yield slice(done, done + block.shape[1]), block
                done += block.shape[1]

    def results(self, values: Array) -> Array:
        """Return results of the op, the batch first, as (rows, outputs), in the order of inputs."""
        if self.group.node.op_type == "Conv":
            values = np.moveaxis(values, 1, -1)
        return values.reshape(-1, self.outputs)

    def _windows(self, sample: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Yield the windows of one sample (channels, *spatial), in order."""
        node, codes = self.group.node, self.group.w.array
        assert codes is not None
        kernel = codes.shape[2:]
        auto_pad: AutoPad = string_attribute(node, "auto_pad", "NOTSET")  # type: ignore[assignment]  # windows() reads unknown text as ONNX's default
        pads, strides, dilations = (
            ints_attribute(node, name, ()) for name in ("pads", "strides", "dilations")
        )
        layout = windows(sample.shape[1:], kernel, strides, dilations, pads, auto_pad)
        amounts = [
            (begin, whole - begin - size)
            for begin, whole, size in zip(layout.begin, layout.padded, layout.input, strict=True)
        ]
        padded = np.pad(sample, [(0, 0), *amounts])
        taps = [padded[(slice(None), *place)] for place in layout.offsets()]
        # (channels, taps, *output): views until a block of rows is cut out
        first, rest = layout.output[0], int(np.prod(layout.output[1:]))
        step = max(1, BLOCK // max(1, rest))
        for start in range(0, first, step):
            part = np.stack([tap[:, start : start + step] for tap in taps], 1)
            columns = part.reshape(self.groups, self.depth, -1).swapaxes(1, 2)
            for begin in range(0, columns.shape[1], BLOCK):
                yield np.ascontiguousarray(columns[:, begin : begin + BLOCK])


def _transposed(group: LinearGroup) -> bool:
    return group.node.op_type == "Gemm" and bool(int_attribute(group.node, "transB", 0))
