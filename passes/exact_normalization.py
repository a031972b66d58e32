"""Write normalisations of codes with exact statistics and single IEEE operations.

before:  y_q = QuantizeLinear(LayerNormalization(DequantizeLinear(x_q, s, z), gamma, beta), sy, zy)
after:   u   = Cast(x_q)                                    integers held in float32
         S1  = ReduceSum(u);  S2 = ReduceSum(Mul(u, u))     exact, see `edgeq.row_sums`
         m   = Div(S1, N)                                   in float64, one value for each row
         v   = Sub(S2, Mul(S1, m))
         t   = Mul(Sqrt(Add(v, N * epsilon / (s * s))), sy / (gamma * sqrt(N)))
         y_q = QuantizeLinear(Sub(u, Cast(Sub(m, Mul(t, zy + beta / sy)))), Cast(t))

N is the length of a row, `v / N` the variance in squared steps of the codes; normalisation ignores
the zero point. `t` is how far apart in `u` neighbouring codes of the result are: one scale for each
row, given to QuantizeLinear as blocks as long as rows are. Only sums depend on an order, and these
are exact: all else is one IEEE operation a node. Short rows of 16-bit codes have exact means and
distances to them; there the sum of squared distances is v.

gamma and beta are one number for a row, or for some channels of it (GroupNormalization, and
Reshape - InstanceNormalization - Reshape - Mul - Add); where they differ along a row, they follow
as Mul and Add. Where float32 follows, Div stands for QuantizeLinear, and sy = 1.

before:  y   = Div(x, Sqrt(Add(ReduceMean(Mul(x, x)), epsilon)))     x = DequantizeLinear(x_q, s, z)
after:   d   = Sub(Cast(x_q), z)
         t   = Mul(Sqrt(Add(ReduceSum(Mul(d, d)), N * epsilon / (s * s))), 1 / sqrt(N))
         y   = Div(d, Cast(t))
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.chain import Chain
from edgeq.channel_affine import ChannelAffine, Float64, channel_affine
from edgeq.dims import Dim, dim_product, dim_quotient, same_dim, same_shape
from edgeq.errors import ModelError
from edgeq.graph import Editor, producer, remove_dead, replace_uses, take_output
from edgeq.longest import most_elements
from edgeq.normalization import Normalization, normalization, tail_nodes
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, Result, operand
from edgeq.row_statistics import RowStatistics, rows_along
from edgeq.row_sums import ROOM

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
_FLAT = 2.0**-40  # of the largest gamma: what a gamma of 0 is, so that no scale is infinite
_HUGE = np.float32(2.0**100)  # what is divided by it rounds to 0


@dataclass(frozen=True)
class ExactNormalization(Pass):
    """Replace each normalisation whose input is quantized."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Rewrite; return how many normalisations went.

        Raises:
            ModelError: int64 may not hold the statistics of a row.
        """
        editor = Editor(model.graph)
        done = 0
        for node in list(model.graph):
            found = None if context.keep_float(node) else normalization(node)
            x = None if found is None else operand(found.x)
            if found is None or x is None or x.qparams.axis is not None or x.codes.shape is None:
                continue
            _Form(found, x, editor, context.max_dim).write()
            done += 1
        remove_dead(model.graph)
        return done


class _Form:
    """The exact form of one normalisation, and the edits that write it."""

    def __init__(self, found: Normalization, x: Operand, editor: Editor, max_dim: int) -> None:
        self.found = found
        self.x = x
        self.max_dim = max_dim
        self.chain = Chain(editor, found.node.outputs[0].name or found.node.op_type)
        self.affine = channel_affine(found)
        self.is_shifted = False
        codes, axes = self._in_rows()
        zero_point = 0 if found.centered else int(x.qparams.zero_point)
        self.units = self._units(codes, zero_point)
        self.rows = rows_along(self.units, axes, max_dim)
        low, high = (q - zero_point for q in (x.qparams.qtype.qmin, x.qparams.qtype.qmax))
        reach = max(-low, high, high - low if found.centered else 0)
        self._check_room(reach)
        self.statistics = RowStatistics(self.chain, self.units, self.rows, reach)

    def _in_rows(self) -> tuple[ir.Value, tuple[int, ...]]:
        """Return the codes, and the axes of a row in them.

        Groups of channels have the shape (batch, groups, channels of a group, rest), without the
        third size where it is 1: nothing that scales or shifts changes along the last axis.
        """
        codes, found = self.x.codes, self.found
        shape = list(codes.shape or ())
        if not found.groups or self.affine is None:
            first = found.axes[0]
            trailing = found.axes == tuple(range(first, len(shape)))
            if self.affine is None or len(found.axes) == 1 or not trailing:
                return codes, found.axes
            sizes = [*shape[:first], dim_product(_named(shape[first:]))]
            return self._reshaped(codes, sizes, first), (first,)
        several = max(1, self.affine.gamma.size // found.groups)
        split = [found.groups] if several == 1 else [found.groups, several]
        sizes = [shape[0], *split, dim_quotient(_named(shape[1:]), split)]
        return self._reshaped(codes, sizes, 1), tuple(range(2, len(sizes)))

    def _reshaped(self, codes: ir.Value, sizes: Sequence[Dim | None], kept: int) -> ir.Value:
        shape = ir.Shape(sizes)
        if same_shape(codes, ir.Value(shape=shape)):
            return codes
        return self.chain.reshape(codes, shape, kept=kept)

    def _units(self, codes: ir.Value, zero_point: int) -> ir.Value:
        """Return `codes - zero_point` in float32."""
        units = self.chain.cast(codes, FLOAT)
        if not zero_point:
            return units
        # Not a DequantizeLinear of scale 1: ONNX Runtime makes one for each reader.
        return self.chain("Sub", units, self.chain.constant(np.float32(zero_point)))

    def _check_room(self, reach: int) -> None:
        if self.rows.longest * reach**2 > ROOM[INT64]:
            node = self.found.node
            raise ModelError(
                f"node {node.name} ({node.op_type}): int64 cannot hold the squares of rows of up to"
                f" {self.rows.longest} elements; fix the dimensions of the model, lower max_dim, or"
                f" leave the node in float with --keep-float '{node.name}'"
            )

    def write(self) -> None:
        """Replace the normalisation."""
        y = None if self.affine is None else self.affine.y
        if self.affine is None:
            self._replace(self.found.node.outputs[0], self._along_rows())
        elif y is None or not self._fits_blocks(self.affine):
            self._replace(self.affine.output, self._in_place(self._reals(self.affine)))
        else:
            self._replace(y.codes, self._in_place(self._codes(self.affine, y)))

    def _fits_blocks(self, affine: ChannelAffine) -> bool:
        """Whether QuantizeLinear can take over: its blocks are rows, and it adds an integer."""
        last = self.rows.axes[-1] == len(self.units.shape or ()) - 1
        return last and (self.found.centered or not affine.beta.any())

    def _codes(self, affine: ChannelAffine, y: Result) -> ir.Value:
        """Return the codes of the result: each row has a scale of its own, and is rounded once."""
        chain, kind = self.chain, ir.DataType.from_numpy(y.qparams.qtype.dtype)
        step, zero_point = float(y.qparams.scale), int(y.qparams.zero_point)
        inputs = [*self._scaled(affine.gamma / step, affine.beta / step, zero_point)]
        if zero_point and not self.is_shifted:  # one for each row: nothing plus the zero point
            zero = chain.constant(np.array(zero_point, y.qparams.qtype.dtype))
            huge = chain.constant(_HUGE)
            inputs.append(chain("QuantizeLinear", inputs[1], huge, zero, dtype=kind))
        assert inputs[0].shape is not None
        block = most_elements(inputs[0].shape[-1:], self.max_dim)
        return chain(
            "QuantizeLinear", *inputs, dtype=kind, axis=-1, block_size=block,
            output_dtype=kind.value,
        )  # fmt: skip

    def _reals(self, affine: ChannelAffine) -> ir.Value:
        """Return the result in float32."""
        result = self.chain("Div", *self._scaled(affine.gamma, affine.beta))
        if self.is_shifted or not affine.beta.any():
            return result
        return self.chain("Add", result, self.chain.constant(affine.beta.astype(np.float32)))

    def _along_rows(self) -> ir.Value:
        """Return the result in float32 where gamma or beta differ along a row."""
        chain, found = self.chain, self.found
        result = chain("Div", *self._scaled(np.ones(1), np.zeros(1)))
        if found.gamma is not None:
            result = chain("Mul", result, chain.constant(found.gamma))
        return result if found.beta is None else chain("Add", result, chain.constant(found.beta))

    def _scaled(
        self, gamma: Float64, beta: Float64, zero_point: int = 0
    ) -> tuple[ir.Value, ir.Value]:
        """Return distances, and how large a distance makes 1 of the result; both float32.

        Their quotient is `normalised * gamma`, plus `beta + zero_point` if that `is_shifted`.
        """
        chain, statistics = self.chain, self.statistics
        deviations = None
        if self.found.centered and not beta.any():
            deviations = statistics.deviations()
        mean, distance = None, self.units
        if deviations is not None:
            distance, squares = deviations
        elif self.found.centered:
            mean, squares = statistics.mean_and_variance()
        else:
            squares = statistics.squares()
        if self.found.epsilon:
            epsilon = self.found.epsilon / float(self.x.qparams.scale) ** 2
            squares = chain("Add", squares, statistics.length_times(epsilon))
        factor = statistics.over_root(self._by_channel(1 / _without_zeros(gamma)))
        shape = list(squares.shape or ())
        if gamma.size > 1:
            shape[1:] = self._channel_sizes()
        unit = chain("Mul", chain("Sqrt", squares), factor, shape=shape)
        if mean is not None:
            self.is_shifted = True
            if beta.any() or zero_point:
                numbers = chain.constant(self._by_channel(beta + zero_point))
                mean = chain("Sub", mean, chain("Mul", unit, numbers), shape=shape)
            distance = chain("Sub", distance, chain.cast(mean, FLOAT))
        return distance, chain.cast(unit, FLOAT)

    def _by_channel(self, numbers: Float64) -> Float64:
        """Return numbers in a shape that broadcasts along rows."""
        ndim = len(self.units.shape or ())
        sizes = [1] * (ndim - 1) if numbers.size == 1 else self._channel_sizes()
        return numbers.reshape(1, *sizes)

    def _channel_sizes(self) -> list[int]:
        """Return the sizes behind the batch, the last one 1."""
        assert self.units.shape is not None
        return [*(size for size in self.units.shape[1:-1] if isinstance(size, int)), 1]

    def _in_place(self, value: ir.Value) -> ir.Value:
        """Return `value` in the shape of what is replaced."""
        assert self.affine is not None and value.shape is not None
        own = self.affine.output is self.found.node.outputs[0]
        shape = self.x.codes.shape if own else self.affine.output.shape
        assert shape is not None
        if same_shape(value, ir.Value(shape=shape)):
            return value
        kept = sum(1 for _ in itertools.takewhile(bool, map(same_dim, value.shape, shape)))
        if sum(not isinstance(size, int) for size in shape[kept:]) < 2:
            return self.chain.reshape(value, shape, kept=kept)
        if own:
            sizes = self.chain("Shape", self.x.codes, shape=[len(shape)], dtype=INT64)
            return self.chain("Reshape", value, sizes, shape=shape)
        tail = [node for node in tail_nodes(self.found.node) if node.op_type == "Reshape"]
        assert tail and tail[-1].inputs[1] is not None
        return self.chain("Reshape", value, tail[-1].inputs[1], shape=shape)

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        self.chain.insert_before(producer(old))
        replace_uses(old, new)
        new.metadata_props.update(old.metadata_props)
        take_output(old, new)


def _named(sizes: Sequence[Dim]) -> list[Dim]:
    """Return sizes with a name for each that has none: all of them bound the length of the rows."""
    return [
        ir.SymbolicDim(f"axis_{axis}") if not isinstance(size, int) and size.value is None else size
        for axis, size in enumerate(sizes, 1)
    ]


def _without_zeros(gamma: Float64) -> Float64:
    """Return factors that something can be divided by: tiny ones for 0."""
    largest = float(np.abs(gamma).max()) or 1.0
    return np.where(np.abs(gamma) < _FLAT * largest, _FLAT * largest, gamma)
