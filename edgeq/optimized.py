"""The graph that ONNX Runtime makes of a model on a kind of CPU, asked of ONNX Runtime itself.

What is fused into which kernel depends on the model and on one session option whose default
depends on the CPU, not on the machine that asks: so the graph of an Arm is made on any host.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from edgeq.cpus import Cpu
from edgeq.runtime import NO_OPTIONS, make_session


def optimize(model: ir.Model, cpu: Cpu, options: Mapping[str, str] = NO_OPTIONS) -> ir.Model:
    """Return ONNX Runtime's own graph of `model`, with its fused operators.

    Layouts are left out: they move elements and change no bit.

    Args:
        model: Any model.
        cpu: Where it is to run.
        options: Of the session.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    settings = {**cpu.session_options, **options}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        make_session(model, options=settings, optimized_path=path, level="extended")
        made = ir.load(path)
        for value in made.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
    return made
