"""Softmax as a table, an exact sum and one division: what it is written by, and why its bits hold.

    d     = x - max(x)                              per row: one IEEE subtraction
    index = saturate(round_half_even(d / step))     how far an element lies below the largest
    e     = round(exp(index * step) * highest)      a table, or Exp where its bits are certain
    p     = e / sum(e)                              the sum is exact, in any order

The greatest distance, like all beyond it, has a term of 0. A row of terms adds up to less than
2**24; where its length is known, pieces of it do, and their sums are added up in float64. So long
rows keep the terms that their small probabilities need. Where codes follow, each row is quantized
with the scale `float32(sum(e) * scale)`: division and quantization are rounded once.

LogSoftmax is `d - log(sum(e) / peak)`, the logarithm by square roots (`edgeq.logarithm_form`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.certain_exponentials import certain_exponentials
from edgeq.chain import Chain
from edgeq.graph import Editor, rank
from edgeq.logarithm_form import logarithm
from edgeq.look_up import look_up
from edgeq.numerics.affine import QParams
from edgeq.qdq import Operand, Result
from edgeq.row_sums import Rows as Summed
from edgeq.row_sums import row_sums

# Metadata of the codes of probabilities: the names of the values that they are made from.
DISTANCE, UNIT = "edgeq.distance", "edgeq.unit"  # to the largest of a row; what 1 stands for
TERMS, TOTAL, HIGHEST_TERM = "edgeq.terms", "edgeq.total", "edgeq.highest_term"
HIGHEST_CODE = "edgeq.highest_code"
EXACT_BITS = 24
LONGEST = 2**16  # elements of a row: of longer ones, terms would have fewer than 8 bits
# Distances and the largest term in front of 8-bit codes: larger terms would need coarser steps, and
# more of them would not be certain. Codes of long rows stand for small numbers, which need more.
SHORT = 256  # elements of a row
FEW, MANY = (256, 2**14 - 1), (1024, 2**13 - 1)
ENTRIES, HIGHEST = 4096, 2**16 - 1  # of the table in front of all else
Attribute = int | float | str | Sequence[int]
FLOAT, INT32, INT64, DOUBLE = (
    ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.DOUBLE
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """The rows of a Softmax.

    Attributes:
        axis: The axis of the rows, as the Softmax states it.
        longest: The most elements that a row can have.
        lowest: What all elements of an empty row are below: its probabilities are 0. None: such a
            row is like any other.
    """

    axis: int
    longest: int
    lowest: float | None = None


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms that a Softmax adds up.

    Attributes:
        values: float32, integers.
        highest: The term of the largest element of a row.
        distance: How far elements lie from the largest: codes, int32 or float32.
        unit: What a distance of 1 stands for; negative where distances count downwards.
    """

    values: ir.Value
    highest: int
    distance: ir.Value
    unit: float


def peak(longest: int) -> int:
    """Return the largest term of which `longest` add up to less than 2**24.

    >>> peak(256), peak(257)
    (65535, 32767)
    """
    return int(2 ** (EXACT_BITS - (longest - 1).bit_length()) - 1)


def exponentials(step: float, highest: int, entries: int = 256) -> NDArray[np.float32]:
    """Return `round(exp(-k * step) * highest)` for k = 0, 1, ...: integers held in float32.

    >>> exponentials(0.1, 65535)[:2]
    array([65535., 59299.], dtype=float32)
    """
    terms = np.rint(np.exp(-np.arange(entries) * step) * highest)
    return np.asarray(terms, np.float32)


