"""What lowering a linear operator gives: functions to call in order, and their memory."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from tvm.tirx import PrimFunc


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
