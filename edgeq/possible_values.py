"""The numbers that a value can take, where they are few: what tells a mask from a bias.

Masks are made of constants and truth values: `Where(causal, 0, -inf)`, `(1 - Cast(keep)) * -10000`,
`Trilu(-inf)`. The few numbers that can come out are found by computing with sets.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant

FEW = 8
Numbers = frozenset[float]
_TRUTH: Numbers = frozenset((0.0, 1.0))

_COPIES = frozenset(
    {
        "Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_ARITHMETIC: Mapping[str, Callable[..., object]] = MappingProxyType(
    {
        "Add": np.add,
        "Max": np.maximum,
        "Min": np.minimum,
        "Mul": np.multiply,
        "Neg": np.negative,
        "Sub": np.subtract,
    }
)


def possible_values(value: ir.Value | None) -> Numbers | None:
    """Return the numbers that elements of `value` can be; None if they are many, or not known.

    Arithmetic is that of float32. A value that can be NaN is not known.
    """
    if value is None:
        return None
    array = constant(value)
    if array is not None:
        return _few(np.unique(array).tolist()) if array.dtype.kind in "iubf" else None
    if value.dtype == ir.DataType.BOOL:
        return _TRUTH
    node = value.producer()
    return None if node is None or node.domain else _made_by(node)


def _made_by(node: ir.Node) -> Numbers | None:
    if node.op_type in _COPIES:
        data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
        return _union(map(possible_values, data))
    if node.op_type == "Where":
        return _union(map(possible_values, node.inputs[1:]))
    if node.op_type == "Trilu":
        return _union((possible_values(node.inputs[0]), frozenset((0.0,))))
    if node.op_type == "ConstantOfShape":
        attribute = node.attributes.get("value")
        return _few([0.0] if attribute is None else attribute.as_tensor().numpy().tolist())
    if node.op_type in _ARITHMETIC:
        return _computed(_ARITHMETIC[node.op_type], [possible_values(v) for v in node.inputs])
    return None


def _computed(function: Callable[..., object], operands: list[Numbers | None]) -> Numbers | None:
    known = [numbers for numbers in operands if numbers is not None]
    if len(known) < len(operands):
        return None
    with np.errstate(all="ignore"):
        results = [function(*map(np.float32, pick)) for pick in product(*known)]
    return _few([float(np.float32(result)) for result in results])  # type: ignore[arg-type]


def _union(parts: Iterable[Numbers | None]) -> Numbers | None:
    found: set[float] = set()
    for part in parts:
        if part is None:
            return None
        found |= part
    return _few(found)


def _few(numbers: Iterable[float]) -> Numbers | None:
    found = frozenset(map(float, numbers))
    if len(found) > FEW or any(number != number for number in found):
        return None
    return found
