"""Move scales by a percent or so, so that no fused kernel can meet a rounding tie.

Fused Add, Mul and AveragePool add the zero point before rounding, in float32, and Arm's Add rounds
halves away from zero: on ties, and next to them, they leave the definition. Ties are a matter of
ratios. If the scales of an Add are odd multiples of one base, `sa = base * ma`, `sb = base * mb`,
`sy = base * my`, then the result in units of sy is `(a * ma + b * mb) / my` with my odd: never half
an integer, and at least `1 / (2 * my)` away from one. All kernels then agree, for any zero point
(`edgeq.numerics.odd_ratio`); `prove-fused` enumerates the pairs and confirms it.

    Add:          all scales that Adds connect become odd multiples of one base
    Mul:          sy = sa * sb * q / p,          q odd
    AveragePool:  sy = sx * q / (p * count),     q odd, for every count of a window

Only decisions change (`context.qparams`), not the model.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.numerics.affine import QParams
from edgeq.numerics.odd_ratio import FRACTION_LIMIT, odd_fraction, odd_multiples
from edgeq.passing import Context, Pass
from edgeq.pool_counts import pool_counts
from edgeq.roles import activation_inputs, behind_clips

LARGEST_CHANGE = 1 / 16  # a component of Adds whose scales span more keeps them


@dataclass(frozen=True)
class RelateScales(Pass):
    """Relate the decided scales of values that meet in a fused kernel."""

    def run(self, model: ir.Model, context: Context) -> int:
        """Change `context.qparams`; return how many groups of values got another scale."""
        groups = _Groups(context)
        fused = context.capabilities.fused
        for adds in _components(model, groups, fused):
            groups.move(adds)
        for node in model.graph:
            if node.op_type not in fused or node.domain:
                continue
            if node.op_type == "Mul":
                groups.settle_mul(node)
            elif node.op_type == "AveragePool":
                groups.settle_pool(node)
        return groups.changed


class _Groups:
    """Values by the parameters that they share."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.members: dict[int, list[str]] = {}
        for name, qparams in context.qparams.items():
            self.members.setdefault(id(qparams), []).append(name)
        self.members = {  # fused kernels take 8 bits; fewer lie in 8
            key: names
            for key, names in self.members.items()
            if context.qparams[names[0]].qtype.bits <= 8
        }
        self.leader = {name: names[0] for names in self.members.values() for name in names}
        self.names = {names[0]: names for names in self.members.values()}
        self.settled: set[str] = {
            self.leader[name] for name in context.input_types if name in self.leader
        }
        self.changed = 0

    def of(self, value: ir.Value) -> str | None:
        """Return the leader of the group of `value`, if it is quantized."""
        return self.leader.get(value.name or "")

    def scale(self, leader: str) -> float:
        return float(self.context.qparams[leader].scale)

    def set_scale(self, leader: str, scale: float) -> None:
        old = self.context.qparams[leader]
        new = QParams(old.qtype, np.asarray(scale, np.float32), old.zero_point)
        for name in self.names[leader]:
            self.context.qparams[name] = new
        self.settled.add(leader)
        self.changed += 1

    def move(self, leaders: list[str]) -> None:
        """Make the scales of one component of Adds odd multiples of a base."""
        if any(leader in self.settled for leader in leaders):
            return
        related = odd_multiples([self.scale(leader) for leader in leaders])
        if related.relative_error > LARGEST_CHANGE:
            return
        for leader, scale in zip(leaders, related.scales, strict=True):
            self.set_scale(leader, float(scale))

    def settle_mul(self, node: ir.Node) -> None:
        """Choose sy so that `M = sa * sb / sy` is a fraction with an odd denominator."""
        sides = [self.of(value) for value in activation_inputs(node)]
        y = self.of(behind_clips(node.outputs[0]))
        if len(sides) != 2 or None in sides or y is None or y in self.settled or y in sides:
            return
        product = math.prod(self.scale(side) for side in sides if side is not None)
        p, q = odd_fraction(product / self.scale(y))
        self.set_scale(y, product * q / p)

    def settle_pool(self, node: ir.Node) -> None:
        """Choose sy so that `sx / (sy * count)` has an odd denominator for every window's count."""
        x = next(map(self.of, activation_inputs(node)), None)
        y = self.of(behind_clips(node.outputs[0]))
        if x is None or y is None or y in self.settled or x == y:
            return
        counts = pool_counts(node)
        twos = max(_two_part(count) for count in counts)
        odds = max(count // _two_part(count) for count in counts)
        wanted = self.scale(x) / (self.scale(y) * counts[-1])
        p, q = odd_fraction(wanted, max(FRACTION_LIMIT // odds, 1), twos)
        self.set_scale(y, self.scale(x) * q / (p * counts[-1]))


def _two_part(number: int) -> int:
    """Return the largest power of two that divides `number`."""
    return number & -number


def _components(model: ir.Model, groups: _Groups, fused: frozenset[str]) -> list[list[str]]:
    """Return the groups that Adds connect, each component in graph order."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in model.graph:
        if node.op_type != "Add" or node.domain or "Add" not in fused:
            continue
        sides = [groups.of(value) for value in activation_inputs(node)]
        met = [name for name in (*sides, groups.of(behind_clips(node.outputs[0]))) if name]
        if len(sides) != 2 or len(met) != 3:
            continue
        for name in met:
            parent.setdefault(name, name)
            parent[find(name)] = find(met[0])
    components: dict[str, list[str]] = {}
    for name in parent:
        components.setdefault(find(name), []).append(name)
    return list(components.values())
