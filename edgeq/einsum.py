"""Einsum of one or two operands as Transpose, Reshape and one MatMul or Mul.

before:  y = Einsum("bhid,bhjd->bhij", a, b)     after:  y = MatMul(a, Transpose(b))
before:  y = Einsum("bsd,dhk->bshk", x, w)       after:  y = Reshape(MatMul(x, Reshape(w)))
before:  y = Einsum("i,j->ij", a, b)             after:  y = Mul(Unsqueeze(a), Unsqueeze(b))

Letters of both operands and the result are a batch, letters of the operands alone are summed over,
and each other letter belongs to one side. Not written: a letter twice in one operand, a sum over a
letter of one operand, more than two operands; and joined axes of which two are not known.
"""

import string
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from edgeq.graph import rank, string_attribute
from edgeq.writing import Writer


@dataclass(frozen=True)
class Equation:
    """The letters of each operand, and of the result."""

    operands: tuple[str, ...]
    result: str


def write_einsum(write: Writer) -> ir.Value | None:
    """Return the result in plain operators, or None where there is no such form."""
    values = [value for value in write.node.inputs if value is not None]
    equation = _parsed(string_attribute(write.node, "equation", ""), values)
    if equation is None:
        return None
    if len(values) == 1:
        (letters,) = equation.operands
        moves = sorted(letters) == sorted(equation.result)
        return _transposed(write, values[0], letters, equation.result) if moves else None
    a, b = equation.operands
    batch = [c for c in a if c in b and c in equation.result]
    summed = [c for c in a if c in b and c not in equation.result]
    left, right = ([c for c in own if c not in other] for own, other in ((a, b), (b, a)))
    if any(c not in equation.result for c in (*left, *right)):
        return None
    sizes: dict[str, int] = {}
    for letter, size in (*_sizes(values[0], a), *_sizes(values[1], b)):
        if sizes.setdefault(letter, size) != size:
            return None  # one operand is broadcast
    parts = _Parts("".join(batch), "".join(left), "".join(summed), "".join(right), sizes)
    if not summed:
        return _outer(write, values, equation, parts)
    return _product(write, values, equation, parts)


@dataclass(frozen=True)
class _Parts:
    """The letters by what they are, and the lengths that are known."""

    batch: str
    left: str
    summed: str
    right: str
    sizes: dict[str, int]

    def joined(self, letters: str) -> int | None:
        """Return the length of axes joined to one; None if it is not known."""
        known = all(c in self.sizes for c in letters)
        return prod(self.sizes[c] for c in letters) if known else None


def _product(
    write: Writer, values: list[ir.Value], equation: Equation, parts: _Parts
) -> ir.Value | None:
    # Without a batch MatMul takes any number of axes on the left.
    joins_left = parts.batch != "" and len(parts.left) != 1
    leading = parts.batch if joins_left else parts.batch + parts.left
    left = [parts.joined(parts.left)] if joins_left else []
    inner, right = [parts.joined(parts.summed)], [parts.joined(parts.right)]
    behind = (parts.left if joins_left else "") + parts.right
    shapes = (
        _shape(leading, left + inner),
        _shape(parts.batch, inner + right),
        _shape(leading, [parts.sizes.get(c) for c in behind]),
    )
    joins_right = len(parts.right) != 1
    joins = (
        joins_left or len(parts.summed) != 1,
        joins_right or len(parts.summed) != 1,
        joins_left or joins_right,
    )
    if any(join and shape is None for join, shape in zip(joins, shapes, strict=True)):
        return None
    orders = (parts.batch + parts.left + parts.summed, parts.batch + parts.summed + parts.right)
    sides = [
        _transposed(write, x, letters, order)
        for x, letters, order in zip(values, equation.operands, orders, strict=True)
    ]
    a, b = (_joined(write, sides[i], joins[i], shapes[i]) for i in (0, 1))
    y = _joined(write, write("MatMul", a, b), joins[2], shapes[2])
    return _transposed(write, y, parts.batch + parts.left + parts.right, equation.result)


def _outer(write: Writer, values: list[ir.Value], equation: Equation, parts: _Parts) -> ir.Value:
    """Each operand gets axes of length 1 for the letters of the other."""
    order = parts.batch + parts.left + parts.right
    sides = []
    for x, own in zip(values, equation.operands, strict=True):
        side = _transposed(write, x, own, "".join(c for c in order if c in own))
        new = [place for place, c in enumerate(order) if c not in own]
        sides.append(write("Unsqueeze", side, write.integers(*new)) if new else side)
    return _transposed(write, write("Mul", *sides), order, equation.result)


def _shape(leading: str, lengths: list[int | None]) -> list[int] | None:
    """Return a shape for Reshape: leading axes stay, one length may be unknown."""
    if lengths.count(None) > 1:
        return None
    return [0] * len(leading) + [-1 if length is None else length for length in lengths]


def _joined(write: Writer, x: ir.Value, join: bool, shape: list[int] | None) -> ir.Value:
    return write("Reshape", x, write.integers(*shape)) if join and shape is not None else x


def _transposed(write: Writer, x: ir.Value, letters: str, order: str) -> ir.Value:
    if letters == order:
        return x
    return write("Transpose", x, perm=[letters.index(c) for c in order])


def _sizes(x: ir.Value, letters: str) -> list[tuple[str, int]]:
    dims = list(x.shape) if x.shape is not None else []
    return [(c, d) for c, d in zip(letters, dims, strict=False) if isinstance(d, int)]


def _parsed(text: str, values: list[ir.Value]) -> Equation | None:
    """Read an equation; `...` becomes letters of its own."""
    left, arrow, result = text.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != len(values) or len(values) > 2:
        return None
    spare = [c for c in string.ascii_letters if c not in text]
    hidden = ""
    for place, (letters, value) in enumerate(zip(operands, values, strict=True)):
        ndim = rank(value)
        if "..." not in letters:
            continue
        if ndim is None:
            return None
        own = "".join(spare[: ndim - len(letters) + 3])
        if hidden and own != hidden:  # one would be broadcast
            return None
        hidden, operands[place] = own, letters.replace("...", own)
    if not arrow:  # letters that come once, in alphabetical order
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        result = "..." * bool(hidden) + "".join(once)
    result = result.replace("...", hidden)
    if any(len(set(letters)) != len(letters) for letters in (*operands, result)):
        return None
    return Equation(tuple(operands), result)
