"""Write normalisations of codes with exact statistics and single IEEE operations.

before:  y = LayerNormalization(DequantizeLinear(x_q, s, z), gamma, beta)
after:   u  = Cast(x_q)                                     integers held in float32
         S1 = ReduceSum(u);  S2 = ReduceSum(Mul(u, u))      exact, see `edgeq.row_sums`
         m  = Div(S1, N)                                    in float64, one value for each row
         v  = Sub(S2, Mul(S1, m))
         r  = Div(sqrt(N), Sqrt(Add(v, N * epsilon / (s * s))))
         y  = Add(Mul(Mul(Sub(u, Cast(m)), Cast(r)), gamma), beta)

N is the length of a row, `v / N` the variance in squared steps of the codes; normalisation ignores
the zero point. Only sums depend on an order, and these are exact: all else is one IEEE operation a
node. Where gamma is one number for a row (InstanceNormalization), or for some channels of it
(GroupNormalization, and Reshape - InstanceNormalization - Reshape - Mul), it becomes part of r.

before:  y = Div(x, Sqrt(Add(ReduceMean(Mul(x, x)), epsilon)))     x = DequantizeLinear(x_q, s, z)
after:   d = Sub(Cast(x_q), z);  S2 = ReduceSum(Mul(d, d))
         y = Mul(d, Cast(Div(sqrt(N), Sqrt(Add(S2, N * epsilon / (s * s))))))
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.chain import Chain
from edgeq.dims import dim_product, dim_quotient, same_dim
from edgeq.errors import ModelError
from edgeq.graph import Editor, constant, remove_dead, replace_uses, take_output
from edgeq.normalization import Normalization, normalization, tail_nodes
from edgeq.passing import Context, Pass
from edgeq.qdq import Operand, operand
from edgeq.row_statistics import RowStatistics, rows_along
from edgeq.row_sums import ROOM

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


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
        self.chain = Chain(editor, found.node.outputs[0].name or found.node.op_type)
        self.units = self.chain.cast(x.codes, FLOAT)
        grouped = self._groups_of_channels()
        self.is_grouped = grouped is not None
        if grouped is not None:
            self.units = self.chain.reshape(self.units, grouped, kept=1)
        self.rows = rows_along(self.units, (2,) if grouped is not None else found.axes, max_dim)
        zero_point = 0 if found.centered else int(x.qparams.zero_point)
        if zero_point:
            zero = self.chain.constant(np.float32(zero_point))
            self.units = self.chain("Sub", self.units, zero)
        low, high = x.qparams.qtype.qmin - zero_point, x.qparams.qtype.qmax - zero_point
        reach = max(-low, high)
        self._check_room(reach)
        self.statistics = RowStatistics(self.chain, self.units, self.rows, reach)

    def _groups_of_channels(self) -> ir.Shape | None:
        """Return (batch, groups, rest) if a group has several channels, and is no axis yet."""
        shape, groups = self.x.codes.shape, self.found.groups
        assert shape is not None
        batch, *sizes = shape
        if not groups or (sizes[0] == groups and len(sizes) > 1):
            return None
        # A name for each size that has none: all of them bound the length of the rows.
        named = [ir.SymbolicDim(f"axis_{i}") if _nameless(s) else s for i, s in enumerate(sizes, 1)]
        return ir.Shape([batch, groups, dim_quotient(named, [groups])])

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
        chain, statistics, found = self.chain, self.statistics, self.found
        distance = self.units
        if found.centered:
            mean, squares = statistics.mean_and_variance()
            distance = chain("Sub", distance, mean)
        else:
            squares = statistics.squares()
        if found.epsilon:
            epsilon = found.epsilon / float(self.x.qparams.scale) ** 2
            squares = chain("Add", squares, statistics.length_times(epsilon))
        root = chain("Sqrt", squares)
        result = (self._by_channel if found.groups else self._by_row)(distance, root)
        if found.beta is not None:
            result = chain("Add", result, chain.constant(found.beta))
        chain.insert_before(found.node)
        output = found.node.outputs[0]
        replace_uses(output, result)
        if output.is_graph_output():
            take_output(output, result)

    def _by_row(self, distance: ir.Value, root: ir.Value) -> ir.Value:
        """Return `distance * sqrt(N) / root * gamma`."""
        gamma, factor = self.found.gamma, 1.0
        if gamma is not None and np.all(gamma == gamma.reshape(-1)[0]):
            factor, gamma = float(gamma.reshape(-1)[0]), None
        result = self.chain("Mul", distance, self._over(factor, root))
        return result if gamma is None else self.chain("Mul", result, self.chain.constant(gamma))

    def _by_channel(self, distance: ir.Value, root: ir.Value) -> ir.Value:
        """Return the same, in the shape of the result; gamma has one number for each channel."""
        chain, found, shape = self.chain, self.found, self.x.codes.shape
        assert shape is not None
        behind = _scale_behind(found, self.units)
        if behind is not None:
            scale = self._channel_scale(behind.gamma, root, behind.ndim)
            behind.node.replace_input_with(behind.index, scale)
            return self._in_place(distance)
        if found.gamma is None:
            return self._in_place(chain("Mul", distance, self._over(1.0, root)))
        scale = self._channel_scale(found.gamma, root, len(shape))
        return chain("Mul", self._in_place(distance), scale)

    def _over(self, factor: NDArray[np.float64] | float, root: ir.Value) -> ir.Value:
        """Return `factor * sqrt(N) / root`, rounded to float32; a factor has its last axes."""
        assert root.shape is not None
        sizes = [*root.shape[: len(root.shape) - np.ndim(factor)], *np.shape(factor)]
        numerator = self.statistics.root_times(factor)
        return self.chain.cast(self.chain("Div", numerator, root, shape=sizes), FLOAT)

    def _channel_scale(self, gamma: NDArray[np.float32], root: ir.Value, ndim: int) -> ir.Value:
        """Return `gamma * sqrt(N) / root`, (batch, channels, 1, ...); `root` has groups."""
        assert root.shape is not None
        per_group = (self.found.groups, -1, *(1,) * (len(root.shape) - 3))
        scale = self._over(gamma.astype(np.float64).reshape(per_group), root)
        if ndim == len(root.shape) and gamma.size == self.found.groups:
            return scale
        shape = ir.Shape([root.shape[0], gamma.size, *(1,) * (ndim - 2)])
        return self.chain.reshape(scale, shape, kept=1)

    def _in_place(self, value: ir.Value) -> ir.Value:
        """Return (batch, groups, rest) in the shape of the result."""
        shape = self.x.codes.shape
        assert shape is not None
        if not self.is_grouped:
            return value
        if sum(not isinstance(size, int) for size in shape[1:]) < 2:
            return self.chain.reshape(value, shape, kept=1)
        sizes = self.chain("Shape", self.x.codes, shape=[len(shape)], dtype=INT64)
        return self.chain("Reshape", value, sizes, shape=shape)


def _nameless(size: int | ir.SymbolicDim) -> bool:
    return isinstance(size, ir.SymbolicDim) and size.value is None


@dataclass(frozen=True, eq=False)
class _ScaleBehind:
    """A Mul by one constant for each channel, behind a Reshape that divides groups into channels.

    Attributes:
        node: The Mul.
        index: Which of its inputs is the constant.
        ndim: The rank of its result.
        gamma: The constant.
    """

    node: ir.Node
    index: int
    ndim: int
    gamma: NDArray[np.float32]


def _scale_behind(found: Normalization, units: ir.Value) -> _ScaleBehind | None:
    """Return the scale of a GroupNorm that is spelled Reshape - InstanceNormalization - Reshape."""
    nodes = tail_nodes(found.node)
    if found.gamma is not None or found.beta is not None or len(nodes) < 2:
        return None
    reshape, scale = nodes[:2]
    shape = reshape.outputs[0].shape
    if [reshape.op_type, scale.op_type] != ["Reshape", "Mul"] or shape is None or len(shape) < 2:
        return None
    index = 1 if scale.inputs[0] is reshape.outputs[0] else 0
    gamma = constant(scale.inputs[index])
    channels = (shape[1], *(1,) * (len(shape) - 2))
    if gamma is None or gamma.shape not in (channels, (1, *channels)):
        return None
    # With as many elements in a sample, samples and groups are where they were.
    assert units.shape is not None
    before, after = (dim_product(list(s)[1:]) for s in (units.shape, shape))
    if before is None or after is None or not same_dim(before, after):
        return None
    whole = gamma.size % found.groups == 0
    return _ScaleBehind(scale, index, len(shape), gamma) if whole else None
