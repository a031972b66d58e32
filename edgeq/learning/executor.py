"""A differentiable executor of float and quantized graphs, in torch.

Integer linear groups run as one step on codes, as in the simulator, and every code is the same as
there, bit for bit; what a gradient passes through is rounded straight through. Any initializer may
be a tensor that requires a gradient, and any value may be fed.

Integers that come from activations (codes, units, accumulators) are held in float32 or float64,
which hold them exactly; indices and shapes are int64, shapes on the host.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.errors import DataError, ModelError, UnsupportedOperatorError, suggest
from edgeq.learning.codes import (
    GROUP_ZERO_POINTS,
    ZERO_POINTS,
    Kernel,
    dequantize_kernel,
    group_inputs,
    group_kernel,
    quantize_kernel,
)
from edgeq.learning.operators import OPERATORS
from edgeq.operators import OPERATORS as DEFINITIONS
from edgeq.operators.binding import bind, describe
from edgeq.qdq import linear_group

Argument: TypeAlias = str | Tensor | float | None
_EXACT_IN_FLOAT32 = {"int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"}
_SHAPES = {"Shape", "Size"}  # what they make are shapes, and stays on the host
# Operators whose arguments behind the first say how, and not what: read on the host.
_TOLD_HOW = {
    "CumSum", "Expand", "Pad", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum",
    "ReduceSumSquare", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Trilu",
    "Unsqueeze",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Step:
    """One thing to execute: a node, or a linear op with what dequantizes and quantizes it.

    Attributes:
        node: The node; of a group, the linear op.
        inputs: Names of the values that it takes, in order.
        outputs: Names of the values that it makes; empty where nobody wants one.
        zeros: Which of the inputs are zero points.
        make: Returns the function; called when the step is first needed.
    """

    node: ir.Node
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    zeros: tuple[int, ...]
    make: Callable[[], Kernel]


@dataclass(frozen=True, eq=False)
class _Call:
    """A step with its constants, and the values that nobody reads after it."""

    node: ir.Node
    kernel: Kernel
    arguments: tuple[Argument, ...]
    outputs: tuple[str, ...]
    last: tuple[str, ...]


class Executor:
    """Executes a model with gradients.

    Attributes:
        device: Where tensors are.
    """

    def __init__(self, model: ir.Model, device: str = "cpu", *, exact: bool = True) -> None:
        """Read the graph; what a run needs is prepared on the first one of its kind.

        Args:
            model: A float or a quantized graph.
            device: As torch names it.
            exact: Carry accumulators in float64 where float32 might round; without it, they are
                always float32, which is faster, and exact as long as sums stay below 2**24.
        """
        graph = model.graph
        self.device = torch.device(device)
        self._exact = exact
        self._constants: dict[str, NDArray[Any]] = {
            name: value.const_value.numpy()
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        self._inputs = tuple(str(v.name) for v in graph.inputs)
        self._steps = self._read(graph)
        self._fold()
        self._shapes = self._shape_names()
        self._kernels: dict[_Step, Kernel] = {}
        self._tensors: dict[tuple[str, bool], Tensor] = {}
        self._plans: dict[tuple[frozenset[str], ...], tuple[_Call, ...]] = {}

    def run(
        self,
        feeds: Mapping[str, Tensor],
        wanted: Sequence[str],
        parameters: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return values of the graph.

        Args:
            feeds: Values by name: the graph's inputs, or any values that cut it; codes in any
                dtype.
            wanted: Names of the values to return: codes are held in float32; the result of a
                linear group before it is quantized is `float32(acc) * float32(sx * sw)`.
            parameters: Tensors to take in place of initializers, by name; codes and biases need
                not be integers.

        Raises:
            DataError: A value that is needed has no feed, or there is none of such a name.
            UnsupportedOperatorError: A node that is needed has no definition here.
            ModelError: The shapes do not fit together; the message names the node.
        """
        parameters = parameters or {}
        key = (frozenset(feeds), frozenset(wanted), frozenset(parameters))
        if key not in self._plans:
            self._plans[key] = self._plan(*key)
        env: dict[str, Tensor] = {n: self._held(t) for n, t in feeds.items()}
        env.update(parameters)
        for call in self._plans[key]:
            arguments = [env[a] if type(a) is str else a for a in call.arguments]
            try:
                results = call.kernel(*arguments)
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                raise ModelError(f"{describe(call.node)}: {error}") from error
            for name, result in zip(call.outputs, results, strict=False):
                if name:
                    env[name] = result
            for name in call.last:
                env.pop(name, None)
        return {n: env[n] if n in env else self._constant(n, host=False) for n in wanted}

    def _read(self, graph: ir.Graph) -> tuple[_Step, ...]:
        """Return a step for every node and group; those nobody needs cost nothing in a run."""
        groups = {node: group for node in graph if (group := linear_group(node)) is not None}
        inside = {group.y.node for group in groups.values() if group.y is not None}
        steps: list[_Step] = []
        for node in graph:
            if node in groups:
                group = groups[node]
                for real in (True, False) if group.y is not None else (False,):
                    inputs = _names(group_inputs(group, real=real))
                    output = node.outputs[0] if real else group.output

                    def make(group: Any = group, real: bool = real) -> Kernel:  # noqa: ANN401
                        return group_kernel(group, real=real, exact=self._exact)

                    steps.append(_Step(node, inputs, (str(output.name),), GROUP_ZERO_POINTS, make))
            elif node not in inside:
                outputs = tuple(out.name or "" for out in node.outputs)
                zeros = () if node.domain else ZERO_POINTS.get(node.op_type, ())
                steps.append(_Step(node, _names(node.inputs), outputs, zeros, _maker(node)))
        return tuple(steps)

    def _fold(self) -> None:
        """Evaluate what is constant, by the definition."""
        for step in self._steps:
            names = [name for name in step.inputs if name is not None]
            group = step.zeros == GROUP_ZERO_POINTS
            if group or not all(name in self._constants for name in names):
                continue
            try:
                kernel = bind(step.node, DEFINITIONS)
            except UnsupportedOperatorError:
                continue
            inputs = [None if name is None else self._constants[name] for name in step.inputs]
            for name, array in zip(step.outputs, kernel(*inputs), strict=False):
                self._constants[name] = np.asarray(array)

    def _shape_names(self) -> set[str]:
        """Return the names of what is computed from shapes alone."""
        found: set[str] = set()
        for step in self._steps:
            varying = [n for n in step.inputs if n is not None and n not in self._constants]
            if step.node.op_type in _SHAPES or (varying and found.issuperset(varying)):
                found.update(step.outputs)
        return found - set(self._constants)

    def _plan(
        self, feeds: frozenset[str], wanted: frozenset[str], parameters: frozenset[str]
    ) -> tuple[_Call, ...]:
        given = feeds | parameters
        changed, constants = set(parameters), set(self._constants) - given
        for step in self._steps:
            if not changed.isdisjoint(n for n in step.inputs if n is not None):
                changed.update(name for name in step.outputs if name not in given)
                constants.difference_update(step.outputs)
        names, kept = set(wanted) - given - constants, []
        for step in reversed(self._steps):
            if names.isdisjoint(step.outputs):
                continue
            names.difference_update(step.outputs)
            names.update(n for n in step.inputs if n and n not in given and n not in constants)
            kept.append(step)
        self._check(names, feeds)
        calls: list[_Call] = []
        readers = set(wanted)
        for step in kept:  # from the last on
            read = {n for n in step.inputs if n and n not in constants}
            last = tuple(sorted(n for n in (read | set(step.outputs)) - readers if n))
            readers |= read
            calls.append(self._call(step, constants, last))
        return tuple(reversed(calls))

    def _check(self, missing: set[str], feeds: frozenset[str]) -> None:
        for name in sorted(missing):
            if name in self._inputs:
                raise DataError(f"no feed for input {name!r}")
            every = [n for step in self._steps for n in step.outputs]
            raise DataError(f"the model has no value {name!r}{suggest(name, every)}")
        known = {n for step in self._steps for n in step.outputs}
        known.update(self._inputs, self._constants)
        for name in sorted(feeds - known):
            raise DataError(f"the model has no value {name!r}{suggest(name, sorted(known))}")

    def _call(self, step: _Step, constants: set[str], last: tuple[str, ...]) -> _Call:
        if step not in self._kernels:
            self._kernels[step] = step.make()
        on_host = step.outputs[0] in self._shapes
        told_how = step.node.op_type in _TOLD_HOW and not step.node.domain
        arguments: list[Argument] = []
        for place, name in enumerate(step.inputs):
            if name is None or name not in constants:
                arguments.append(name)
            elif place in step.zeros and (number := _single(self._constants[name])) is not None:
                arguments.append(number)
            else:
                arguments.append(self._constant(name, host=on_host or (told_how and place > 0)))
        kernel = self._kernels[step]
        with_shapes = not self._shapes.isdisjoint(n for n in step.inputs if n)
        if self.device.type != "cpu" and with_shapes and not on_host and not told_how:
            kernel = _moved(kernel, self.device)
        return _Call(step.node, kernel, tuple(arguments), step.outputs, last)

    def _constant(self, name: str, *, host: bool) -> Tensor:
        key = (name, host)
        if key not in self._tensors:
            if name not in self._constants:
                raise DataError(f"the model has no value {name!r}")
            tensor = _tensor(self._constants[name])
            self._tensors[key] = tensor if host else tensor.to(self.device)
        return self._tensors[key]

    def _held(self, tensor: Tensor) -> Tensor:
        """Return a feed on the device; codes are held in float32."""
        narrow = tensor.dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16)
        return tensor.to(self.device, torch.float32) if narrow else tensor.to(self.device)


def _names(values: Sequence[ir.Value | None]) -> tuple[str | None, ...]:
    return tuple(None if v is None else str(v.name) for v in values)


def _maker(node: ir.Node) -> Callable[[], Kernel]:
    """Return what makes the function of a node."""
    makers = {"QuantizeLinear": quantize_kernel, "DequantizeLinear": dequantize_kernel}
    if not node.domain and node.op_type in makers:
        return lambda: makers[node.op_type](node)
    return lambda: bind(node, OPERATORS)


def _moved(kernel: Kernel, device: torch.device) -> Kernel:
    """Return `kernel` with its tensors moved to the device: some of them are shapes."""

    def call(*arguments: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        return kernel(*(a.to(device) if isinstance(a, Tensor) else a for a in arguments))

    return call


def _single(array: NDArray[Any]) -> float | None:
    """Return the value that all elements have, if they have one."""
    first = float(array.reshape(-1)[0]) if array.size else None
    return first if first is not None and bool(np.all(array == array.reshape(-1)[0])) else None


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return a constant: codes in float32, wider integers in int64, anything else as it is."""
    if array.dtype.name in _EXACT_IN_FLOAT32:
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu":
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))  # a copy: an initializer may be edited
