"""`edgeq check`: verify a bundle on this machine, or on another."""

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeq.errors import DataError


def command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder; with --as, any QDQ model.")],
    cpu: Annotated[
        str | None,
        typer.Option("--as", metavar="CPU", help="Predict what another CPU would compute."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option("--inputs", help=".npz, for --as on a model.")
    ] = None,
    taps: Annotated[bool, typer.Option("--taps", help="Compare every quantized tensor.")] = False,
    evaluation: Annotated[
        Path | None, typer.Option("--evaluation", help=".npz with inputs and `label`.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="top1, nll, perplexity, psnr or mse, for --evaluation."),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="For the latency.")] = 1,
    repeat: Annotated[
        int | None, typer.Option("--repeat", min=1, help="Timed runs (default: half a second).")
    ] = None,
    runs: Annotated[
        int | None, typer.Option("--runs", min=1, help="Golden inputs to compare (default: all).")
    ] = None,
    any_version: Annotated[
        bool, typer.Option("--any-version", help="Allow an untested onnxruntime.")
    ] = False,
    any_cpu: Annotated[bool, typer.Option("--any-cpu", help="Compare on any kind of CPU.")] = False,
    runner: Annotated[
        str | None,
        typer.Option("--runner", metavar='"CMD {}"', help="What runs the check elsewhere."),
    ] = None,
    ssh: Annotated[
        str | None, typer.Option("--ssh", metavar="HOST", help="Run the check there.")
    ] = None,
    python: Annotated[
        str | None, typer.Option("--python", help="The one there, for --ssh (default python3).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verify a bundle, here or elsewhere: same files, same bits, how accurate, how fast."""
    if cpu is not None:
        from edgeq.predicted_check import predict_check

        found = predict_check(bundle, cpu, inputs=inputs, runs=runs)
        print(json.dumps(found.to_json()) if as_json else "\n".join(found.lines()))
        raise typer.Exit(found.exit_status)
    if inputs is not None:
        raise DataError("--inputs goes with --as: a bundle has golden inputs of its own")
    from edgeq.bundle_check import check_bundle
    from edgeq.check import report

    result = check_bundle(
        bundle,
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
    raise typer.Exit(report(result, as_json))
