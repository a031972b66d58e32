"""What a compilation found, put into the report and the manifest."""

import dataclasses
import inspect
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
from edgeq.metrics import find_metric
from edgeq.noise_sources import NoiseSources
from edgeq.operator_rows import operator_rows
from edgeq.passing import find_pass, parse_steps
from edgeq.report import (
    BucketRow,
    BucketTable,
    MetricRow,
    NoiseRow,
    PassRow,
    Report,
    VerdictRow,
    alike,
    worst_first,
)
from edgeq.targeting import Target
from edgeq.value_histogram import ValueHistogram, value_histogram
from edgeq.versions import versions

HISTOGRAMS = 12  # in a report, at most


def build_report(compiled: Compiled, target: Target) -> Report:
    """Return the report of a compilation."""
    context, source = compiled.context, compiled.source
    assert context.reference is not None
    tail = float_tail(compiled.model, compiled.certificate)
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
        noise=_noise_row(compiled.noise),
        layers=compiled.sweep.fidelities,
        histograms=_worst_histograms(compiled),
        softmaxes=tuple(context.softmax_rows),
        bits=tuple(context.bit_choices),
        kernels=compiled.kernels,
        operators=operator_rows(
            compiled.model,
            compiled.certificate,
            target.placement(compiled.model),
            (*tail, *compiled.islands),
        ),
        passes=_pass_rows(compiled),
        notes=(*(("load", note) for note in source.notes), *context.notes),
        islands=compiled.islands,
        tail=tail,
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


def _noise_row(found: NoiseSources | None) -> NoiseRow | None:
    return None if found is None else NoiseRow(found.weights_db, found.share, found.samples)


def _worst_histograms(compiled: Compiled) -> tuple[ValueHistogram, ...]:
    """Return the histograms of the worst tensors that have codes of one range, worst first."""
    calibration, qparams = compiled.context.calibration, compiled.context.qparams
    assert calibration is not None
    found: dict[str, ValueHistogram] = {}
    codes = compiled.sweep.codes
    for layer, *_ in alike(worst_first(compiled.sweep.fidelities)):
        name = layer.name
        seen, chosen = calibration.statistics.get(name), qparams.get(name)
        if seen is None or chosen is None or chosen.axis is not None or name not in codes:
            continue
        if seen.count and len(found) < HISTOGRAMS and name not in found:
            span = seen.low, seen.high
            found[name] = value_histogram(name, seen.histogram, span, codes[name], chosen)
    return tuple(found.values())


def _pass_rows(compiled: Compiled) -> tuple[PassRow, ...]:
    """Return what each pass did; its notes are those that name it as their subject."""
    notes: dict[str, list[str]] = {}
    for subject, text in compiled.context.notes:
        notes.setdefault(subject, []).append(text)
    rows = []
    for record in compiled.records:
        (step,) = parse_steps(record.name)
        said = tuple(notes.pop(step.name, ()))  # once, where a pass runs twice
        rows.append(PassRow(record.name, record.rewrites, said, _summary(step.name)))
    return tuple(rows)


def _summary(name: str) -> str:
    """Return the first line of what a pass says about itself."""
    return (inspect.getdoc(inspect.getmodule(find_pass(name))) or "").partition("\n")[0]


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
    """Return the settings much as a recipe's file has them."""
    recipe = compiled.context.recipe
    lines = [f"prepare = {recipe.prepare}", f"quantize = {recipe.quantize}"]
    for name, spec in (("activation", recipe.activation), ("weight", recipe.weight)):
        settings = ((item.name, getattr(spec, item.name)) for item in dataclasses.fields(spec))
        lines += [f"[{name}]", *(f"{key} = {value}" for key, value in settings)]
    return "\n".join([*lines, *(str(rule) for rule in recipe.rules)])


def _metric_rows(metrics: Mapping[str, float]) -> tuple[MetricRow, ...]:
    return tuple(
        MetricRow(name, value, metrics.get(f"{name}_float"), _higher_is_better(name, metrics))
        for name, value in metrics.items()
        if not name.endswith("_float")
    )


def _higher_is_better(name: str, metrics: Mapping[str, float]) -> bool:
    """Return what a metric says; figures that are none have no float counterpart."""
    return f"{name}_float" not in metrics or find_metric(name).higher_is_better


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
