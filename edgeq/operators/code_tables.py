"""From codes to codes through elementwise float32 nodes: looked up instead of computed.

    DequantizeLinear(a) [, DequantizeLinear(b)] -> elementwise nodes -> QuantizeLinear or Round

is a function of one or two 8-bit codes, element by element. Its table is what these very nodes make
of all codes, or of all pairs of codes: no second definition, hence the same bits.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.numerics.parallel import blocks, for_each
from edgeq.numerics.scratch import scratch
from edgeq.operators import OPERATORS, elementwise
from edgeq.operators.binding import Kernel
from edgeq.operators.step import Step

Array = NDArray[Any]
_ELEMENTWISE = {
    name for name, op in OPERATORS.items() if op.function.__module__ == elementwise.__name__
}


def look_up_codes(steps: Sequence[Step]) -> list[Step]:
    """Return `steps`, those that round a function of one or two codes reading these codes.

    What lies between still has its own steps, for whoever else wants these values; where nobody
    does, they are no longer needed.
    """
    makers = {name: step for step in steps for name in step.outputs}
    return [_from_codes(step, makers) or step for step in steps]


def _from_codes(last: Step, makers: Mapping[str, Step]) -> Step | None:
    """Return the step that makes the same of codes; None if there is no such step."""
    if last.node.op_type not in ("QuantizeLinear", "Round") or last.node.domain or not _plain(last):
        return None
    members: dict[Step, None] = {}
    codes: dict[str, None] = {}
    if not _collect(last, makers, members, codes) or len(codes) > 2:
        return None
    return Step(
        last.node, tuple(codes), last.outputs, tuple(codes), _kernel(tuple(members), tuple(codes))
    )


def _collect(
    step: Step, makers: Mapping[str, Step], members: dict[Step, None], codes: dict[str, None]
) -> bool:
    """Add `step` to `members`, after what it depends on; False unless that all starts at codes."""
    if step in members:
        return True
    for name in step.inputs:
        if step.node.op_type == "DequantizeLinear":
            codes[name] = None
            continue
        maker = makers.get(name)
        if maker is None or not _between(maker) or not _collect(maker, makers, members, codes):
            return False
    members[step] = None
    return True


def _between(step: Step) -> bool:
    """Whether `step` may stand between codes and QuantizeLinear."""
    known = step.node.op_type in _ELEMENTWISE or step.node.op_type == "DequantizeLinear"
    return known and not step.node.domain and _plain(step)


def _plain(step: Step) -> bool:
    """Whether all constants are scalars: each element is treated alike."""
    return bool(step.inputs) and all(
        not isinstance(argument, np.ndarray) or argument.ndim == 0 for argument in step.arguments
    )


def _kernel(members: tuple[Step, ...], names: tuple[str, ...]) -> Kernel:
    (output,) = members[-1].outputs
    tables: dict[tuple[np.dtype[Any], ...], Array] = {}

    def compute(codes: Sequence[Array]) -> Array:
        env = dict(zip(names, codes, strict=True))
        for member in members:
            member.execute(env)
        return env[output]

    def run(*codes: Array) -> tuple[Array, ...]:
        kinds = tuple(c.dtype for c in codes)
        alike = all(c.shape == codes[0].shape for c in codes)
        if not alike or not all(k in (np.uint8, np.int8) for k in kinds):
            return (compute(codes),)
        if kinds not in tables:
            if not _worthwhile(codes):
                return (compute(codes),)
            tables[kinds] = compute(_all_codes(kinds))
        return (_looked_up(tables[kinds], codes),)

    return run


def _worthwhile(codes: Sequence[Array]) -> bool:
    """Whether a table is no more work than these codes alone."""
    return bool(codes[0].size >= 256 ** len(codes))


def _all_codes(kinds: Sequence[np.dtype[Any]]) -> list[Array]:
    """Return every code, or every pair of codes as two arrays, in the order of their bits."""
    every = np.arange(256 ** len(kinds))
    places = reversed(range(len(kinds)))
    return [
        (every >> 8 * place).astype(np.uint8).view(kind)
        for place, kind in zip(places, kinds, strict=True)
    ]


def _looked_up(table: Array, codes: Sequence[Array]) -> Array:
    out = np.empty(codes[0].shape, table.dtype)
    flat = [c.reshape(-1).view(np.uint8) for c in codes]
    target = out.reshape(-1)
    pieces = blocks(out.size, 1)

    def one(number: int) -> None:
        piece = pieces[number]
        index = flat[0][piece]
        if len(flat) == 2:
            pair = scratch("pairs", index.shape, np.uint16)
            np.left_shift(index, 8, out=pair, dtype=np.uint16)
            pair |= flat[1][piece]
            index = pair
        # No index is beyond the table; "wrap" is the mode that writes to `out` directly.
        np.take(table, index, out=target[piece], mode="wrap")

    for_each(len(pieces), one)
    return out
