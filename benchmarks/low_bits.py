"""What do the recipes below 8 bits reach, beside other tools at the same width?

    python -m benchmarks.low_bits [CASE]... [--recipe NAME]... [--keep FOLDER]

Compiles each case of the zoo with each recipe for `ort-cpu`, runs the bundle with ONNX Runtime over
all evaluation data, and compiles the same quantized model for `tvm-x86-64`, whose check program
compares 20 runs. Prints a Markdown table: metric, SQNR of the first output, bytes of the artifact,
elements compared and differing on both, and which noise is left: that of the weights, or that of
the activations. Behind the table, what learning adds to `int8`. The figures of other tools with
4-bit weights and 8-bit activations are read from `peers.toml`; `peer_int4.py` measures them. Exit
status 1 if a bit differs, a proof is missing where integers were promised, or a required value is
not reached.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import edgeq
from benchmarks.accuracy import amount, evaluate, line, pair
from benchmarks.cases import (
    ZOO,
    ExportedCase,
    compile_case,
    export_case,
    load_zoo,
    make_session,
    open_bundle,
)
from benchmarks.devices import Cell, compare, read_case
from benchmarks.peers import Figure, Required, Standing, read_standings
from edgeq.read_report import read_report

CASES = (
    "resnet20-cifar10",
    "mobilenet-v1-075",
    "vit-mnist",
    "opt-shakespeare",
    "ddpm-attn-mnist32",
)
RECIPES = ("int8", "w8a8-learned", "w4a8", "w4a6", "fp4a8", "mixed", "fp8")
LEARNED, GAIN = "w8a8-learned", 1.0  # dB over int8, in the mean of the cases
FLOAT = ("fp8",)  # float kernels: what is not proven is allowed, and TVM refuses them
DEVICE = "tvm-x86-64"
RUNS = 20
HEAD = (
    "case", "recipe", "metric / SQNR (dB)", "bytes", "ort-cpu: differing / compared", "unproven",
    f"{DEVICE}: differing / compared", "noise: weights / activations", "seconds", "required",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What a recipe made of a case.

    Attributes:
        figure: Metric and SQNR of the bundle.
        size: Bytes of the artifact.
        bits: Elements compared and differing in ONNX Runtime, with the nodes without a proof.
        compiled: The same on the device; None where the recipe is not for it.
        noise: Which noise is left.
        seconds: Time of compiling.
        misses: What is not as it must be.
    """

    figure: Figure
    size: int
    bits: tuple[int, int, int]
    compiled: Cell | None
    noise: str
    seconds: float
    misses: tuple[str, ...]


def measure(case: ExportedCase, standing: Standing, recipe: str, folder: Path) -> Result:
    """Compile `case` into `folder`, unless it lies there, and measure the bundle.

    Raises:
        EdgeqError: There is no bundle.
    """
    start = time.perf_counter()
    if not folder.exists():
        compile_case(case, standing, recipe, folder, ("*",) if recipe in FLOAT else ())
    seconds = time.perf_counter() - start
    bundle = open_bundle(folder)
    figure, _ = evaluate(case, make_session(bundle.artifact, bundle.session_options, threads=2))
    required = standing.required.get(recipe, Required())
    value = case.zoo.float_value if case.metric != "sqnr" else None
    misses = required.misses(figure, value, standing.higher_is_better)
    if bundle.mismatches or not bundle.compared:
        misses.append(f"{bundle.mismatches} of {bundle.compared} elements differ")
    if bundle.unproven and recipe not in FLOAT:
        misses.append(f"{bundle.unproven} nodes unproven")
    cell = None if recipe in FLOAT else on_device(case, folder)
    if cell is not None and (cell.differing or not cell.compared):
        misses.append(f"{cell.differing} of {cell.compared} elements differ on {DEVICE}")
    return Result(
        figure,
        bundle.artifact.stat().st_size,
        (bundle.mismatches, bundle.compared, bundle.unproven),
        cell,
        noise_left(folder),
        seconds,
        tuple(misses),
    )


def noise_left(bundle: Path) -> str:
    """Return the shares of the noise that weights and activations make, from the report.

    Rounding that was learned against the noise of activations takes part of it out: then that of
    the weights alone is more than all that is left.
    """
    noise = read_report(bundle / "report.json").noise
    if noise is None or noise.share is None:
        return "-"
    return f"{noise.share:.0%} / {max(0.0, 1 - noise.share):.0%}"


def on_device(case: ExportedCase, bundle: Path) -> Cell:
    """Compile the bundle's quantized model for the device, and compare there."""
    samples = list(islice(case.calibration_feeds(), RUNS))
    with tempfile.TemporaryDirectory() as scratch:
        return compare(read_case(bundle, samples, RUNS), DEVICE, Path(scratch) / "device")


