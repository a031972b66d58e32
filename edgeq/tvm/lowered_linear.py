"""What lowering a linear operator gives: functions to call in order, and their memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from tvm.tirx import PrimFunc

from edgeq.tvm import emit
from edgeq.tvm.emit import Buffer
from edgeq.tvm.linear_problem import LinearProblem


@dataclass(frozen=True, eq=False)
class Step:
    """A function to call.

    Attributes:
        symbol: Its name in C.
        function: The TIR.
        roles: What each parameter is: `x`, `y`, a constant or a scratch.
    """

    symbol: str
    function: PrimFunc
    roles: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class LoweredLinear:
    """A linear operator as code and data.

    Attributes:
        steps: In the order of execution.
        constants: By role, as they lie in memory.
        scratch: dtype and number of elements by role; memory that the steps alone use, with
            `edgeq.tvm.program.SLACK` readable bytes behind it.
    """

    steps: tuple[Step, ...]
    constants: Mapping[str, NDArray[Any]]
    scratch: Mapping[str, tuple[str, int]]


def in_one_step(
    symbol: str,
    problem: LinearProblem,
    constants: Mapping[str, NDArray[Any]],
    scratch: Mapping[str, tuple[str, int]],
    body: Callable[[Mapping[str, Buffer]], None],
) -> LoweredLinear:
    """Return the function whose body `body` writes: it gets `x`, constants, scratch and `y`."""
    parameters = {
        "x": (problem.x_dtype, problem.x_elements),
        **{name: (str(array.dtype), array.size) for name, array in constants.items()},
        **scratch,
        "y": (problem.y_dtype, problem.y_elements),
    }
    function = emit.function(symbol, parameters, body)
    return LoweredLinear((Step(symbol, function, tuple(parameters)),), constants, scratch)
