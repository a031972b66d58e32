"""Normalisations that exporters write out, as LayerNormalization and as the one RMS spelling.

before:  c = Sub(x, ReduceMean(x));  y = Add(Mul(Div(c, Sqrt(Add(ReduceMean(Mul(c, c)), epsilon))),
         gamma), beta)
after:   y = LayerNormalization(x, gamma, beta)             Transpose around it for other axes

before:  y = Mul(x, Reciprocal(Sqrt(Add(ReduceMean(Mul(x, x)), epsilon))))
after:   y = Div(x, Sqrt(Add(ReduceMean(Mul(x, x)), epsilon)))

The root may divide or be inverted first, and gamma may scale the inverted root before it meets x,
as batch normalisation is written. What `edgeq.normalization` recognises stays as it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.dims import same_shape
from edgeq.fused_normalizations import write_rms
from edgeq.graph import Editor, constant, int_attribute, rank, sole_consumer
from edgeq.normalization import normalization
from edgeq.writing import Writer

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Spelled:
    """One normalisation that is written out.

    Attributes:
        end: The last node of it.
        x: What is normalised.
        axes: The axes of a row, negative, ascending.
        epsilon: Added to the variance.
        centered: Whether the mean is subtracted.
        gamma: The factor behind, of the shape of a row or broadcastable to it; None for 1.
        beta: The summand behind, likewise; None for 0.
    """

    end: ir.Node
    x: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    centered: bool
    gamma: Array | None = None
    beta: Array | None = None

    @property
    def row(self) -> tuple[int, ...] | None:
        """The shape of a row, if it is known."""
        dims = [None if self.x.shape is None else self.x.shape[axis] for axis in self.axes]
        known = tuple(dim for dim in dims if isinstance(dim, int))
        return known if len(known) == len(dims) else None

    def fits(self, array: Array) -> bool:
        """Whether `array` differs along the axes of a row alone."""
        places = enumerate(reversed(array.shape), start=1)
        small = array.ndim <= (rank(self.x) or 0)
        return small and all(size == 1 or -place in self.axes for place, size in places)


def write_normalization(node: ir.Node, editor: Editor) -> bool:
    """Rewrite the normalisation whose result `node` makes; return whether it made one."""
    if node.graph is None or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False  # another rule removed it
    found = _folded(node) or _plain(node)
    row = None if found is None else found.row
    if found is None or (found.centered and row is None):
        return False
    write = Writer(found.end, editor)
    if found.centered and row is not None:
        write.replace([_layer(write, found, row)])
    else:
        write.replace([write_rms(write, found.x, found.axes, found.epsilon, None)])
    return True


def _layer(write: Writer, found: Spelled, row: tuple[int, ...]) -> ir.Value:
    """Write LayerNormalization, over the last axes; its parameters have the shape of a row.

    ONNX would broadcast smaller ones, but ONNX Runtime fuses an Add in front with the node, and
    then wants them whole.
    """
    x, ndim = found.x, write.ndim(found.x)
    others = [axis for axis in range(ndim) if axis - ndim not in found.axes]
    perm = [*others, *(axis + ndim for axis in found.axes)]
    moved = perm != sorted(perm)
    if moved:
        x = write("Transpose", x, perm=perm)
    gamma = np.ones((), np.float32) if found.gamma is None else found.gamma
    parameters = []
    for array in (gamma,) if found.beta is None else (gamma, found.beta):
        whole = array.reshape((1,) * (ndim - array.ndim) + array.shape).transpose(perm)
        last = np.broadcast_to(whole.reshape(whole.shape[len(others) :]), row)
        parameters.append(write.constant(last.copy()))
    y = write("LayerNormalization", x, *parameters, axis=-len(found.axes), epsilon=found.epsilon)
    return write("Transpose", y, perm=np.argsort(perm).tolist()) if moved else y


# -- recognise -------------------------------------------------------------------------------------


def _plain(node: ir.Node) -> Spelled | None:
    """Recognise `c / root`, and for LayerNormalization `* gamma + beta` behind it."""
    for c, variance in _quotients(node):
        found = _of_variance(node, variance)
        if found is None or not _same(found.x, c):
            continue
        x = _centered(c, found.axes)
        if x is not None:
            return _with_affine(Spelled(node, x, found.axes, found.epsilon, centered=True))
        return found if found.epsilon and normalization(node) is None else None
    return None


def _folded(node: ir.Node) -> Spelled | None:
    """Recognise `x * factor + (beta - mean * factor)`, factor being `gamma / root`."""
    if node.op_type != "Add":
        return None
    for product, rest in _pairs(node):
        scaled, shift = _made_by("Mul", product), _made_by("Sub", rest)
        moved = None if shift is None else _made_by("Mul", shift.inputs[1])
        beta = None if shift is None else constant(shift.inputs[0])
        if scaled is None or moved is None or beta is None:
            continue
        for x, factor in _pairs(scaled):
            for mean, other in _pairs(moved):
                found = _of_factor(node, x, factor, mean, beta) if factor is other else None
                if found is not None:
                    return found
    return None


def _of_factor(
    end: ir.Node, x: ir.Value, factor: ir.Value, mean: ir.Value, beta: Array
) -> Spelled | None:
    gamma, inverse = None, factor
    product = _made_by("Mul", factor)
    for a, b in _pairs(product) if product is not None else ():
        if constant(a) is not None:
            gamma, inverse = constant(a), b
    root = _inverted_root(inverse)
    found = None if root is None else _of_variance(end, root)
    if found is None or _mean(mean) != (x, found.axes) or _centered(found.x, found.axes) is not x:
        return None
    whole = Spelled(end, x, found.axes, found.epsilon, centered=True, gamma=gamma, beta=beta)
    return whole if whole.fits(beta) and (gamma is None or whole.fits(gamma)) else None


def _with_affine(found: Spelled) -> Spelled:
    """Take in a Mul by gamma and an Add of beta that alone follow, where shapes stay."""
    gamma, beta, end = None, None, found.end
    for op_type in ("Mul", "Add"):
        value = end.outputs[0]
        reader = sole_consumer(value)
        if reader is None or reader.domain or reader.op_type != op_type:
            continue
        others = [constant(v) for v in reader.inputs if v is not value]
        array = others[0] if len(others) == 1 else None
        if array is None or not found.fits(array) or not same_shape(value, reader.outputs[0]):
            break
        gamma, beta = (array, beta) if op_type == "Mul" else (gamma, array)
        end = reader
    return Spelled(end, found.x, found.axes, found.epsilon, found.centered, gamma, beta)


def _quotients(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield c and v where `node` computes `c / sqrt(v)`."""
    if node.op_type == "Div" and node.inputs[0] is not None:
        root = _made_by("Sqrt", node.inputs[1])
        if root is not None and root.inputs[0] is not None:
            yield node.inputs[0], root.inputs[0]
    if node.op_type == "Mul":
        for c, inverse in _pairs(node):
            variance = _inverted_root(inverse)
            if variance is not None:
                yield c, variance