def row(standing: Standing, recipe: str, result: Result) -> list[str]:
    """Return the cells of a line."""
    differing, compared, unproven = result.bits
    cell = result.compiled
    return [
        standing.name,
        f"`{recipe}`",
        pair(result.figure, standing),
        f"{result.size:,}",
        f"{differing} / {compared:,}",
        f"{unproven}",
        "-" if cell is None else f"{cell.differing} / {cell.compared:,}",
        result.noise,
        f"{result.seconds:.0f}",
        "; ".join(result.misses) or "reached",
    ]


def behind_peers(standing: Standing, recipe: str, figure: Figure) -> list[str]:
    """Return in what a tool at the same width is better than edgeq's `w4a8`."""
    found = []
    for name, peer in standing.peers_int4.items() if recipe == "w4a8" else ():
        bound = Required(peer.metric, peer.sqnr_db)
        found += [
            f"{name}: {text}" for text in bound.misses(figure, None, standing.higher_is_better)
        ]
    return found


def peer_rows(standing: Standing) -> list[list[str]]:
    """Return the lines of the other tools, and of the float model."""
    rows = []
    for name, figure in standing.peers_int4.items():
        rows.append([standing.name, name, pair(figure, standing), *["-"] * (len(HEAD) - 3)])
    for name, reason in standing.failed_int4.items():
        rows.append([standing.name, name, reason, *["-"] * (len(HEAD) - 3)])
    return rows


def run_case(
    case: ExportedCase, standing: Standing, recipes: Sequence[str], folder: Path, again: bool
) -> tuple[int, float | None]:
    """Print the lines of a case.

    Returns:
        How many of its requirements were missed, and how many dB learning adds to `int8`.
    """
    blank = ["-"] * (len(HEAD) - 3)
    value = amount(case.zoo.float_value, standing.unit, standing.decimals)
    print(line([standing.name, "float", value, f"{case.model.stat().st_size:,}", *blank[1:]]))
    for cells in peer_rows(standing):
        print(line(cells), flush=True)
    missed, decibels = 0, dict[str, float | None]()
    for recipe in recipes:
        bundle = folder / recipe
        if again:
            shutil.rmtree(bundle, ignore_errors=True)
        try:
            result = measure(case, standing, recipe, bundle)
        except edgeq.EdgeqError as error:  # the other recipes are measured all the same
            missed += 1
            text = f"{error}".replace("\n", " ").replace("|", "\\|")
            print(line([standing.name, f"`{recipe}`", *blank, text]), flush=True)
            continue
        behind = behind_peers(standing, recipe, result.figure)
        decibels[recipe] = result.figure.sqnr_db
        cells = row(standing, recipe, result)
        if behind:
            cells[-1] = "; ".join([*result.misses, *behind])
        missed += len(result.misses) + len(behind)
        print(line(cells), flush=True)
    learned, plain = decibels.get(LEARNED), decibels.get("int8")
    return missed, None if learned is None or plain is None else learned - plain


def gain_is_enough(gains: Mapping[str, float]) -> bool:
    """Print what learning adds to `int8`, by case; whether that is as much as is required."""
    mean, least = sum(gains.values()) / len(gains), min(gains.values())
    each = ", ".join(f"{name} {gain:+.2f}" for name, gain in gains.items())
    print(f"\n`{LEARNED}` over `int8`, in dB: {each}; mean {mean:+.2f}", end="")
    print(f" (required: {GAIN:+.2f}, and none below 0)")
    return mean >= GAIN and least >= 0


def main() -> int:
    """Print the table; return the exit status."""
    standings = read_standings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help=f"default: {' '.join(CASES)}")
    parser.add_argument("--recipe", action="append", help=f"default: {' '.join(RECIPES)}")
    parser.add_argument("--zoo", type=Path, default=ZOO)
    parser.add_argument("--keep", type=Path, help="keep bundles here, and take those that lie here")
    given = parser.parse_args()
    unknown = set(given.cases) - set(standings)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; known: {', '.join(standings)}")
    zoo, missed, gains = load_zoo(given.zoo), 0, dict[str, float]()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="edgeq-low-bits-"))
    print(f"{line(list(HEAD))}\n{line(['---'] * len(HEAD))}", flush=True)
    try:
        for name in given.cases or CASES:
            case = export_case(zoo, name, folder / name)
            recipes = given.recipe or RECIPES
            misses, gain = run_case(
                case, standings[name], recipes, folder / name, given.keep is None
            )
            missed += misses
            gains |= {} if gain is None else {name: gain}
    finally:
        if given.keep is None:
            shutil.rmtree(folder)
    if gains and not gain_is_enough(gains):
        missed += 1
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
