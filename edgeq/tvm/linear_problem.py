"""What a linear kernel computes, in numbers: Conv of any kind, and Gemm as a 1x1 Conv."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Codes:
    """The format of a quantized result.

    Attributes:
        dtype: numpy's name; 8 or 16 bits.
        zero_point: Added after rounding.
        qmin: The smallest code.
        qmax: The largest.
    """

    dtype: str
    zero_point: int
    qmin: int
    qmax: int


@dataclass(frozen=True)
class LinearProblem:
    """A Conv over NHWC; `y[r, c] = sum(x[r, k] * w[c, k])` is one with `in_h = 1`, `in_w = rows`.

    Attributes:
        batch: Samples.
        in_h: Rows of x.
        in_w: Columns of x.
        in_c: Channels of x.
        out_c: Channels of y.
        kernel_h: Rows of a filter.
        kernel_w: Columns of a filter.
        strides: Vertical, horizontal.
        dilations: Likewise.
        pads: Top, left, bottom, right; they hold `x_zero`.
        groups: 1, `in_c` (depthwise), or any common divisor of `in_c` and `out_c`.
        x_dtype: `uint8` or `int8`.
        x_zero: The zero point of x.
        y: The format of the result; None: `float32(accumulator) * multiplier` in float32.
    """

    batch: int
    in_h: int
    in_w: int
    in_c: int
    out_c: int
    kernel_h: int
    kernel_w: int
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1
    x_dtype: str = "uint8"
    x_zero: int = 0
    y: Codes | None = None

    @property
    def padded_h(self) -> int:
        """Rows of x with its pads."""
        return self.pads[0] + self.in_h + self.pads[2]

    @property
    def padded_w(self) -> int:
        """Columns of x with its pads."""
        return self.pads[1] + self.in_w + self.pads[3]

    @property
    def out_h(self) -> int:
        """Rows of y."""
        return (self.padded_h - self.dilations[0] * (self.kernel_h - 1) - 1) // self.strides[0] + 1

    @property
    def out_w(self) -> int:
        """Columns of y."""
        return (self.padded_w - self.dilations[1] * (self.kernel_w - 1) - 1) // self.strides[1] + 1

    @property
    def x_elements(self) -> int:
        """Of all samples."""
        return self.batch * self.in_h * self.in_w * self.in_c

    @property
    def y_elements(self) -> int:
        """Of all samples."""
        return self.batch * self.out_h * self.out_w * self.out_c

    @property
    def y_dtype(self) -> str:
        """As numpy names it."""
        return self.y.dtype if self.y else "float32"

    @property
    def depth(self) -> int:
        """Channels of x in one group."""
        return self.in_c // self.groups

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel of x has filters of its own."""
        return self.groups > 1 and self.groups == self.in_c

    def flat(self) -> "LinearProblem":
        """Return the same work with all pixels in one row, where pixels do not meet."""
        alone = (self.kernel_h, self.kernel_w, *self.strides, *self.pads) == (
            1,
            1,
            1,
            1,
            0,
            0,
            0,
            0,
        )
        if not alone:
            return self
        return replace(self, batch=1, in_h=1, in_w=self.batch * self.in_h * self.in_w)
