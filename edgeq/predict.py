"""What ONNX Runtime computes of any QDQ model on a named CPU, predicted on the host, bit for bit.

ONNX Runtime says which kernels it makes of the model (`edgeq.optimized`). Each of them is computed
by the formula that was measured for the CPU (`edgeq.operators.runtime_kernels`), each other node
as ONNX defines it, where the certificate has a proof that every CPU computes just that. What a
float kernel without such a proof makes is not predicted, nor what is computed from it: there is a
reason for each such node, and no guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.certify import certify
from edgeq.check_saturation import PRECISION
from edgeq.contrib_codes import standardize
from edgeq.cpus import Cpu
from edgeq.errors import EdgeqError, ModelError, UnpredictableError
from edgeq.graph import constant
from edgeq.operators import OPERATORS
from edgeq.operators.binding import Kernel, bind
from edgeq.operators.runtime_kernels import kernels
from edgeq.optimized import optimize
from edgeq.runtime import NO_OPTIONS
from edgeq.targeting import Capabilities

Array = NDArray[Any]
Arrays = Mapping[str, Array]
NOTHING: Arrays = MappingProxyType({})

# Where products have their weights: the precision option widens those with constant ones.
_RIGHT_SIDE = {"MatMulIntegerToFloat": 1, "QGemm": 3, "QLinearConv": 3, "QLinearMatMul": 3}


class Prediction:
    """A model as a CPU runs it.

    Attributes:
        cpu: The CPU.
        graph: ONNX Runtime's graph there.
        unpredicted: Why the bits of a node cannot be predicted, by its name: the operator that
            ONNX Runtime runs, and the reason. A run may add to it.
    """

    def __init__(self, model: ir.Model, cpu: Cpu, options: Mapping[str, str] = NO_OPTIONS) -> None:
        """Ask ONNX Runtime for the graph, and prepare its nodes.

        Args:
            model: Any QDQ model; its outputs are what is predicted.
            cpu: The CPU.
            options: Of the session. The precision option widens products on CPUs that saturate.

        Raises:
            ModelError: ONNX Runtime refuses the model.
        """
        optimized = optimize(model, cpu, options)
        self.cpu, self.graph = cpu, optimized.graph
        self._constants = {
            str(name): value.const_value.numpy()
            for name, value in self.graph.initializers.items()
            if value.const_value is not None
        }
        standardize(self.graph)
        tables = kernels(cpu), kernels(cpu.widened)
        for node in self.graph:
            if node.op_type in tables[0]:
                node.domain = ""
        proofs = certify(optimized, Capabilities(), kernels=tables[0].keys()).proofs
        self._steps: list[_Step] = []
        self.unpredicted: dict[str, str] = {}
        for node, proof in zip(self.graph, proofs, strict=True):
            wide = options.get(PRECISION) == "1" and _constant_right_side(node)
            kernel, reason = None, proof.detail if proof.kind == "unproven" else ""
            try:
                kernel = None if reason else bind(node, {**OPERATORS, **tables[wide]})
            except EdgeqError as error:
                reason = str(error)
            if reason:
                self.unpredicted[_name(node)] = f"{node.op_type}: {reason}"
            self._steps.append(_Step.of(node, kernel))

    def run(self, feeds: Arrays, known: Arrays = NOTHING) -> dict[str, Array]:
        """Return every output that can be predicted, by name.

        Args:
            feeds: The inputs.
            known: What the CPU was seen to make, by name. The nodes behind such a value read it,
                in place of its prediction.

        Raises:
            ModelError: The feeds do not fit the model; the message names the node.
        """
        env: dict[str, Array] = {**self._constants, **feeds}
        wanted = {str(value.name) for value in self.graph.outputs}
        found: dict[str, Array] = {}
        for step in self._steps:
            if step.kernel is not None and all(name in env for name in step.inputs if name):
                try:
                    results = step.kernel(*(env[name] if name else None for name in step.inputs))
                except UnpredictableError as error:
                    self.unpredicted[step.name] = f"{step.op_type}: {error}"
                    results = ()
                except (ArithmeticError, IndexError, TypeError, ValueError) as error:
                    raise ModelError(f"{step.op_type} node {step.name!r}: {error}") from error
                made = dict(zip(step.outputs, map(np.asarray, results), strict=False))
                found.update((name, value) for name, value in made.items() if name in wanted)
                env.update(made)
            env.update((name, known[name]) for name in step.outputs if name in known)
        return found


@dataclass(frozen=True, eq=False)
class _Step:
    """A node: the names of its inputs (empty where one is left out), outputs, and its kernel."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kernel: Kernel | None

    @classmethod
    def of(cls, node: ir.Node, kernel: Kernel | None) -> "_Step":
        inputs = tuple("" if value is None else str(value.name) for value in node.inputs)
        outputs = tuple(str(value.name) for value in node.outputs)
        return cls(_name(node), node.op_type, inputs, outputs, kernel)


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _constant_right_side(node: ir.Node) -> bool:
    place = _RIGHT_SIDE.get(node.op_type)
    return place is not None and constant(node.inputs[place]) is not None
