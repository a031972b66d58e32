"""The arena of a program: no two live buffers overlap, whatever the kernels."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgeq.tvm.memory_plan import plan
from edgeq.tvm.program import SLACK, Buffer, Kernel, Program

FUNCTION: Any = None  # kernels are not compiled here


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Draw kernels that read up to three earlier buffers each and write one."""
    sizes = draw(st.lists(st.integers(1, 700), min_size=1, max_size=12))
    buffers = [Buffer(f"b{n}", "uint8", size, "workspace") for n, size in enumerate(sizes)]
    kernels = []
    for step, written in enumerate(buffers):
        read = (
            draw(st.lists(st.sampled_from(buffers[:step]), max_size=3, unique=True)) if step else []
        )
        kernels.append(Kernel(f"k{step}", FUNCTION, (*read, written), written, ""))
    return Program(tuple(kernels), {}, (), (), ())


@given(programs(), st.sampled_from([16, 64]))
def test_live_buffers_never_overlap(program, alignment):
    made = plan(program, alignment)
    assert made.size % alignment == 0
    spans = {}
    for step, kernel in enumerate(program.kernels):
        alive = [
            buffer
            for k in program.kernels
            for buffer in (k.writes,)
            if made.lives[buffer.name].first <= step <= made.lives[buffer.name].last
        ]
        assert set(kernel.arguments) <= set(alive)
        taken: set[int] = set()
        for buffer in alive:
            offset = made.offsets[buffer.name]
            assert offset % alignment == 0 and offset + buffer.size + SLACK <= made.size
            bytes_of_it = range(offset, offset + buffer.size)
            assert taken.isdisjoint(bytes_of_it)
            taken.update(bytes_of_it)
        spans[step] = len(taken)
    assert max(spans.values()) == made.peak <= made.size - SLACK


def chain(*sizes: int) -> Program:
    """Return kernels in a row: each reads what the one before wrote."""
    buffers = [Buffer(f"b{n}", "uint8", size, "workspace") for n, size in enumerate(sizes)]
    arguments = [(buffers[0],), *pairwise(buffers)]
    kernels = [Kernel(f"k{n}", FUNCTION, tuple(a), a[-1], "") for n, a in enumerate(arguments)]
    return Program(tuple(kernels), {}, (), (), ())


def test_a_chain_needs_two_buffers_at_a_time():
    assert plan(chain(640, 640, 640, 640, 640)).size == 2 * 640 + SLACK


def test_small_buffers_take_the_gaps_of_large_ones():
    assert plan(chain(1024, 64, 1024, 64, 1024)).size == 1024 + 64 + SLACK


def test_no_workspace_needs_no_arena():
    output = Buffer("y", "uint8", 4, "output")
    program = Program((Kernel("k", FUNCTION, (output,), output, ""),), {}, (), (), ())
    assert plan(program).size == 0
