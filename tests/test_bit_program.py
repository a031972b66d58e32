"""The integer program of mixed precision: its optimum is that of trying everything."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.bit_program import BitProgram, Budget, smallest, solve
from edgeq.errors import RecipeError

pytest.importorskip("scipy")


def program(noise, costs, budgets, sources=None, kinds=None):
    noise = np.array(noise, np.float64)
    layers, options = noise.shape
    return BitProgram(
        noise,
        np.array(costs, np.float64),
        tuple(Budget(f"budget_{n}", limit, 1.0, "units") for n, limit in enumerate(budgets)),
        tuple(sources or range(layers)),
        tuple(kinds or [0] * options),
    )


def spent(p, chosen):
    """Return the noise and the costs of a choice."""
    rows = np.arange(len(chosen))
    return p.noise[rows, chosen].sum(), p.costs[:, rows, chosen].sum(1)


def allowed(p, chosen):
    kinds: dict[int, int] = {}
    fits = all(
        kinds.setdefault(source, p.kinds[o]) == p.kinds[o]
        for source, o in zip(p.sources, chosen, strict=True)
    )
    noise, costs = spent(p, chosen)
    return fits and np.isfinite(noise) and (costs <= [b.limit for b in p.budgets]).all()


def enumerated(p):
    """Return every choice that keeps within the budgets."""
    layers, options = p.noise.shape
    every = itertools.product(range(options), repeat=layers)
    return [chosen for chosen in every if allowed(p, list(chosen))]


@st.composite
def programs(draw):
    layers, options = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    budgets = draw(st.integers(1, 2))
    numbers = st.integers(0, 40)  # small: ties and budgets met exactly are common
    noise = draw(
        st.lists(
            st.lists(st.one_of(numbers, st.just(np.inf)), min_size=options, max_size=options),
            min_size=layers,
            max_size=layers,
        )
    )
    for row in noise:
        if not np.isfinite(row).any():
            row[0] = 3
    size = budgets * layers * options
    costs = np.reshape(draw(st.lists(numbers, min_size=size, max_size=size)), (budgets, layers, -1))
    scale = draw(st.sampled_from([1.0, 1e-9, 1e12]))
    sources = draw(st.lists(st.integers(0, layers - 1), min_size=layers, max_size=layers))
    kinds = draw(st.lists(st.integers(0, 1), min_size=options, max_size=options))
    limits = [draw(st.integers(0, 20 * layers)) for _ in range(budgets)]
    return program(
        np.array(noise) * draw(st.sampled_from([1.0, 1e-9, 1e9])),
        costs * scale,
        [limit * scale for limit in limits],
        sources,
        kinds,
    )


@settings(max_examples=150, deadline=None)
@given(programs())
def test_the_optimum_is_that_of_trying_everything(p):
    every = enumerated(p)
    if not every:
        with pytest.raises(RecipeError, match="budget"):
            solve(p)
        return
    best = min(spent(p, list(chosen))[0] for chosen in every)
    chosen = solve(p)
    assert chosen in every
    assert spent(p, list(chosen))[0] <= best * (1 + 1e-12)
    assert solve(p) == chosen


def test_a_case_by_hand():
    # Two layers as wide as each other; the second suffers more, and only one may be wide.
    p = program([[4.0, 1.0], [9.0, 2.0]], [[[4, 8], [4, 8]]], [12])
    assert solve(p) == (0, 1)
    assert smallest(p, 0) == 8


def test_layers_of_one_source_take_one_kind():
    noise = [[0.0, 5.0], [9.0, 0.0]]
    free = program(noise, [[[1, 1], [1, 1]]], [2], kinds=[0, 1])
    tied = program(noise, [[[1, 1], [1, 1]]], [2], sources=[7, 7], kinds=[0, 1])
    assert solve(free) == (0, 1)
    assert solve(tied) == (1, 1)


def test_of_equal_options_the_first_counts():
    p = program([[1.0, 1.0, 1.0]] * 3, [[[2, 2, 2]] * 3], [6])
    assert solve(p) == (0, 0, 0)


def test_a_budget_may_be_met_exactly():
    costs = [[[10**15 + 1, 2 * 10**15], [3, 5]]]
    p = program([[2.0, 1.0], [2.0, 1.0]], costs, [10**15 + 6])
    assert solve(p) == (0, 1)


def test_too_small_a_budget_names_the_smallest():
    p = program([[1.0, 2.0], [1.0, 2.0]], [[[8, 4], [8, 4]]], [7])
    with pytest.raises(RecipeError, match=r"budget_0 = 7 is too small: .* take 8"):
        solve(p)


def test_budgets_that_exclude_each_other():
    p = program([[0.0, 0.0]], [[[0, 9]], [[9, 0]]], [4, 4])
    with pytest.raises(RecipeError, match=r"all budgets together.*raise budget_0 or budget_1"):
        solve(p)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(RecipeError, match=r"pip install 'edgeq\[mixed\]'"):
        solve(program([[1.0]], [[[1]]], [1]))
