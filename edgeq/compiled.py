"""A quantized model with everything that was found out about it."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgeq.certify import Certificate
from edgeq.measure import Sweep
from edgeq.noise_sources import NoiseSources
from edgeq.passing import Context, PassRecord
from edgeq.report import FloatRow
from edgeq.source import Source
from edgeq.targeting import Artifact
from edgeq.verify import Verdict


@dataclass(frozen=True, eq=False)
class Checked:
    """What was verified on one kind of feeds."""

    feeds: str
    count: int
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Compiled:
    """A quantized model with everything that was found out about it.

    Attributes:
        source: What was loaded.
        context: The decisions.
        model: The quantized model.
        artifact: It, lowered.
        records: What the passes did.
        certificate: Why the bits are the same everywhere.
        islands: What computes in float32 outside of codes and exact forms.
        checks: What was verified.
        sweep: Fidelity and golden vectors.
        kernels: What the runtime made of the model.
        metrics: Figures by name.
        evaluation_digest: sha256 of the file that they were measured on; None: not of one file.
        noise: Whether the noise that is left is that of the weights; None: not measured.
    """

    source: Source
    context: Context
    model: ir.Model
    artifact: Artifact
    records: tuple[PassRecord, ...]
    certificate: Certificate
    islands: tuple[FloatRow, ...]
    checks: tuple[Checked, ...]
    sweep: Sweep
    kernels: Mapping[str, int]
    metrics: Mapping[str, float]
    evaluation_digest: str | None = None
    noise: NoiseSources | None = None
