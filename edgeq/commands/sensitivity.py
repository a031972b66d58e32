"""`edgeq sensitivity`: which layers lose most, and the rules that would spare them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeq.commands.compile import Model, pairs, ranges, toml_value
from edgeq.commands.models import check_file
from edgeq.commands.output import print_json, progress, quiet_stdout, table
from edgeq.longest import MAX_DIM
from edgeq.request import CompileRequest

if TYPE_CHECKING:
    from edgeq.bit_sensitivity import Sensitivity


def command(
    model: Model,
    calibration: Annotated[
        str, typer.Option("--calibration", help=".npz file, folder of such, or MODULE:FUNCTION")
    ],
    recipe: Annotated[
        str, typer.Option("--recipe", help="A name of `edgeq recipes`, or a TOML file.")
    ] = "int8",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe; may be repeated."),
    ] = None,
    target: Annotated[str, typer.Option("--target", help="See `edgeq targets`.")] = "ort-cpu",
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="Use the first so many samples.")
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
    worst: Annotated[
        int, typer.Option("--worst", min=0, help="Write rules for so many layers.")
    ] = 3,
    latencies: Annotated[
        Path | None,
        typer.Option("--latencies", help="Time the layers too, and write what they take here."),
    ] = None,
    weights: Annotated[
        str, typer.Option("--weights", help="Formats of weights to time.")
    ] = "int4|int8",
    activations: Annotated[
        str, typer.Option("--activations", help="Formats of what layers read to time.")
    ] = "uint8",
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", min=1, help="Processes that share the work.")
    ] = 1,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="ADDRESS", help="A dask scheduler that shares it out."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Quantize one layer at a time, and rank the layers by what that does to the outputs."""
    request = CompileRequest(
        model=model,
        target=target,
        calibration=calibration,
        recipe=recipe,
        settings={key: toml_value(value) for key, value in pairs("--set", settings).items()},
        samples=samples,
        input_ranges=ranges("--input-range", input_range),
        max_dim=max_dim,
        keep_float=tuple(keep_float or ()),
        workers=workers,
        cluster=cluster,
        dry_run=True,
    )
    if latencies is not None:
        check_file(latencies, ".json", force=force)
    with quiet_stdout(), progress(quiet=quiet, verbose=False) as shown:
        from edgeq.bit_sensitivity import Timing, sensitivity

        timing = None
        if latencies is not None:
            timing = Timing(latencies, _formats(weights), _formats(activations))
        found = sensitivity(request, shown, timing)
    if as_json:
        print_json({"model": model, **found.to_json(worst)})
    else:
        print("\n".join(lines(found, worst)))


def _formats(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split("|") if name.strip())


def lines(found: "Sensitivity", worst: int) -> list[str]:
    """Return a ranking as lines for people."""
    from edgeq.bit_sensitivity import decibels

    head = ["layer", "op", "weights", "reads", "SQNR dB", "of weights", "of what it reads"]
    rows = [
        [
            row.layer,
            row.op_type,
            row.weight,
            row.activation,
            f"{decibels(row.noise):.2f}",
            f"{decibels(row.weight_noise):.2f}",
            f"{decibels(row.activation_noise):.2f}" if row.activation else "",
        ]
        for row in found.layers
    ]
    result = table([head, *rows])
    result.append(f"all of them, if their noise adds up: {found.sqnr_db:.2f} dB")
    if worst and found.layers:
        left = decibels(sum(row.noise for row in found.layers[worst:]))
        result += [f"without the worst {min(worst, len(rows))}: {left:.2f} dB; in a recipe:", ""]
        result += found.rules(worst).rstrip().splitlines()
    return result
