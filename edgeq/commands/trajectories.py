"""`edgeq trajectories`: what a diffusion model does on its way from noise to images."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeq.commands.models import check_file, write_file
from edgeq.commands.output import print_json, progress, quiet_stdout, table
from edgeq.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgeq.trajectory import ImageFidelity, TrajectoryComparison

app = typer.Typer(
    help="Follow a diffusion model from noise to images: collect calibration data, compare.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Model = Annotated[
    str, typer.Argument(help="Float model: .onnx file or MODULE:FACTORY", show_default=False)
]
Scheduler = Annotated[
    str,
    typer.Option(
        "--scheduler", help="scheduler_config.json, a class of diffusers, or MODULE:FUNCTION"
    ),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="Inference steps.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the noise.")]
Conditions = Annotated[
    Path | None, typer.Option("--conditions", help=".npz with further inputs, sample axis first.")
]
SampleInput = Annotated[str, typer.Option("--sample-input", help="Takes the noisy images.")]
TimestepInput = Annotated[str, typer.Option("--timestep-input", help="Takes the timestep.")]
Shape = Annotated[
    str | None,
    typer.Option("--shape", help="Of one image, where the model leaves it open: 4x64x64"),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]


@app.command("collect")
def collect(
    model: Model,
    scheduler: Scheduler,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .npz file to write.")],
    steps: Steps = 50,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Feeds to write.")] = 200,
    seed: Seed = 0,
    conditions: Conditions = None,
    sample_input: SampleInput = "sample",
    timestep_input: TimestepInput = "timestep",
    shape: Shape = None,
    force: Force = False,
) -> None:
    """Write calibration data from sampling trajectories, spread evenly over the timesteps."""
    import numpy as np

    from edgeq.diffusion import trajectory_feeds
    from edgeq.golden import npz_bytes

    check_file(output, ".npz", force=force)
    with quiet_stdout():
        feeds = list(
            trajectory_feeds(
                model,
                scheduler,
                samples=samples,
                steps=steps,
                seed=seed,
                shape=_sizes(shape),
                conditions=_arrays(conditions),
                sample=sample_input,
                timestep=timestep_input,
            )
        )
    joined = {n: np.concatenate([np.atleast_1d(feed[n]) for feed in feeds]) for n in feeds[0]}
    write_file(output, npz_bytes(joined))
    print(output)


@app.command("compare")
def compare(
    model: Model,
    bundle: Annotated[str, typer.Argument(help="Bundle, or quantized model.", show_default=False)],
    scheduler: Scheduler,
    steps: Steps = 50,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Images to draw.")] = 64,
    seed: Seed = 0,
    conditions: Conditions = None,
    sample_input: SampleInput = "sample",
    timestep_input: TimestepInput = "timestep",
    shape: Shape = None,
    grid: Annotated[
        Path | None, typer.Option("--grid", help="Write images of both to this .png.")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Put the comparison into the bundle's report.")
    ] = False,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Quiet = False,
) -> None:
    """Draw images with the float and the quantized model from the same noise, and compare them."""
    from edgeq.diffusion import add_to_report, compare_trajectories

    if grid is not None:
        check_file(grid, ".png", force=force)
    if report and not Path(bundle).is_dir():
        raise DataError(f"--report: {bundle} is no bundle's folder")
    with quiet_stdout(), progress(quiet=quiet, verbose=False) as shown:
        found = compare_trajectories(
            model,
            bundle,
            scheduler,
            steps=steps,
            samples=samples,
            seed=seed,
            shape=_sizes(shape),
            conditions=_arrays(conditions),
            sample=sample_input,
            timestep=timestep_input,
            progress=shown,
        )
    if grid is not None:
        if not found.grid:
            raise DataError(f"{grid}: samples of this model are no grey or coloured images")
        write_file(grid, found.png)
    if report:
        add_to_report(bundle, found)
    if as_json:
        entry = dataclasses.asdict(found)
        del entry["grid"]
        print_json(entry)
    else:
        print("\n".join(lines(found)))


def lines(found: "TrajectoryComparison") -> list[str]:
    """Return a comparison as lines for people."""
    head = ["timestep", "SQNR dB", "PSNR dB", "worst"]
    rows = [[f"{step.timestep:g}", *_cells(step.fidelity)] for step in found.path]
    return table([head, *rows, ["images", *_cells(found.end)]])


def _cells(fidelity: "ImageFidelity") -> list[str]:
    sqnr = "exact" if fidelity.sqnr_db is None else f"{fidelity.sqnr_db:.2f}"
    return [sqnr, f"{fidelity.psnr_db:.2f}", f"{fidelity.worst_db:.2f}"]


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise DataError(f"--shape {text!r}: write it as CHANNELSxHEIGHTxWIDTH, for example 3x32x32")
    return tuple(int(part) for part in parts)


def _arrays(path: Path | None) -> "Mapping[str, NDArray[Any]]":
    from edgeq.check_folder import CheckError, read_arrays

    if path is None:
        return {}
    try:
        return read_arrays(path)
    except CheckError as error:
        raise DataError(str(error)) from error
