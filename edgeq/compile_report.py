"""What a compilation found, put into the report and the manifest."""

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from edgeq.compiled import Compiled
from edgeq.float_islands import float_tail
from edgeq.graph import weight_bytes
from edgeq.manifest import (
    BitSummary,
    CertificateSummary,
    Manifest,
    SampleInfo,
    TensorInfo,
)
from edgeq.report import (
    BucketRow,
    BucketTable,
    MetricRow,
    PassRow,
    ProofRow,
    Report,
    VerdictRow,
)
from edgeq.targeting import Target
from edgeq.versions import versions


def build_report(compiled: Compiled, target: Target) -> Report:
    """Return the report of a compilation."""
    context, source = compiled.context, compiled.source
    assert context.reference is not None
    return Report(
        model=source.name,
        target=target.name(),
        recipe=context.recipe.name,
        recipe_text=_recipe_text(compiled),
        verdicts=tuple(
            VerdictRow(
                check.feeds,
                check.count,
                check.verdict.tensors,
                check.verdict.compared,
                check.verdict.mismatches,
            )
            for check in compiled.checks
        ),
        bytes_float=source.size,
        bytes_deployed=compiled.artifact.size,
        weights_float=weight_bytes(context.reference),
        weights_deployed=weight_bytes(compiled.model),
        metrics=_metric_rows(compiled.metrics),
        layers=compiled.sweep.fidelities,
        softmaxes=tuple(context.softmax_rows),
        kernels=compiled.kernels,
        certificate=tuple(
            ProofRow(p.node, p.op_type, p.kind, p.detail) for p in compiled.certificate.proofs
        ),
        passes=tuple(PassRow(r.name, r.rewrites) for r in compiled.records),
        notes=(*(("load", note) for note in source.notes), *context.notes),
        islands=compiled.islands,
        tail=float_tail(compiled.model, compiled.certificate),
        versions=versions(),
        memory=target.memory(compiled.model),
        verified_on=target.verified_on,
        buckets=_bucket_table(compiled),
    )


def build_manifest(compiled: Compiled, target: Target) -> Manifest:
    """Return the manifest of a compilation; the bundle's writer completes it."""
    certificate = compiled.certificate
    calibration = compiled.context.calibration
    assert calibration is not None
    graph = compiled.model.graph
    return Manifest(
        artifact=compiled.artifact.entry,
        target=target.name(),
        recipe=compiled.context.recipe.name,
        inputs=tuple(_tensor_info(value, compiled) for value in graph.inputs),
        outputs=tuple(_tensor_info(value, compiled) for value in graph.outputs),
        bitwise=BitSummary(
            max(check.verdict.tensors for check in compiled.checks),
            sum(check.verdict.compared for check in compiled.checks),
            sum(check.verdict.mismatches for check in compiled.checks),
        ),
        certificate=CertificateSummary(
            certificate.proven,
            tuple(proof.node for proof in certificate.unproven),
            dict(Counter(proof.kind for proof in certificate.proofs)),
            tuple(row.node for row in compiled.islands),
        ),
        samples=SampleInfo(calibration.samples, calibration.digest),
        versions=versions(),
        session_options=target.capabilities.session_options,
        metrics=compiled.metrics,
        evaluation_digest=compiled.evaluation_digest,
        max_dim=compiled.context.max_dim,
    )


def _bucket_table(compiled: Compiled) -> BucketTable | None:
    calibration = compiled.context.calibration
    assert calibration is not None
    if calibration.buckets is None:
        return None
    rows = tuple(
        BucketRow(name, found.buckets)
        for name, found in calibration.statistics.items()
        if name in compiled.context.qparams and found.buckets is not None
    )
    seen = any(any(row.statistics.count) for row in rows)
    return BucketTable(calibration.buckets, rows) if seen else None


def _recipe_text(compiled: Compiled) -> str:
    recipe = compiled.context.recipe
    lines = [
        f"activation: {recipe.activation}",
        f"weight: {recipe.weight}",
        f"prepare: {recipe.prepare}",
        f"quantize: {recipe.quantize}",
    ]
    return "\n".join([*lines, *(str(rule) for rule in recipe.rules)])


def _metric_rows(metrics: Mapping[str, float]) -> tuple[MetricRow, ...]:
    return tuple(
        MetricRow(name, value, metrics.get(f"{name}_float"))
        for name, value in metrics.items()
        if not name.endswith("_float")
    )


def _tensor_info(value: ir.Value, compiled: Compiled) -> TensorInfo:
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    dtype = "float32" if value.dtype is None else value.dtype.numpy().name
    name, tolerance = str(value.name), compiled.sweep.tolerances.get(str(value.name))
    qparams = compiled.context.qparams.get(name)
    if qparams is None or dtype == "float32":
        span = compiled.context.input_ranges.get(name) if value.is_graph_input() else None
        return TensorInfo(name, dtype, shape, tolerance=tolerance, span=span)
    scale, zero_point = float(qparams.scale), int(qparams.zero_point)
    return TensorInfo(name, dtype, shape, scale, zero_point, tolerance)