class Constants:
    """Initializers that the forms of one model share: equal arrays are stored once."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def __call__(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        """Return the initializer that holds `array`; a new one is named after `name`."""
        key = array.dtype.name, array.shape, array.tobytes()
        if key not in self._known:
            self._known[key] = self._editor.initializer(name, array)
        return self._known[key]


class SoftmaxWriter:
    """Writes the nodes that stand for one Softmax or LogSoftmax.

    Attributes:
        made: The values made, in order; whoever uses the writer inserts their producers.
    """

    def __init__(self, editor: Editor, constants: Constants, name: str, rows: Rows) -> None:
        self.made: list[ir.Value] = []
        self._editor = editor
        self._constants = constants
        self._name = name
        self._rows = rows

    def of_codes(self, x: Operand) -> Terms:
        """Return the terms of 8-bit codes: their distances are the indices of the table."""
        codes = x.codes
        top = self._reduce("ReduceMax", codes, "max")
        if x.qparams.qtype.qmin < 0:  # a difference of int8 needs more bits
            top, codes = self._cast(top, INT32, "max_int"), self._cast(codes, INT32, "int")
        below = self._write("Sub", [top, codes], "below", like=codes)
        scale, highest = float(x.qparams.scale), self._highest(codes)
        values = self._look_up(below, exponentials(scale, highest))
        return Terms(values, highest, below, -scale)

    def units(self, x: Operand) -> ir.Value:
        """Return codes as float32; offsets do not matter to a Softmax."""
        return self._cast(x.codes, FLOAT, "units")

    def of_reals(self, x: ir.Value, unit: float, *, fine: bool) -> Terms:
        """Return the terms of `x * unit`, x float32.

        Where 8-bit codes follow, few distances are enough, and exp of them is certain; `fine` ones
        have 4096 steps, and a table.
        """
        highest = self._highest(x)
        top = self._reduce("ReduceMax", x, "max")
        if self._rows.lowest is not None:
            lowest = self._constant("lowest", np.float32(self._rows.lowest))
            top = self._write("Max", [top, lowest], "top", like=top)
        below = self._write("Sub", [x, top], "below", like=x)
        if fine:
            step = math.log(2 * highest) / (ENTRIES - 1.5)  # the last term alone rounds to 0
            index = self._index(below, step / unit, np.array(ENTRIES - 1, np.uint16))
            values = self._look_up(index, exponentials(step, highest, ENTRIES)[::-1])
            return Terms(values, highest, below, unit)
        count, most = FEW if self._rows.longest <= SHORT else MANY
        certain = certain_exponentials(min(highest, most), count)
        kind = np.dtype(np.uint8 if count <= 256 else np.uint16)
        index = self._index(below, certain.step / unit, np.array(count - 1, kind))
        scale = self._constant("step", np.float32(certain.step))
        zero_point = self._constant("zero_point", np.array(certain.zero_point, kind))
        inputs = [index, scale, zero_point]
        real = self._write("DequantizeLinear", inputs, "distance", FLOAT, like=x)
        values = self._write("Round", [self._write("Exp", [real], "exp", like=x)], "terms", like=x)
        return Terms(values, certain.highest, below, unit)

    def _index(self, below: ir.Value, step: float, last: NDArray[Any]) -> ir.Value:
        """Return `last` for the largest element, less for those below it, 0 for what is far."""
        parameters = [self._constant("ratio", np.float32(step)), self._constant("last", last)]
        kind = ir.DataType.from_numpy(last.dtype)
        return self._write("QuantizeLinear", [below, *parameters], "index", kind, like=below)

    def shares(self, terms: Terms) -> ir.Value:
        """Return each term over the sum of its row, float32."""
        return self._write("Div", [terms.values, self._total(terms)], "share", like=terms.values)

    def codes(self, terms: Terms, y: Result) -> ir.Value:
        """Return the shares as codes.

        Along the last axis each row is quantized with a scale of its own: one operation for both.
        """
        total = self._total(terms)
        by_row = self._is_last(terms.values) and _counts_from_zero(y.qparams)
        codes = (self._codes_by_row if by_row else self._codes)(terms, total, y)
        codes.metadata_props.update(
            {
                DISTANCE: str(terms.distance.name),
                UNIT: repr(terms.unit),
                TERMS: str(terms.values.name),
                TOTAL: str(total.name),
                HIGHEST_TERM: str(terms.highest),
            }
        )
        return codes

    def _codes(self, terms: Terms, total: ir.Value, y: Result) -> ir.Value:
        values, kind = terms.values, ir.DataType.from_numpy(y.qparams.qtype.dtype)
        share = self._write("Div", [values, total], "share", like=values)
        parameters = [v for v in y.node.inputs[1:] if v is not None]
        return self._write("QuantizeLinear", [share, *parameters], "codes", kind, like=values)

    def _codes_by_row(self, terms: Terms, total: ir.Value, y: Result) -> ir.Value:
        values, kind = terms.values, ir.DataType.from_numpy(y.qparams.qtype.dtype)
        scale = self._constant("scale", y.qparams.scale)
        scales = self._write("Mul", [total, scale], "scales")
        flat = self._write("Reshape", [scales, self._integers(-1)], "row_scales")
        shape, matrix = self._shapes(values)
        rows = self._write("Reshape", [values, matrix], "rows")
        # No zero point: it would need one 0 per row.
        by_row = self._write(
            "QuantizeLinear", [rows, flat], "row_codes", kind, axis=0, output_dtype=kind.value
        )
        return self._write("Reshape", [by_row, shape], "codes", like=values)

    def log_shares(self, terms: Terms) -> ir.Value:
        """Return the logarithm of each share, float32."""
        total = self._cast(self._total(terms), DOUBLE, "total")
        highest = self._constant("highest", np.float64(terms.highest))
        ratio = self._write("Div", [total, highest], "ratio", like=total)
        self.made += logarithm(self._editor, ratio, f"{self._name}_log")
        log = self._cast(self.made[-1], FLOAT, "log")
        distance, unit = terms.distance, self._constant("unit", np.float32(terms.unit))
        if distance.dtype != FLOAT:
            distance = self._cast(distance, FLOAT, "distance")
        real = self._write("Mul", [distance, unit], "real", like=distance)
        return self._write("Sub", [real, log], "log_share", like=distance)

    def _shapes(self, values: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the shape of `values`, and that of a matrix of its rows, as Reshape takes them."""
        sizes = [d if isinstance(d, int) else -1 for d in values.shape or (-1, -1)]
        if sizes[-1] >= 0 and sizes.count(-1) < 2:
            return self._integers(*sizes), self._integers(-1, sizes[-1])
        shape = self._write("Shape", [values], "shape", INT64)
        if sizes[-1] >= 0:
            return shape, self._integers(-1, sizes[-1])
        last = self._write("Slice", [shape, self._integers(-1), self._integers(2**31)], "length")
        return shape, self._write("Concat", [self._integers(-1), last], "matrix", axis=0)

    def _highest(self, x: ir.Value) -> int:
        """Return the largest term that rows as those of `x` may have."""
        highest = peak(self._rows.longest)
        return highest if self._length(x) is None else max(highest, HIGHEST)

    def _length(self, x: ir.Value) -> int | None:
        """Return the length of the rows, where pieces of them can be summed: if it is known."""
        if x.shape is None or not self._is_last(x):
            return None
        return x.shape[-1] if isinstance(x.shape[-1], int) else None

    def _is_last(self, x: ir.Value) -> bool:
        """Whether the rows of `x` lie along its last axis."""
        ndim = rank(x)
        return self._rows.axis in (-1, None if ndim is None else ndim - 1)

    def _sum(self, terms: Terms) -> ir.Value:
        values, longest = terms.values, self._rows.longest
        if terms.highest <= peak(longest):
            return self._reduce("ReduceSum", values, "sum")
        assert values.shape is not None
        chain = Chain(self._editor, self._name)
        rows = Summed((len(values.shape) - 1,), self._length(values), longest)
        total = chain.cast(row_sums(chain, values, rows, terms.highest), FLOAT)
        self.made += chain.made
        return total

    def _total(self, terms: Terms) -> ir.Value:
        total = self._sum(terms)
        if self._rows.lowest is None:
            return total
        return self._write(
            "Max", [total, self._constant("one", np.float32(1))], "total", like=total
        )

    def _look_up(self, index: ir.Value, table: NDArray[np.float32]) -> ir.Value:
        entries = self._constant("exp", table)
        self.made += look_up(self._editor, index, entries, f"{self._name}_terms")
        return self.made[-1]

    def _reduce(self, op_type: str, x: ir.Value, name: str) -> ir.Value:
        axes = self._integers(self._rows.axis)
        value = self._write(op_type, [x, axes], name, keepdims=1)
        if x.shape is not None:
            sizes = list(x.shape)
            sizes[self._rows.axis] = 1
            value.shape = ir.Shape(sizes)
        return value

    def _cast(self, x: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        return self._write("Cast", [x], name, to, like=x, to=to.value)

    def _integers(self, *numbers: int) -> ir.Value:
        return self._constant("integers", np.array(numbers, np.int64))

    def _constant(self, name: str, array: NDArray[Any] | np.generic) -> ir.Value:
        return self._constants(f"{self._name}_{name}", array)

    def _write(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        dtype: ir.DataType | None = None,
        *,
        like: ir.Value | None = None,
        **attributes: Attribute,
    ) -> ir.Value:
        """Write a node of one output, of the dtype of its first input unless given.

        Its shape is that of `like`; not known without.
        """
        value = self._editor.node(
            op_type,
            inputs,
            f"{self._name}_{name}",
            attributes=dict(attributes),
            dtype=dtype or inputs[0].dtype,
            shape=None if like is None else like.shape,
        )
        self.made.append(value)
        return value


def _counts_from_zero(qparams: QParams) -> bool:
    """Whether the codes need a scale only, one for all."""
    return qparams.axis is None and not qparams.zero_point and qparams.qtype.qmin == 0