def _inverted_root(value: ir.Value) -> ir.Value | None:
    """Return v where `value` is `1 / sqrt(v)` or `sqrt(1 / v)`."""
    inside = _inverted(value)
    root = _made_by("Sqrt", value if inside is None else inside)
    if root is None or root.inputs[0] is None:
        return None
    return root.inputs[0] if inside is not None else _inverted(root.inputs[0])


def _inverted(value: ir.Value) -> ir.Value | None:
    node = value.producer()
    if node is None or node.domain or node.op_type not in ("Reciprocal", "Div"):
        return None
    if node.op_type == "Div" and not np.all(constant(node.inputs[0]) == np.float32(1)):
        return None
    return node.inputs[-1]


def _of_variance(end: ir.Node, value: ir.Value) -> Spelled | None:
    """Recognise `mean(c * c) + epsilon`; return it as the normalisation of c that has no mean."""
    epsilon = 0.0
    total = _made_by("Add", value)
    for a, b in _pairs(total) if total is not None else ():
        number = constant(b)
        if number is not None and number.size == 1:
            epsilon, value = float(number.reshape(())), a
    mean = _mean(value)
    square = None if mean is None else _made_by("Mul", mean[0])
    if mean is None or square is None or not 0 <= epsilon < np.inf:
        return None
    c = square.inputs[0]
    if c is None or c is not square.inputs[1]:
        return None
    return Spelled(end, c, mean[1], epsilon, centered=False)


def _mean(value: ir.Value) -> tuple[ir.Value, tuple[int, ...]] | None:
    """Return x and the axes, negative, where `value` is a mean of x that keeps dimensions."""
    node = _made_by("ReduceMean", value)
    x = None if node is None else node.inputs[0]
    ndim = None if x is None else rank(x)
    axes = None if node is None or len(node.inputs) < 2 else constant(node.inputs[1])
    if node is None or x is None or ndim is None or axes is None or not axes.size:
        return None
    if not int_attribute(node, "keepdims", 1):
        return None
    return x, tuple(sorted(int(axis) % ndim - ndim for axis in axes.reshape(-1)))


def _centered(c: ir.Value, axes: tuple[int, ...]) -> ir.Value | None:
    """Return x where `c` is x minus its mean over `axes`."""
    node = _made_by("Sub", c)
    if node is None or node.inputs[1] is None:
        return None
    x, mean = node.inputs
    return x if x is not None and mean is not None and _mean(mean) == (x, axes) else None


def _same(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values are one, or one difference computed twice."""
    p, q = _made_by("Sub", a), _made_by("Sub", b)
    return a is b or (p is not None and q is not None and list(p.inputs) == list(q.inputs))


def _pairs(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the operands of a commutative node in both orders."""
    a, b = node.inputs
    if a is not None and b is not None:
        yield a, b
        yield b, a


def _made_by(op_type: str, value: ir.Value | None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return None if node is None or node.domain or node.op_type != op_type else node
