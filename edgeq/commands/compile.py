"""`edgeq compile`: from a float model to a verified bundle."""

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeq.commands.output import print_json, progress, quiet_stdout
from edgeq.errors import DataError, RecipeError
from edgeq.longest import MAX_DIM
from edgeq.request import CompileOutcome, CompileRequest

Model = Annotated[
    str, typer.Argument(help=".onnx or .pt2 file, or MODULE:FACTORY", show_default=False)
]


def command(
    model: Model,
    target: Annotated[str, typer.Option("--target", help="See `edgeq targets`.")],
    calibration: Annotated[
        str, typer.Option("--calibration", help=".npz file, folder of such, or MODULE:FUNCTION")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The bundle's folder; must not exist.")
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", help="A name of `edgeq recipes`, or a TOML file.")
    ] = "int8",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; may be repeated."),
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--evaluation", help="Data with `label`, for --metric.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="top1, nll, perplexity, psnr, mse, sqnr or MODULE:FUNCTION."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Use the first so many samples.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Source of randomness.")] = 0,
    input_type: Annotated[
        list[str] | None,
        typer.Option("--input-type", metavar="NAME=uint8|float32", help="Feed an input as codes."),
    ] = None,
    output_type: Annotated[
        list[str] | None,
        typer.Option("--output-type", metavar="NAME=uint8|float32", help="Give codes as output."),
    ] = None,
    input_range: Annotated[
        list[str] | None,
        typer.Option("--input-range", metavar="NAME=LOW:HIGH", help="What an integer input takes."),
    ] = None,
    max_dim: Annotated[
        int, typer.Option("--max-dim", min=1, help="The most that an open dimension can be.")
    ] = MAX_DIM,
    keep_float: Annotated[
        list[str] | None,
        typer.Option("--keep-float", metavar="PATTERN", help="Nodes that stay float32."),
    ] = None,
    allow_unproven: Annotated[
        list[str] | None,
        typer.Option("--allow-unproven", metavar="PATTERN", help="Nodes that need no proof."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Processes that share the work.")
    ] = 1,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="ADDRESS", help="A dask scheduler that shares it out."),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="What torch computes on: cpu or cuda.")
    ] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no summary.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Times per stage.")] = False,
) -> None:
    """Quantize, compile and verify a model; write a bundle."""
    if output is None and not dry_run:
        raise DataError("say where the bundle goes: -o DIR (or --dry-run)")
    if evaluation is None and metric is not None:
        raise DataError("--metric needs --evaluation DATA")
    if metric is None and evaluation is not None:
        raise DataError("--evaluation needs --metric NAME")
    request = CompileRequest(
        model=model,
        target=target,
        calibration=calibration,
        recipe=recipe,
        settings={key: toml_value(value) for key, value in pairs("--set", settings).items()},
        evaluation=evaluation,
        metric=metric,
        samples=samples,
        seed=seed,
        input_types=types("--input-type", input_type),
        output_types=types("--output-type", output_type),
        input_ranges=ranges("--input-range", input_range),
        max_dim=max_dim,
        keep_float=tuple(keep_float or ()),
        allow_unproven=tuple(allow_unproven or ()),
        workers=workers,
        cluster=cluster,
        device=device,
        output=output,
        force=force,
        dry_run=dry_run,
    )
    with quiet_stdout(), progress(quiet=quiet, verbose=verbose) as shown:
        from edgeq.compile import compile_model

        outcome = compile_model(request, shown)
    if as_json:
        print_json(outcome.to_json())
        return
    if dry_run or not quiet:
        print("\n".join(describe(outcome)))


def describe(outcome: CompileOutcome) -> list[str]:
    """Return the outcome as lines for people."""
    if outcome.bundle is None:
        return list(outcome.plan)
    ratio = outcome.bytes_float / max(1, outcome.bytes_deployed)
    unproven = f", {outcome.unproven} allowed without" if outcome.unproven else ""
    return [
        f"{outcome.mismatches} of {outcome.compared} elements differ,"
        f" in {outcome.tensors} tensors; {outcome.proven} nodes proven{unproven},"
        f" float islands: {outcome.islands or 'none'}",
        *(f"{name}: {value:.4g}" for name, value in outcome.metrics.items()),
        *([] if outcome.noise is None else [f"noise: {outcome.noise}"]),
        f"size: {outcome.bytes_float} -> {outcome.bytes_deployed} bytes, {ratio:.2f} times smaller",
        *verified_elsewhere(outcome),
        f"report: {outcome.bundle / 'report.html'}",
        f"ok: {outcome.bundle}",
    ]


def verified_elsewhere(outcome: CompileOutcome) -> list[str]:
    """Return what is left to check, where the code cannot run here."""
    if outcome.verified_on is None:
        return []
    return [
        f"verified as compiled for {outcome.verified_on}; on the device or its emulator:"
        f" edgeq check {outcome.bundle} --taps"
    ]


def pairs(option: str, values: list[str] | None) -> dict[str, str]:
    """Return `KEY=VALUE` texts as a mapping.

    Raises:
        RecipeError: One has no `=`, or no key.
    """
    result = {}
    for text in values or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"{option} {text!r}: write it as KEY=VALUE")
        result[key.strip()] = value.strip()
    return result


def types(option: str, values: list[str] | None) -> dict[str, str]:
    """Return `NAME=TYPE` texts as a mapping.

    Raises:
        DataError: A type is neither uint8 nor float32.
    """
    result = {}
    for text in values or ():
        # The last `=`: tensor names may hold one, types do not.
        name, equals, kind = text.rpartition("=")
        if not equals or not name or kind not in ("uint8", "float32"):
            raise DataError(f"{option} {text!r}: write it as NAME=uint8 or NAME=float32")
        result[name] = kind
    return result


def ranges(option: str, values: list[str] | None) -> dict[str, tuple[int, int]]:
    """Return `NAME=LOW:HIGH` texts as a mapping.

    Raises:
        DataError: One is not written so, or LOW is above HIGH.
    """
    result = {}
    for text in values or ():
        name, _, numbers = text.rpartition("=")
        low, _, high = numbers.partition(":")
        try:
            span = int(low), int(high)
        except ValueError:
            span = 1, 0
        if not name or span[0] > span[1]:
            raise DataError(f"{option} {text!r}: write it as NAME=LOW:HIGH, both ends included")
        result[name] = span
    return result


def toml_value(value: str) -> str:
    """Return a value as TOML: a bare word becomes a text, so that no shell has to quote it."""
    plain = value.replace("-", "").replace("_", "")
    word = plain.isalnum() and plain[0].isalpha() and value not in ("true", "false", "inf", "nan")
    return json.dumps(value) if word else value
