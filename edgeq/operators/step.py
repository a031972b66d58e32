"""One thing to execute: a function, and the names of what it reads and makes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.errors import EdgeqError, ModelError
from edgeq.operators.binding import describe

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One thing to execute: a node, or several that have one result.

    Attributes:
        node: The node; of a group, the linear op; of a look-up, the QuantizeLinear.
        inputs: Names of the values that it reads, constants left out.
        outputs: Names of the values that it makes; empty where nobody wants one.
        arguments: What the kernel is called with: a value's name, a constant, or None.
        kernel: The function.
    """

    node: ir.Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arguments: tuple[str | Array | None, ...]
    kernel: Callable[..., tuple[Array, ...]]

    def execute(self, env: dict[str, Array]) -> None:
        """Read the inputs from `env` and put the outputs there.

        Raises:
            ModelError: The shapes do not fit together; the message names the node.
        """
        arguments = [env[a] if isinstance(a, str) else a for a in self.arguments]
        try:
            results = self.kernel(*arguments)
        except EdgeqError as error:
            raise type(error)(_located(self.node, error)) from None
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            raise ModelError(_located(self.node, error)) from error
        for name, result in zip(self.outputs, results, strict=False):
            if name:
                env[name] = np.asarray(result)


def _located(node: ir.Node, error: Exception) -> str:
    where = describe(node)
    return str(error) if where in str(error) else f"{where}: {error}"


def needed(steps: Sequence[Step], wanted: Iterable[str]) -> tuple[Step, ...]:
    """Return the steps, in order, that `wanted` values depend on."""
    names, kept = set(wanted), []
    for step in reversed(steps):
        if names.isdisjoint(step.outputs):
            continue
        names.update(step.inputs)
        kept.append(step)
    return tuple(reversed(kept))
