"""The reference executor: what a quantized model means, bit by bit.

Integer linear groups run as one step on codes; everything else runs node by node, in float32, as
single IEEE operations, or is looked up in what these make of all codes. numpy only.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import DataError, suggest
from edgeq.numerics.parallel import THREADS, together
from edgeq.operators import OPERATORS
from edgeq.operators.batchwise import keeps_samples_apart
from edgeq.operators.binding import bind
from edgeq.operators.code_tables import look_up_codes
from edgeq.operators.integer import dynamic_operands, integer_kernel
from edgeq.operators.step import Step as Step
from edgeq.operators.step import needed
from edgeq.qdq import LinearGroup, linear_group

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Taps = Sequence[str] | Literal["all"]
_SMALLEST_SHARE = 2  # samples


@dataclass(frozen=True)
class _Plan:
    """Which steps a run executes, and which values each of them reads for the last time."""

    steps: tuple[Step, ...]
    last: tuple[tuple[str, ...], ...]
    wanted: tuple[str, ...]


class Simulator:
    """Executes a model; a group of `edgeq.qdq.linear_group` is one step.

    Attributes:
        steps: What an untapped run executes, in order. Constants are already evaluated.
    """

    steps: tuple[Step, ...]

    def __init__(self, model: ir.Model) -> None:
        """Prepare every node.

        Raises:
            UnsupportedOperatorError: A node has no definition; the message names it.
            ModelError: An accumulator may leave int32; the message names its node.
        """
        graph = model.graph
        self._graph = graph
        self._cuttable = keeps_samples_apart(graph)
        self._constants = {
            name: value.const_value.numpy()
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        self._inputs = {str(v.name): v for v in graph.inputs if str(v.name) not in self._constants}
        self._outputs = tuple(str(v.name) for v in graph.outputs)
        self._all = self._prepare(graph)
        self._fixed = _fixed(graph)
        self._bindings: dict[Step, Step] = {}
        self._settle()

    def _prepare(self, graph: ir.Graph) -> list[Step]:
        """Return a step for every node and group; those nobody needs cost nothing in a run."""
        groups = {node: group for node in graph if (group := linear_group(node)) is not None}
        inside = {group.y.node for group in groups.values() if group.y is not None}
        steps: list[Step] = []
        for node in graph:
            if node in groups:
                steps += self._group_steps(groups[node])
            elif node not in inside:
                steps.append(self._node_step(node))
        return steps

    def _group_steps(self, group: LinearGroup) -> list[Step]:
        operands = dynamic_operands(group)
        step = self._step(group.node, operands, [group.output], integer_kernel(group))
        if group.y is None:
            return [step]
        real = integer_kernel(group, real=True)
        return [self._step(group.node, operands, group.node.outputs, real), step]

    def _node_step(self, node: ir.Node) -> Step:
        return self._step(node, node.inputs, node.outputs, bind(node, OPERATORS))

    def _step(
        self,
        node: ir.Node,
        inputs: Iterable[ir.Value | None],
        outputs: Iterable[ir.Value],
        kernel: Callable[..., tuple[Array, ...]],
    ) -> Step:
        arguments = tuple(None if v is None else str(v.name) for v in inputs)
        return Step(
            node,
            tuple(dict.fromkeys(a for a in arguments if a is not None)),
            tuple(out.name or "" for out in outputs),
            arguments,
            kernel,
        )

    def _settle(self) -> None:
        """Evaluate what is constant and needed, once, and bind constants to the other steps."""
        used = {id(s) for s in needed(self._all, self._outputs)}
        settled: list[Step] = []
        folded: list[Step] = []
        for step in self._all:
            constant = all(name in self._constants for name in step.inputs)
            if constant and id(step) in used:
                step.execute(self._constants)
                folded.append(step)
                continue
            if step not in self._bindings:
                self._bindings[step] = self._bound(step)
            settled.append(self._bindings[step])
        self._folded = folded
        self._settled = settled
        self._fast = look_up_codes(settled)
        self.steps = needed(self._fast, self._outputs)
        self._plans: dict[tuple[str, ...], _Plan] = {}

    def _bound(self, step: Step) -> Step:
        known = self._constants
        arguments = tuple(
            known[a] if isinstance(a, str) and a in known else a for a in step.arguments
        )
        inputs = tuple(name for name in step.inputs if name not in known)
        return Step(step.node, inputs, step.outputs, arguments, step.kernel)

    def refresh(self, node: ir.Node) -> None:
        """Read anew the constants that `node` depends on, after an initializer was edited.

        `node` is a node of the model, or the linear op of a group whose weight or bias changed.
        `steps` is made anew: take it again.
        """
        changed = self._read_again(node)
        group = linear_group(node)
        fresh = [self._node_step(node)] if group is None else self._group_steps(group)
        place = next(i for i, s in enumerate(self._all) if s.node is node)
        self._all[place : place + len(fresh)] = fresh
        for step in self._folded:
            if not changed.isdisjoint(step.inputs):
                changed.update(step.outputs)
            for name in step.outputs:
                self._constants.pop(name, None)
        bindings = self._bindings.items()
        self._bindings = {s: b for s, b in bindings if changed.isdisjoint(s.inputs)}
        self._settle()

    def _read_again(self, node: ir.Node) -> set[str]:
        """Read the initializers that `node` depends on anew; return the names of those edited."""
        changed: set[str] = set()
        for value in node.inputs:
            if value is None or str(value.name) not in self._fixed:
                continue
            producer, name = value.producer(), str(value.name)
            if producer is not None:
                changed |= self._read_again(producer)
            elif value.const_value is not None:
                array = value.const_value.numpy()
                if array is not self._constants[name]:
                    self._constants[name] = array
                    changed.add(name)
        return changed

    def real_step(self, node: ir.Node) -> Step:
        """Return the step that makes the float32 result of a linear group, before quantization."""
        return next(
            s for s in self._settled if s.node is node and s.outputs[0] == node.outputs[0].name
        )

    def run(self, feeds: Feeds, taps: Taps = ()) -> dict[str, Array]:
        """Execute the model.

        Args:
            feeds: Every input by name, with the dtype and shape that the model states.
            taps: Names of further values to return, or "all": every value that depends on an
                input. Inside an integer group, a dequantized operand is what DequantizeLinear
                gives, and the result before quantization is `float32(acc) * float32(sx * sw)`.

        Returns:
            The outputs, then the taps.

        Raises:
            DataError: A feed is missing, unknown, or has another dtype or shape; a tap is unknown.
        """
        env = self._checked(feeds)
        plan = self._plan(self._tap_names(taps))
        shares = self._shares(env)
        together([partial(self._execute, plan, share) for share in shares])
        return {name: self._gathered(name, shares) for name in plan.wanted}

    def observe(
        self, feeds: Feeds, groups: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, dict[str, Array]]]:
        """Execute the model; give each group of values as soon as all of it is known.

        No value is held longer than a step or a group needs it: many groups cost no more memory
        than the largest.

        Args:
            feeds: Every input by name, as `run` takes them.
            groups: Names of values, as the taps of `run`.

        Yields:
            The number of a group, and its values; they are gone when the next is asked for.

        Raises:
            DataError: A feed is missing, unknown, or has another dtype or shape; a name is unknown.
        """
        env = self._checked(feeds)
        names = tuple(dict.fromkeys(name for group in groups for name in group))
        self._check_names(names)
        env |= {name: self._constants[name] for name in names if name in self._constants}
        steps = needed(self._fast, names)
        made = {name: place for place, step in enumerate(steps) for name in step.outputs}
        complete = [max((made.get(name, -1) for name in group), default=-1) for group in groups]
        readers = Counter(n for reads in (*groups, *(s.inputs for s in steps)) for n in reads)
        for place, step in enumerate((None, *steps), -1):
            read: list[str] = []
            if step is not None:
                step.execute(env)
                read += step.inputs
            for number in (n for n, last in enumerate(complete) if last == place):
                values = {name: env[name] for name in groups[number]}
                yield number, values
                values.clear()
                read += groups[number]
            readers.subtract(read)
            for name in (*read, *(() if step is None else step.outputs)):
                if readers[name] <= 0:
                    env.pop(name, None)

    def largest(self, feeds: Feeds) -> int:
        """Return the bytes of the largest value that a run with all taps would return.

        No more is held at a time than a run without taps needs.
        """
        env, taps, largest = self._checked(feeds), set(self._tap_names("all")), 0
        steps = needed(self._settled, taps)
        readers = Counter(name for step in steps for name in step.inputs)
        for step in steps:
            step.execute(env)
            sizes = (env[name].nbytes for name in step.outputs if name in taps)
            largest = max(largest, *sizes, 0)
            readers.subtract(step.inputs)
            for name in (*step.inputs, *step.outputs):
                if readers[name] <= 0:
                    env.pop(name, None)
        return largest

    def _shares(self, env: dict[str, Array]) -> list[dict[str, Array]]:
        """Cut a batch into one part per thread, where samples do not meet.

        A thread then runs all steps on its part: threads need not wait for each other at each one.
        """
        sizes = {len(array) for array in env.values() if array.ndim}
        if not self._cuttable or len(sizes) != 1 or min(sizes) < _SMALLEST_SHARE * THREADS:
            return [env]
        cuts = [min(sizes) * part // THREADS for part in range(THREADS + 1)]
        return [
            {name: array[begin:end] for name, array in env.items()} for begin, end in pairwise(cuts)
        ]

    def _execute(self, plan: _Plan, env: dict[str, Array]) -> None:
        for step, last in zip(plan.steps, plan.last, strict=True):
            step.execute(env)
            for name in last:
                env.pop(name, None)

    def _gathered(self, name: str, shares: list[dict[str, Array]]) -> Array:
        if name not in shares[0]:
            return self._constants[name]
        return shares[0][name] if len(shares) == 1 else np.concatenate([s[name] for s in shares])

    def _tap_names(self, taps: Taps) -> tuple[str, ...]:
        if taps != "all":
            return tuple(taps)
        depends = set(self._inputs)
        for step in self._settled:
            if depends.intersection(step.inputs):
                depends.update(name for name in step.outputs if name)
        return tuple(n for s in self._settled for n in s.outputs if n in depends)

    def _plan(self, taps: tuple[str, ...]) -> _Plan:
        if taps in self._plans:
            return self._plans[taps]
        wanted = tuple(dict.fromkeys((*self._outputs, *taps)))
        self._check_names(wanted)
        steps = needed(self._fast, wanted)
        used = set(wanted)
        last: list[tuple[str, ...]] = []
        for step in reversed(steps):
            mine = [name for name in (*step.inputs, *step.outputs) if name not in used]
            used.update(mine)
            last.append(tuple(mine))
        plan = _Plan(steps, tuple(reversed(last)), wanted)
        self._plans[taps] = plan
        return plan

    def _check_names(self, names: Iterable[str]) -> None:
        known = {*self._inputs, *self._constants, *(n for s in self._settled for n in s.outputs)}
        for name in names:
            if name not in known:
                raise DataError(f"the model has no value {name!r}{suggest(name, sorted(known))}")

    def _checked(self, feeds: Feeds) -> dict[str, Array]:
        expected = ", ".join(map(_signature, self._inputs.values()))
        for name in feeds:
            if name not in self._inputs:
                raise DataError(
                    f"the model has no input {name!r}{suggest(name, list(self._inputs))};"
                    f" its inputs are {expected or 'none'}"
                )
        env: dict[str, Array] = {}
        for name, value in self._inputs.items():
            if name not in feeds:
                raise DataError(f"input {name!r} is missing; the model needs {expected}")
            array = np.asarray(feeds[name])
            if not _fits(value, array):
                raise DataError(
                    f"input {name!r}: expected {_signature(value)},"
                    f" found {array.dtype}{list(array.shape)}"
                )
            env[name] = array
        return env


def _fixed(graph: ir.Graph) -> set[str]:
    """Return the names of the values that depend on initializers alone."""
    found = set(graph.initializers)
    for node in graph:
        if all(value is None or value.name in found for value in node.inputs):
            found.update(str(value.name) for value in node.outputs)
    return found


def _signature(value: ir.Value) -> str:
    dtype = "any type" if value.dtype is None else value.dtype.numpy().name
    sizes = "" if value.shape is None else f"[{', '.join(map(str, value.shape))}]"
    return f"{value.name} {dtype}{sizes}"


def _fits(value: ir.Value, array: Array) -> bool:
    if value.dtype is not None and array.dtype != value.dtype.numpy():
        return False
    if value.shape is None:
        return True
    return len(value.shape) == array.ndim and all(
        not isinstance(size, int) or size == found
        for size, found in zip(value.shape, array.shape, strict=True)
    )
