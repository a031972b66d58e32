"""One option for each layer: the least noise, all told, that keeps within every budget.

    minimize    sum_k noise[k, o_k]
    subject to  sum_k costs[b, k, o_k] <= budgets[b]          for every budget b
                kind[o_i] = kind[o_j]                         for layers i, j of one source

the multiple-choice knapsack of mixed precision (Moon et al. 2024, "Instance-Aware Group
Quantization for Vision Transformers", section 3.4, allocates group sizes by it). It is solved to
the optimum as an integer program by HiGHS, through scipy, which this module alone imports. Of
equal options of a layer the first counts; HiGHS draws nothing at random: same numbers, same plan.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.errors import RecipeError

Float64 = NDArray[np.float64]

_SPREAD = 1e6  # the largest coefficient: HiGHS's own tolerances are absolute, 1e-6 and 1e-7
_OPTIMAL, _INFEASIBLE = 0, 2  # the statuses of scipy.optimize.milp


@dataclass(frozen=True)
class Budget:
    """What may be spent: `share` of `whole`.

    Attributes:
        option: What the user calls it.
        share: Above 0.
        whole: What it is a share of.
        unit: Of `whole`, in words.
    """

    option: str
    share: float
    whole: float
    unit: str

    @property
    def limit(self) -> float:
        """The most that costs may add up to."""
        return self.share * self.whole


@dataclass(frozen=True, eq=False)
class BitProgram:
    """What is to be chosen.

    Attributes:
        noise: (layers, options); infinite where a layer does not have the option.
        costs: (budgets, layers, options), at least 0; whole numbers below 2**53 are kept exactly.
        budgets: What the costs add up to at most.
        sources: (layers,): layers of equal number read the same value.
        kinds: (options,): layers of one source take options of one kind.
    """

    noise: Float64
    costs: Float64
    budgets: tuple[Budget, ...]
    sources: tuple[int, ...]
    kinds: tuple[int, ...]


def solve(program: BitProgram) -> tuple[int, ...]:
    """Return the number of the option that each layer takes.

    Raises:
        RecipeError: No choice keeps within the budgets, or scipy is not installed.
    """
    for number in range(len(program.budgets)):
        _refuse_small(program, number)
    usable = _usable(program)
    if not usable.any(1).all():
        raise _excluded(program)
    rows = [*_one_each(usable), *_same_kinds(program, usable), *_within(program, usable)]
    while True:
        found = _minimum(program, usable, rows)
        if found is None:
            raise _excluded(program)
        totals = program.costs[:, np.arange(len(found)), found].sum(1)
        if (totals <= _limits(program)).all():
            return found
        # HiGHS keeps within a budget to one part in 10**12: this choice is just above it.
        rows.append(_Row(dict.fromkeys(enumerate(found), 1.0), -np.inf, len(found) - 1.0))


def smallest(program: BitProgram, budget: int) -> float:
    """Return the least total cost under one budget, whatever the noise."""
    usable = np.isfinite(program.noise)
    costs = np.where(usable, program.costs[budget], np.inf)
    kinds = np.array(program.kinds)
    total = 0.0
    for source in dict.fromkeys(program.sources):
        mine = costs[np.array(program.sources) == source]
        # For each kind the cheapest option of every layer.
        total += min(float(mine[:, kinds == kind].min(1).sum()) for kind in dict.fromkeys(kinds))
    return total


def _refuse_small(program: BitProgram, budget: int) -> None:
    least, given = smallest(program, budget), program.budgets[budget]
    if math.isinf(least):
        raise _excluded(program)
    if least > given.limit:
        share = math.ceil(1e4 * least / given.whole) / 1e4
        raise RecipeError(
            f"{given.option} = {given.share:g} is too small: the narrowest widths take {share:g}"
            f" ({least:.6g} of {given.whole:.6g} {given.unit}); give at least that, or offer"
            " narrower formats"
        )


def _excluded(program: BitProgram) -> RecipeError:
    return RecipeError(
        "no choice of widths keeps within all budgets together, though each can be kept alone:"
        f" raise {' or '.join(budget.option for budget in program.budgets)}"
    )


def _limits(program: BitProgram) -> Float64:
    return np.array([budget.limit for budget in program.budgets])


def _usable(program: BitProgram) -> NDArray[np.bool_]:
    """Return which options count: affordable, and better in something than those before them."""
    usable = np.isfinite(program.noise)
    usable &= (program.costs <= _limits(program)[:, None, None]).all(0)
    layers, options = usable.shape
    for k in range(layers):
        for o in range(options):
            usable[k, o] &= not any(
                usable[k, e]
                and program.kinds[e] == program.kinds[o]
                and program.noise[k, e] <= program.noise[k, o]
                and (program.costs[:, k, e] <= program.costs[:, k, o]).all()
                for e in range(o)
            )
    return usable


@dataclass(frozen=True)
class _Row:
    """A bound on a sum of factors times the variables of (layer, option)."""

    factors: dict[tuple[int, int], float]
    least: float
    greatest: float


def _one_each(usable: NDArray[np.bool_]) -> Iterator[_Row]:
    """Every layer takes one option."""
    for k, row in enumerate(usable):
        yield _Row({(k, int(o)): 1.0 for o in np.flatnonzero(row)}, 1.0, 1.0)


def _same_kinds(program: BitProgram, usable: NDArray[np.bool_]) -> Iterator[_Row]:
    """Every layer takes an option of the kind that the first layer of its source has."""
    leaders: dict[int, int] = {}
    kinds = np.array(program.kinds)
    for k, source in enumerate(program.sources):
        first = leaders.setdefault(source, k)
        if first == k:
            continue
        for kind in dict.fromkeys(program.kinds):
            mine = kinds == kind
            factors = {(first, int(o)): 1.0 for o in np.flatnonzero(usable[first] & mine)}
            factors |= {(k, int(o)): -1.0 for o in np.flatnonzero(usable[k] & mine)}
            yield _Row(factors, 0.0, 0.0)


def _within(program: BitProgram, usable: NDArray[np.bool_]) -> Iterator[_Row]:
    """All costs together keep within each budget."""
    for costs, limit in zip(program.costs, _limits(program), strict=True):
        unit = float(limit) / _SPREAD if limit > 0 else 1.0
        factors = {(int(k), int(o)): costs[k, o] / unit for k, o in np.argwhere(usable)}
        yield _Row(factors, -np.inf, float(limit) / unit)


def _minimum(
    program: BitProgram, usable: NDArray[np.bool_], rows: Sequence[_Row]
) -> tuple[int, ...] | None:
    """Return the choice of least noise that keeps all `rows`; None if there is none."""
    milp, bounds, constraint, sparse = _scipy()
    places = [(int(k), int(o)) for k, o in np.argwhere(usable)]
    column = {place: number for number, place in enumerate(places)}
    # What a layer loses at least says nothing about what to choose.
    floor = np.where(usable, program.noise, np.inf).min(1)
    excess = np.array([program.noise[k, o] - floor[k] for k, o in places])
    entries = [
        (factor, number, column[place])
        for number, row in enumerate(rows)
        for place, factor in row.factors.items()
    ]
    factors, numbers, columns = zip(*entries, strict=True)
    matrix = sparse((factors, (numbers, columns)), shape=(len(rows), len(places)))
    found = milp(
        excess * (_SPREAD / max(float(excess.max()), 1e-300)),
        integrality=np.ones(len(places)),
        bounds=bounds(0, 1),
        constraints=constraint(matrix, [r.least for r in rows], [r.greatest for r in rows]),
        options={"mip_rel_gap": 0.0},
    )
    if found.status == _INFEASIBLE:
        return None
    assert found.status == _OPTIMAL, f"HiGHS: {found.message}"
    chosen = [o for (_, o), share in zip(places, found.x, strict=True) if share > 0.5]
    assert len(chosen) == len(usable)
    return tuple(chosen)


def _scipy() -> tuple[Any, ...]:
    """Return what is needed of scipy; it has no types of its own."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array
    except ImportError as error:
        raise RecipeError(
            "choosing bit widths needs scipy: install it with pip install 'edgeq[mixed]'"
        ) from error
    return milp, Bounds, LinearConstraint, coo_array
