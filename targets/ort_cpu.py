"""ONNX Runtime on a CPU: x86-64 with and without VNNI, Arm with and without dot product.

The artifact is a standard QDQ model that stock ONNX Runtime fuses to integer kernels at its default
optimization level. Its session options are part of the arithmetic: without
`session.x64quantprecision` x86 CPUs that lack VNNI saturate pairs of u8 * s8 products.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.check_saturation import PRECISION, needed_options
from edgeq.errors import ModelError
from edgeq.graph import clone, to_bytes
from edgeq.qdq import linear_group
from edgeq.runtime import Session, make_session, run
from edgeq.targeting import EXACT, Artifact, Capabilities, Feeds, Runner, Target

INTEGER_KERNELS = MappingProxyType(
    {"Conv": "QLinearConv", "Gemm": "QGemm", "MatMul": "QLinearMatMul", "Mul": "QLinearMul"}
)
SESSION_OPTIONS = MappingProxyType(
    {
        # ONNX Runtime would merge two pairs of Q and DQ in a row into one, and round once.
        "session.disable_double_qdq_remover": "1",
        PRECISION: "1",
    }
)


@dataclass(frozen=True)
class OrtRunner(Runner):
    """A session on ONNX Runtime's CPU provider."""

    session: Session

    def run(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        """Return every output by name."""
        return run(self.session, feeds)


class OrtCpu(Target):
    """Stock ONNX Runtime with its CPU provider."""

    capabilities: ClassVar[Capabilities] = replace(
        EXACT, session_options=SESSION_OPTIONS, float8=True
    )

    def __init__(self) -> None:
        self._last: tuple[ir.Model, list[tuple[str, str]]] | None = None

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return "ONNX Runtime 1.31 on x86-64 and Arm CPUs"

    def lower(self, model: ir.Model) -> Artifact:
        """Return the QDQ model itself, serialized."""
        return Artifact({"model.onnx": to_bytes(model)})

    def load(
        self,
        model: ir.Model,
        *,
        threads: int = 1,
        taps: Sequence[str] = (),
        all_options: bool = False,
    ) -> Runner:
        """Open a session on `model` with the values in `taps` as further outputs."""
        options = SESSION_OPTIONS if all_options else needed_options(SESSION_OPTIONS)
        tapped = tap(model, taps) if taps else model
        return OrtRunner(make_session(tapped, options=options, threads=threads))

    def kernels(self, model: ir.Model) -> Mapping[str, int]:
        """Return the operator histogram of the graph that ONNX Runtime made of `model`."""
        counts = Counter(op_type for _, op_type in self._optimized(model))
        return dict(sorted(counts.items()))

    def placement(self, model: ir.Model) -> Mapping[str, str]:
        """Return the operators of that graph by node name: fused ones keep the name of one part."""
        return dict(self._optimized(model))

    def _optimized(self, model: ir.Model) -> list[tuple[str, str]]:
        """Return name and operator of each node of the graph that ONNX Runtime makes of `model`."""
        if self._last is None or self._last[0] is not model:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "optimized.onnx"
                options = needed_options(SESSION_OPTIONS)
                make_session(model, options=options, optimized_path=path, level="extended")
                optimized = onnx.load(path, load_external_data=False)
            self._last = model, [(node.name, node.op_type) for node in optimized.graph.node]
        return self._last[1]

    def missing_kernels(self, model: ir.Model, kernels: Mapping[str, int]) -> tuple[str, ...]:
        """Compare the integer kernels that ONNX Runtime made with the model's linear groups."""
        groups = Counter(node.op_type for node in model.graph if linear_group(node) is not None)
        return tuple(
            f"{count} {op_type} became {kernels.get(kernel, 0)} {kernel}"
            for op_type, kernel in INTEGER_KERNELS.items()
            if (count := groups[op_type]) > kernels.get(kernel, 0)
        )


def tap(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy of `model` with the values `names` as further outputs.

    Raises:
        ModelError: The model has no such value.
    """
    tapped = clone(model)
    values = {out.name: out for node in tapped.graph for out in node.outputs}
    present = {output.name for output in tapped.graph.outputs}
    for name in names:
        if name in present:
            continue
        if name not in values:
            raise ModelError(f"cannot tap {name!r}: the model makes no value of this name")
        tapped.graph.outputs.append(values[name])
    return tapped
