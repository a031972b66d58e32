"""The verbs of the command line, in Python: compile, check, simulate, export."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeq.bundle import Bundle, open_bundle
from edgeq.bundle_check import check_bundle
from edgeq.check import CheckResult
from edgeq.longest import MAX_DIM
from edgeq.recipe import Recipe
from edgeq.request import CompileRequest, Progress, silent

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from edgeq.bit_sensitivity import Sensitivity

PathLike = str | os.PathLike[str]


def compile(
    model: object,
    *,
    target: str = "ort-cpu",
    calibration: object,
    recipe: PathLike | Recipe = "int8",
    output: PathLike | None = None,
    settings: Mapping[str, str] | None = None,
    evaluation: object | None = None,
    metric: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    input_types: Mapping[str, str] | None = None,
    output_types: Mapping[str, str] | None = None,
    input_ranges: Mapping[str, tuple[int, int]] | None = None,
    max_dim: int = MAX_DIM,
    keep_float: Sequence[str] = (),
    allow_unproven: Sequence[str] = (),
    executor: Executor | None = None,
    workers: int = 1,
    cluster: str | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Quantize a model, compile it, verify its bits, and write the bundle.

    Arguments are the attributes of `edgeq.request.CompileRequest`. Without `output` the bundle is
    written to a new folder below the system's folder for temporary files, `edgeq-*/bundle`, which
    stays until someone removes it.

    `workers` are started anew and import the caller's main module: a script that asks for them
    keeps its own work below `if __name__ == "__main__"`.

    Raises:
        VerificationError: A bit differs, or a proof or a limit is missing; nothing was written
            but the evidence, in `OUTPUT.failed/`.
        EdgeqError: Something has to be changed; the message says what.
    """
    from edgeq.compile import compile_model

    made = output is None
    destination = (
        Path(tempfile.mkdtemp(prefix="edgeq-"), "bundle") if output is None else Path(output)
    )
    request = CompileRequest(
        model=model,
        target=target,
        calibration=calibration,
        recipe=recipe,
        settings=settings or {},
        evaluation=evaluation,
        metric=metric,
        samples=samples,
        seed=seed,
        input_types=input_types or {},
        output_types=output_types or {},
        input_ranges=input_ranges or {},
        max_dim=max_dim,
        keep_float=tuple(keep_float),
        allow_unproven=tuple(allow_unproven),
        executor=executor,
        workers=workers,
        cluster=cluster,
        device=device,
        output=destination,
        force=force,
    )
    try:
        compile_model(request, progress)
    finally:
        if made:
            with suppress(OSError):  # not empty: it holds the bundle, or the evidence
                destination.parent.rmdir()
    return open_bundle(destination)


def check(
    bundle: Bundle | PathLike,
    *,
    taps: bool = False,
    evaluation: PathLike | None = None,
    metric: str | None = None,
    threads: int = 1,
    repeat: int | None = None,
    runs: int | None = None,
    any_version: bool = False,
    any_cpu: bool = False,
    runner: str | None = None,
    ssh: str | None = None,
    python: str | None = None,
) -> CheckResult:
    """Verify a bundle, here or over `ssh`; `result.raise_for_mismatch()` raises unless it holds.

    Arguments are those of `edgeq.bundle_check.check_bundle`.

    Raises:
        BundleError: The folder is no bundle, a version was not tested, or data do not fit.
    """
    return check_bundle(
        bundle.path if isinstance(bundle, Bundle) else bundle,
        taps=taps,
        evaluation=evaluation,
        metric=metric,
        threads=threads,
        repeat=repeat,
        runs=runs,
        any_version=any_version,
        any_cpu=any_cpu,
        runner=runner,
        ssh=ssh,
        python=python,
    )


def sensitivity(
    model: object,
    *,
    calibration: object,
    recipe: PathLike | Recipe = "int8",
    target: str = "ort-cpu",
    settings: Mapping[str, str] | None = None,
    samples: int | None = None,
    input_ranges: Mapping[str, tuple[int, int]] | None = None,
    max_dim: int = MAX_DIM,
    keep_float: Sequence[str] = (),
    executor: Executor | None = None,
    workers: int = 1,
    cluster: str | None = None,
    progress: Progress = silent,
) -> "Sensitivity":
    """Quantize one layer at a time, and rank the layers by what that does to the outputs.

    Arguments are those of `edgeq.request.CompileRequest`.

    Raises:
        EdgeqError: The user must change something.
    """
    from edgeq.bit_sensitivity import sensitivity as rank

    request = CompileRequest(
        model=model,
        target=target,
        calibration=calibration,
        recipe=recipe,
        settings=settings or {},
        samples=samples,
        input_ranges=input_ranges or {},
        max_dim=max_dim,
        keep_float=tuple(keep_float),
        executor=executor,
        workers=workers,
        cluster=cluster,
        dry_run=True,
    )
    return rank(request, progress)


def simulate(
    model: object,
    feeds: "Mapping[str, NDArray[Any]]",
    taps: Sequence[str] | Literal["all"] = (),
) -> "dict[str, NDArray[Any]]":
    """Run a model, a file or a bundle on the reference simulator.

    Args:
        model: A `Bundle`, or anything that `edgeq.opening.open_model` takes.
        feeds: Inputs by name, with the batch axis.
        taps: Names of further tensors to return, or `all`.

    Raises:
        EdgeqError: The model or the feeds do not fit.
    """
    from edgeq.opening import open_model
    from edgeq.simulate import Simulator

    if isinstance(model, str | os.PathLike) and Path(model).is_dir():
        model = open_bundle(model)
    if isinstance(model, Bundle):
        model.check_sizes(feeds)
    source = model.path if isinstance(model, Bundle) else model
    return Simulator(open_model(source)).run(feeds, taps)


def export(
    module: object, example_inputs: object, dynamic_shapes: object | None = None
) -> "ir.Model":
    """Export a torch module to ONNX and hold it against torch on the example inputs.

    Raises:
        EdgeqError: torch is not installed, or the export fails or gives other results.
    """
    from edgeq.export import export as export_module

    return export_module(module, example_inputs, dynamic_shapes)
