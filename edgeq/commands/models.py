"""`edgeq export`, `simulate`, `compare` and `lint`: commands that take a model and no target."""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeq.commands.output import print_json, quiet_stdout, table
from edgeq.errors import BundleError, DataError

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.compare_page import Side

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Inputs = Annotated[Path, typer.Option("--inputs", help=".npz named as the inputs, sample first.")]


def export(
    factory: Annotated[
        str, typer.Argument(help="MODULE:FACTORY, or a .pt2 file", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .onnx file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Export a torch module: FACTORY returns (module, example inputs[, dynamic shapes])."""
    from edgeq.export import export_factory, export_pt2
    from edgeq.model_file import write_model

    check_file(output, ".onnx", force=force)
    with quiet_stdout():
        model = export_pt2(factory) if factory.endswith(".pt2") else export_factory(factory)
    write_model(output, model)
    print(output)


def simulate(
    model: Annotated[str, typer.Argument(help="Model or bundle.", show_default=False)],
    inputs: Inputs,
    output: Annotated[Path, typer.Option("-o", "--output", help="The .npz file to write.")],
    taps: Annotated[
        str | None, typer.Option("--taps", help="`all`, or names separated by commas.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Run a model on the reference simulator; write its outputs, and tensors on request."""
    import numpy as np

    from edgeq.bundle import open_bundle
    from edgeq.data import input_specs, open_samples
    from edgeq.golden import npz_bytes
    from edgeq.opening import open_model
    from edgeq.simulate import Simulator

    check_file(output, ".npz", force=force)
    loaded = open_model(model)
    max_dim = open_bundle(model).manifest.max_dim if Path(model).is_dir() else None
    simulator = Simulator(loaded)
    names = [name for name in (taps or "").split(",") if name]
    found = [
        simulator.run(feeds, "all" if taps == "all" else names)
        for feeds in open_samples(inputs, inputs=input_specs(loaded, max_dim=max_dim))
    ]
    if not found:
        raise DataError(f"{inputs}: holds no samples")
    # Tensors without a sample axis of their own are stacked.
    joined = {n: np.concatenate([np.atleast_1d(run[n]) for run in found]) for n in found[0]}
    write_file(output, npz_bytes(joined))


def compare(
    left: Annotated[str, typer.Argument(metavar="A", help="Model or bundle.", show_default=False)],
    right: Annotated[str, typer.Argument(metavar="B", help="Model or bundle.", show_default=False)],
    inputs: Inputs,
    samples: Annotated[
        int | None, typer.Option("--samples", min=1, help="The first so many samples.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page with charts to this .html.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every tensor that two models share: SQNR, off-by-N, first difference."""
    from edgeq.compare import compare_models
    from edgeq.compare_page import render_comparison
    from edgeq.data import input_specs, open_samples
    from edgeq.opening import open_model

    if html is not None:
        check_file(html, ".html", force=force)
    first, second = open_model(left), open_model(right)
    feeds = open_samples(inputs, inputs=input_specs(first), limit=samples)
    rows = compare_models(first, second, feeds, histograms=html is not None)
    if html is not None:
        sides = side(left, first), side(right, second)
        write_file(html, render_comparison(*sides, rows).encode())
    if as_json:
        tensors = [row.to_json() for row in rows]
        print_json({"a": left, "b": right, "tensors": tensors})
        return
    head = ["tensor", "SQNR dB", "differ", "of", "off by 0", "1", "2", "3", "4+"]
    lines = [
        [
            row.fidelity.name,
            "exact" if row.fidelity.sqnr_db is None else f"{row.fidelity.sqnr_db:.2f}",
            str(row.mismatches),
            str(row.fidelity.elements),
            *(str(n) for n in row.fidelity.off_by or [""] * 5),
        ]
        for row in rows
    ]
    print("\n".join(table([head, *lines])))
    different = next((row.first for row in rows if row.first is not None), None)
    print("no bit differs" if different is None else f"first difference: {different}")


def lint(
    model: Annotated[str, typer.Argument(help="Any QDQ model, or bundle.", show_default=False)],
    fixed: Annotated[
        bool, typer.Option("--fix", help="Write the model by the rules, to -o.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=".onnx file, for --fix.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hold the rules that keep bits the same on every CPU against any QDQ model."""
    from edgeq.bundle import open_bundle
    from edgeq.fix import fix
    from edgeq.graph import to_bytes
    from edgeq.lint import NOTHING_SET, to_text
    from edgeq.lint import lint as find
    from edgeq.longest import MAX_DIM
    from edgeq.opening import open_model
    from edgeq.targeting import Capabilities

    if fixed != (output is not None):
        raise DataError("--fix and -o go together: the model is not changed where it is")
    if output is not None:
        check_file(output, ".onnx", force=force)
    opened, capabilities, max_dim = open_model(model), NOTHING_SET, MAX_DIM
    if Path(model).is_dir():  # what a session option remedies is no finding where it is set
        manifest = open_bundle(model).manifest
        max_dim = manifest.max_dim
        capabilities = Capabilities(session_options=manifest.session_options)
    findings = find(opened, capabilities, max_dim=max_dim)
    entry: dict[str, object] = {"model": model, "findings": [f.as_json() for f in findings]}
    text = to_text(findings) or "no rule is broken"
    if output is not None:
        made = fix(opened, capabilities, max_dim)
        write_file(output, to_bytes(opened))
        done = {record.name: record.rewrites for record in made.records}
        broken, findings = len(findings), made.left
        entry |= {"output": str(output), "rewrites": done}
        entry["left"] = [finding.as_json() for finding in findings]
        passes = ", ".join(f"{name} {count}" for name, count in done.items()) or "none"
        text = f"{to_text(findings, left=True)}\n" if findings else ""
        text += f"{broken} findings, {len(findings)} left; rewrites: {passes}\n{output}"
    if as_json:
        print_json(entry)
    else:
        print(text)
    raise typer.Exit(1 if findings else 0)


def side(name: str, model: "ir.Model") -> "Side":
    """Return what a comparison's page says of a model, and of the bundle that it came from."""
    from edgeq.compare_page import Side
    from edgeq.graph import weight_bytes
    from edgeq.read_report import read_report

    report = None
    if Path(name).is_dir():
        with contextlib.suppress(BundleError):  # one that another edgeq wrote
            report = read_report(Path(name) / "report.json")
    return Side(name, weight_bytes(model), report)


def check_file(path: Path, suffix: str, *, force: bool) -> None:
    """Refuse a file to write early, before any work.

    Raises:
        DataError: It has another ending, no folder, or exists and may not be replaced.
    """
    if path.suffix != suffix:
        raise DataError(f"{path}: name a {suffix} file")
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist: make it first")
    if path.exists() and not (force and path.is_file()):
        raise DataError(f"{path} exists: choose another name, or replace it with --force")


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        BundleError: The disk is full, or the operating system refuses.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
