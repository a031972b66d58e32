"""What the benchmark of exact forms times, and its bounds."""

import pytest

from benchmarks.exact_forms import FORMS, Timing, exact_model, measure, parse


@pytest.mark.parametrize("name", FORMS)
def test_an_exact_form_is_another_graph_with_the_same_interface(name):
    exact, plain = exact_model(FORMS[name]), parse(FORMS[name].graph)
    for side in ("inputs", "outputs"):
        before, after = (getattr(m.graph, side) for m in (plain, exact))
        assert [(v.name, v.dtype, v.shape) for v in before] == [
            (v.name, v.dtype, v.shape) for v in after
        ]
    assert [n.op_type for n in exact.graph] != [n.op_type for n in plain.graph]


def test_an_exact_form_is_timed():
    timing = measure("SiLU", FORMS["SiLU"], seconds=0.0)
    assert min(timing.exact, timing.runtime, timing.against) > 0


def test_bounds_of_exact_forms():
    assert Timing("a", exact=4.5, runtime=9.0, against=1.0, limit=4.5).reached
    assert not Timing("a", exact=4.6, runtime=9.0, against=1.0, limit=4.5).reached
