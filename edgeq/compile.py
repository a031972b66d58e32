"""The main job: float model in, verified bundle out. The one module that knows every stage.

load -> prepare (float passes) -> calibrate -> quantize (passes) -> certify -> verify -> bundle
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgeq.buckets import find_buckets
from edgeq.bundle import check_destination, write_bundle
from edgeq.calibrate import calibrate
from edgeq.certify import certify
from edgeq.checkpoint import Checkpoint, kept_until_whole
from edgeq.compile_report import build_manifest, build_report
from edgeq.compiled import Checked, Compiled
from edgeq.data import input_specs, open_samples
from edgeq.device import check_device
from edgeq.errors import RecipeError
from edgeq.float_islands import float_islands
from edgeq.graph import OPSET, clone, release_mapped
from edgeq.measure import Device, Sweep
from edgeq.noise_sources import NoiseSources, noise_sources
from edgeq.passing import Context, PassRecord, make_pass, parse_steps, run_pipeline
from edgeq.recipe import Recipe, Rule, load_recipe
from edgeq.refusals import check_allowed, fail, refuse_unfused, refuse_unproven
from edgeq.request import CompileOutcome, CompileRequest, Progress, silent
from edgeq.request_names import check_names
from edgeq.roles import is_activation
from edgeq.scores import check_evaluation, check_metric, evaluation_digest, score
from edgeq.source import Source, read_source
from edgeq.stimuli import stimuli
from edgeq.stimulus_feeds import feeds_of_other_sizes, stimulus_inputs
from edgeq.targeting import Artifact, Target, find_target
from edgeq.tolerance import tolerances
from edgeq.versions import versions
from edgeq.workers import open_executor

FLOAT = "ort-cpu"  # what runs the float model, whatever the target
NOISE_SAMPLES = 32  # that tell the noise of weights from that of activations


@dataclass
class Stages:
    """Tells the progress and keeps the time of each stage."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time one stage; a name may come again."""
        self.progress(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed


def compile_model(request: CompileRequest, progress: Progress = silent) -> CompileOutcome:
    """Compile a model into a bundle.

    Raises:
        VerificationError: Bits differ, a proof is missing, or a kernel that should be integer is
            not; the evidence is in `OUTPUT.failed/`.
        EdgeqError: The user must change something; nothing was written.
    """
    if request.output is not None and not request.dry_run:
        check_destination(Path(request.output), force=request.force)
    check_device(request.device)
    destination = None if request.dry_run else request.output
    with (
        kept_until_whole(destination) as checkpoint,
        open_executor(
            request.executor, workers=request.workers, cluster=request.cluster
        ) as executor,
    ):
        return _compile(request, executor, checkpoint, progress)


def _compile(
    request: CompileRequest,
    executor: Executor | None,
    checkpoint: Checkpoint | None,
    progress: Progress,
) -> CompileOutcome:
    stages = Stages(progress)
    target = find_target(request.target)
    source, context, records = _open(request, target, stages)
    context.executor, context.checkpoint = executor, checkpoint
    if request.dry_run:
        return _plan(request, source, context, records)
    compiled = _quantize(request, source, target, context, records, stages)
    return _write(request, compiled, target, stages)


@contextmanager
def open_calibrated(request: CompileRequest, progress: Progress = silent) -> Iterator[Context]:
    """Give what is known of a model in front of the passes that quantize it: nothing is written.

    Raises:
        EdgeqError: The user must change something.
    """
    with open_executor(
        request.executor, workers=request.workers, cluster=request.cluster
    ) as executor:
        stages = Stages(progress)
        _, context, _ = _open(request, find_target(request.target), stages)
        context.executor = executor
        _calibrate(request, context, stages)
        yield context


def _open(
    request: CompileRequest, target: Target, stages: Stages
) -> tuple[Source, Context, list[PassRecord]]:
    """Read the model and run the float passes."""
    recipe = _recipe(request)
    for step in (*parse_steps(recipe.prepare), *parse_steps(recipe.quantize)):
        make_pass(step).check(recipe, target.name(), target.capabilities)
    check_metric(request)
    with stages("load"):
        source = read_source(request.model)
    context, records = _prepare(request, source, target, recipe, stages)
    return source, context, records


def _recipe(request: CompileRequest) -> Recipe:
    if isinstance(request.recipe, Recipe):
        if request.settings:
            raise RecipeError("settings change a recipe that is given by name or file")
        recipe = request.recipe
    else:
        recipe = load_recipe(os.fspath(request.recipe), request.settings)
    return recipe.with_rules([Rule(name=p, keep_float=True) for p in request.keep_float])


def _prepare(
    request: CompileRequest, source: Source, target: Target, recipe: Recipe, stages: Stages
) -> tuple[Context, list[PassRecord]]:
    """Run the float passes; return the context with its samples and the prepared model."""
    model = source.model
    check_names(request, model)
    samples = open_samples(
        request.calibration,
        inputs=input_specs(model, request.input_types, request.input_ranges, request.max_dim),
        limit=request.samples,
    )
    check_evaluation(request, model)
    context = Context(
        recipe=recipe,
        capabilities=target.capabilities,
        samples=samples,
        input_types={k: v for k, v in request.input_types.items() if v != "float32"},
        output_types={k: v for k, v in request.output_types.items() if v != "float32"},
        input_ranges=request.input_ranges,
        max_dim=request.max_dim,
        seed=request.seed,
        progress=stages.progress,
        device=request.device,
    )
    with stages("prepare"):
        records = run_pipeline(recipe.prepare, model, context, stages.progress)
    context.reference = clone(model)
    return context, records


def _plan(
    request: CompileRequest, source: Source, context: Context, records: list[PassRecord]
) -> CompileOutcome:
    assert context.reference is not None
    lines = [f"{r.name}: {r.rewrites} rewrites" for r in records]
    for node in context.reference.graph:
        how = "float32 (keep-float)" if context.keep_float(node) else "quantize"
        lines.append(f"{node.op_type} {node.name}: {how}")
    lines += [step.name for step in parse_steps(context.recipe.quantize)]
    return CompileOutcome(
        bundle=None,
        target=request.target,
        recipe=context.recipe.name,
        bytes_float=source.size,
        versions=versions(),
        plan=tuple(lines),
    )


def _quantize(
    request: CompileRequest,
    source: Source,
    target: Target,
    context: Context,
    records: list[PassRecord],
    stages: Stages,
) -> Compiled:
    model, reference = source.model, context.reference
    assert reference is not None
    _calibrate(request, context, stages)
    with stages("quantize"):
        records += run_pipeline(context.recipe.quantize, model, context, stages.progress)
        model.opset_imports.setdefault("", OPSET)
        model = target.specialize(model, next(iter(context.samples)))
    release_mapped(reference)
    with stages("certify"):
        certificate = certify(model, target.capabilities, context.max_dim)
        check_allowed(request, certificate)
        artifact = target.lower(model)
        refuse_unproven(request, certificate, artifact)
        islands = float_islands(model, certificate, context)
        kernels = target.kernels(model)
        refuse_unfused(request, target, model, kernels, artifact)
    tolerated = tolerances(model, certificate)
    for proof in certificate.unproven:
        text = f"{proof.op_type} {proof.node}: allowed without a proof ({proof.detail})"
        context.notes.append(("certify", f"{text}; what depends on it is compared by a tolerance"))
    taps = target.taps(model)
    device = Device(target, model, taps)
    sweep = Sweep(model, device, context.qparams, tolerated, taps)
    with stages("verify"):
        checks = _verify(request, context, model, sweep, artifact, stages)
    release_mapped(reference)
    with stages("evaluate"):
        metrics = score(request, source, context, sweep, stages.progress)
        noise = _sources_of_noise(context, model, sweep)
        evaluated = evaluation_digest(request)
    return Compiled(
        source, context, model, artifact, tuple(records), certificate, islands, checks, sweep,
        kernels, metrics, evaluated, noise,
    )  # fmt: skip


def _sources_of_noise(context: Context, model: ir.Model, sweep: Sweep) -> NoiseSources | None:
    """Return how much of the noise is that of the weights; not for large models."""
    if not sweep.device.held:
        return None
    assert context.reference is not None
    runner, output = sweep.device.deployed(), sweep.outputs[0]
    qparams = context.qparams.get(sweep.real_names.get(output, ""))

    def deployed(feed: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        found = runner.run(dict(feed))[output]
        return found if qparams is None else qparams.dequantize(found)

    samples = islice(context.samples, NOISE_SAMPLES)
    return noise_sources(context.reference, model, context.float_weights, deployed, samples)


def _calibrate(request: CompileRequest, context: Context, stages: Stages) -> None:
    reference = context.reference
    assert reference is not None
    with stages("calibrate"):
        context.calibration = calibrate(
            reference,
            context.samples,
            activations(reference),
            buckets=find_buckets(input_specs(reference, input_ranges=request.input_ranges)),
            clip_ratios=context.recipe.clip_ratios(),
            progress=stages.progress,
        )


def activations(model: ir.Model) -> list[str]:
    """Return the names of the float32 values of `model` that are computed, inputs included."""
    values = list(model.graph.inputs)
    values += [value for node in model.graph for value in node.outputs]
    return [str(value.name) for value in values if is_activation(value)]


def _verify(
    request: CompileRequest,
    context: Context,
    model: ir.Model,
    sweep: Sweep,
    artifact: Artifact,
    stages: Stages,
) -> tuple[Checked, ...]:
    assert context.reference is not None
    real_names = list(dict.fromkeys(sweep.real_names.values()))
    float_runner = find_target(FLOAT).load(context.reference, threads=2, taps=real_names)
    samples = context.samples
    checks = []
    verdict, count = sweep.verify(
        samples, float_runner, stages.progress, "verify on samples", samples.count
    )
    del float_runner  # it holds weights of its own
    checks.append(Checked("calibration samples", count, verdict))
    inputs = stimulus_inputs(context)
    feeds = list(stimuli(inputs, seed=request.seed))
    verdict, count = sweep.verify(
        feeds, None, stages.progress, "verify on tie-hunting inputs", len(feeds)
    )
    checks.append(Checked("tie-hunting inputs", count, verdict))
    others = []
    if any(not isinstance(d, int) for v in model.graph.inputs for d in v.shape or ("any",)):
        float_runner = find_target(FLOAT).load(context.reference, threads=2)
        others = list(feeds_of_other_sizes(inputs, context, float_runner))
        del float_runner
    if others:
        feeds = [feed for _, found in others for feed in found]
        verdict, count = sweep.verify(
            feeds, None, stages.progress, "verify on other sizes", len(feeds)
        )
        checks.append(Checked(f"inputs of other sizes ({_sizes(others)})", count, verdict))
    for check in checks:
        if not check.verdict.same:
            reason = (
                f"{check.verdict.mismatches} of {check.verdict.compared} elements differ between"
                f" the simulator and the device on {check.feeds}; first: {check.verdict.first}"
            )
            fail(request, artifact, check.verdict, reason)
    return tuple(checks)


def _sizes(others: Iterable[tuple[Mapping[str, int], object]]) -> str:
    """Return what each symbol was: `batch 3, 2; length 17, 3`."""
    found: dict[str, list[str]] = {}
    for sizes, _ in others:
        for symbol, size in sizes.items():
            found.setdefault(symbol, []).append(str(size))
    texts = (f"{symbol} {', '.join(dict.fromkeys(sizes))}" for symbol, sizes in found.items())
    return "; ".join(texts)


def _write(
    request: CompileRequest, compiled: Compiled, target: Target, stages: Stages
) -> CompileOutcome:
    assert request.output is not None
    with stages("bundle"):
        report = build_report(compiled, target)
        manifest = build_manifest(compiled, target)
        bundle = write_bundle(
            request.output,
            artifact=target.complete(
                compiled.model, compiled.artifact, compiled.sweep.golden.runs()
            ),
            manifest=manifest,
            golden=compiled.sweep.golden,
            report=report,
            force=request.force,
        )
    return CompileOutcome(
        bundle=bundle.path,
        target=target.name(),
        recipe=compiled.context.recipe.name,
        tensors=manifest.bitwise.tensors,
        compared=manifest.bitwise.compared,
        mismatches=manifest.bitwise.mismatches,
        proven=manifest.certificate.proven,
        unproven=len(manifest.certificate.unproven),
        islands=len(manifest.certificate.islands),
        metrics=compiled.metrics,
        noise=compiled.noise,
        bytes_float=compiled.source.size,
        bytes_deployed=compiled.artifact.size,
        seconds=dict(stages.seconds),
        versions=versions(),
        verified_on=target.verified_on,
    )
