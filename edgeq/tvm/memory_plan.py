"""One arena for all workspace buffers: where each lies, and how large the arena is.

A buffer lives from the first kernel that takes it to the last one. Two buffers that are both alive
while some kernel runs never overlap; so no kernel works in place. Behind each buffer there are
`SLACK` bytes that may be read: bytes of another buffer, or of the arena's end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgeq.tvm.program import SLACK, Buffer, Program

_TRIES = 50


@dataclass(frozen=True)
class Life:
    """The kernels during which a buffer holds something, first and last included."""

    first: int
    last: int

    def meets(self, other: "Life") -> bool:
        """Whether some kernel runs while both are alive."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Where each workspace buffer lies.

    Attributes:
        offsets: In bytes from the arena's start, by the buffer's name.
        size: Of the arena, in bytes, with the slack at its end.
        alignment: Of the arena and of every offset.
        lives: By the buffer's name.
        peak: The most bytes that are alive at once: no plan needs less.
    """

    offsets: Mapping[str, int]
    size: int
    alignment: int
    lives: Mapping[str, Life]
    peak: int


def plan(program: Program, alignment: int = 64) -> MemoryPlan:
    """Place every workspace buffer of `program`.

    Each buffer goes into the smallest gap that holds it, in some order: the largest first, or those
    that live longest, or those that are written first. While the arena is larger than what is
    alive at once, the buffer at its end is moved to the front of the order, and all are placed
    anew. The smallest arena wins.
    """
    lives = _lives(program)
    buffers = {b.name: b for kernel in program.kernels for b in kernel.arguments}
    workspace = [b for b in buffers.values() if b.kind == "workspace"]
    if not workspace:
        return MemoryPlan({}, 0, alignment, {}, 0)
    peak = max(_alive(workspace, lives, step) for step in range(len(program.kernels)))
    orders = (
        sorted(workspace, key=lambda b: (-b.size, lives[b.name].first)),
        sorted(workspace, key=lambda b: (lives[b.name].first - lives[b.name].last, -b.size)),
        sorted(workspace, key=lambda b: (lives[b.name].first, -b.size)),
    )
    tried = [_improved(order, lives, alignment, peak) for order in orders]
    end, offsets = min(tried, key=lambda found: found[0])
    return MemoryPlan(offsets, _up(end + SLACK, alignment), alignment, lives, peak)


def _improved(
    order: Sequence[Buffer], lives: Mapping[str, Life], alignment: int, peak: int
) -> tuple[int, dict[str, int]]:
    """Return the smallest end of an arena that was found, and its offsets."""
    tried = []
    for _ in range(_TRIES):
        offsets = _place(order, lives, alignment)
        last = max(order, key=lambda b: offsets[b.name] + b.size)
        tried.append((offsets[last.name] + last.size, offsets))
        if tried[-1][0] <= peak or order[0] is last:
            break
        order = [last, *(b for b in order if b is not last)]
    return min(tried, key=lambda found: found[0])


def _alive(buffers: Iterable[Buffer], lives: Mapping[str, Life], step: int) -> int:
    """Return how many bytes are alive while a kernel runs."""
    return sum(b.size for b in buffers if lives[b.name].meets(Life(step, step)))


def _lives(program: Program) -> dict[str, Life]:
    """Return the life of each workspace buffer, in the order of their first use."""
    lives: dict[str, Life] = {}
    for step, kernel in enumerate(program.kernels):
        for buffer in kernel.arguments:
            if buffer.kind != "workspace":
                continue
            if buffer.name not in lives:
                assert buffer == kernel.writes or buffer in kernel.scratch, (
                    f"{kernel.symbol} reads {buffer.name}, never written"
                )
            first = lives.get(buffer.name, Life(step, step)).first
            lives[buffer.name] = Life(first, step)
    return lives


def _place(order: Sequence[Buffer], lives: Mapping[str, Life], alignment: int) -> dict[str, int]:
    taken: dict[str, tuple[int, int]] = {}  # start and end
    for buffer in order:
        life = lives[buffer.name]
        others = [span for name, span in taken.items() if lives[name].meets(life)]
        start = _smallest_gap(others, buffer.size, alignment)
        taken[buffer.name] = (start, start + buffer.size)
    return {name: start for name, (start, _) in taken.items()}


def _smallest_gap(spans: Iterable[tuple[int, int]], size: int, alignment: int) -> int:
    """Return the start of the smallest gap between `spans` that holds `size`, or their end."""
    found, smallest, reach = None, 0, 0
    for start, end in sorted(spans):
        gap = start - reach
        if size <= gap and (found is None or gap < smallest):
            found, smallest = reach, gap
        reach = max(reach, _up(end, alignment))
    return reach if found is None else found


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
