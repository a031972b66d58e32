"""What `compile` is asked for and what it answers; the commands and the pipeline agree on it."""

import math
import os
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from edgeq.longest import MAX_DIM
from edgeq.recipe import Recipe

if TYPE_CHECKING:  # it loads a runtime, which commands that need none do not wait for
    from edgeq.noise_sources import NoiseSources

Json = Mapping[str, object]


class Progress(Protocol):
    """Told what is being done; called from one thread."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        """Say that `stage` runs, and how many of its `total` steps are `done`.

        Args:
            stage: A few words: `calibrate`, `verify on samples`.
            done: Steps finished.
            total: All steps; None where they cannot be counted.
        """


def silent(stage: str, done: int = 0, total: int | None = None) -> None:
    """Take no notice: the progress of library calls."""


@dataclass(frozen=True, kw_only=True)
class CompileRequest:
    """Everything that the user asked `compile` for.

    Attributes:
        model: `.onnx` or `.pt2` path, `MODULE:FACTORY`, an `onnx_ir.Model`, or an
            `onnx.ModelProto`.
        target: Name of the target.
        calibration: `.npz` path, folder of such, `MODULE:FUNCTION`, an iterable of feeds, or an
            object with `get_next()`.
        recipe: A built-in name, the path of a TOML file, or a recipe.
        settings: Recipe keys to change: `{"activation.observer": "minmax"}`; values are TOML.
        evaluation: Data with `label` for `metric`; like `calibration`.
        metric: `top1`, `nll`, `perplexity`, `psnr`, `mse`, `sqnr` or `MODULE:FUNCTION`.
        samples: Use and verify on the first so many calibration samples; None: on all.
        seed: The only source of randomness.
        input_types: Graph inputs to feed as codes: name to `uint8` or `float32`.
        output_types: Graph outputs to give as codes: name to `uint8` or `float32`.
        input_ranges: The least and the greatest value of integer inputs, by name.
        max_dim: The most that a dimension which the model leaves open can be at run time.
        keep_float: Patterns over node names whose nodes stay float32.
        allow_unproven: Patterns over node names that need no proof.
        executor: What computes independent tasks; None: `workers` or `cluster` say it.
        workers: Processes on this machine that share them; 1: this process alone.
        cluster: Address of a dask.distributed scheduler whose workers share them.
        device: What torch computes on: `cpu` or `cuda`.
        output: The bundle's folder; None only with `dry_run`.
        force: Replace a bundle that is there.
        dry_run: Say what would be done, and write nothing.
    """

    model: object
    target: str
    calibration: object
    recipe: str | os.PathLike[str] | Recipe = "int8"
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    evaluation: object | None = None
    metric: str | None = None
    samples: int | None = None
    seed: int = 0
    input_types: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    output_types: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    input_ranges: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    max_dim: int = MAX_DIM
    keep_float: tuple[str, ...] = ()
    allow_unproven: tuple[str, ...] = ()
    executor: Executor | None = None
    workers: int = 1
    cluster: str | None = None
    device: str = "cpu"
    output: Path | None = None
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class CompileOutcome:
    """What a compilation came to.

    Attributes:
        bundle: The bundle's folder; None after a dry run.
        target: Name of the target.
        recipe: Name of the recipe.
        tensors: Tensors compared.
        compared: Elements compared.
        mismatches: Elements whose bits differ.
        proven: Nodes with a proof.
        unproven: Nodes that the user allowed to have none.
        islands: Nodes that compute in float32 outside of codes and exact forms.
        metrics: Figures by name: `sqnr_db`, `top1`, `top1_float`, ...
        noise: Whether the noise that is left is that of the weights; None: not measured.
        bytes_float: Size of the float model's weights and graph, in bytes.
        bytes_deployed: Size of the artifact, in bytes.
        seconds: Time per stage.
        versions: Of edgeq and the packages that the bits depend on.
        verified_on: The machine that a device's code was compiled for to verify it, if another.
        plan: Lines that a dry run prints: what would be done to which node.
    """

    bundle: Path | None
    target: str
    recipe: str
    tensors: int = 0
    compared: int = 0
    mismatches: int = 0
    proven: int = 0
    unproven: int = 0
    islands: int = 0
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    noise: "NoiseSources | None" = None
    bytes_float: int = 0
    bytes_deployed: int = 0
    seconds: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    versions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    verified_on: str | None = None
    plan: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """Return the object that `compile --json` prints."""
        summary: dict[str, object] = {
            "bundle": None if self.bundle is None else str(self.bundle),
            "target": self.target,
            "recipe": self.recipe,
            "bitwise": {
                "tensors": self.tensors,
                "compared": self.compared,
                "mismatches": self.mismatches,
            },
            "certificate": {
                "proven": self.proven,
                "unproven": self.unproven,
                "float_islands": self.islands,
            },
            "metrics": {n: v if math.isfinite(v) else None for n, v in self.metrics.items()},
            "bytes": {"float": self.bytes_float, "deployed": self.bytes_deployed},
            "seconds": {stage: round(value, 3) for stage, value in self.seconds.items()},
            "versions": dict(self.versions),
        }
        if self.noise is not None:
            summary["noise"] = self.noise.to_json()
        if self.plan:
            summary["plan"] = list(self.plan)
        if self.verified_on is not None:
            summary["verified_on"] = self.verified_on
        return summary
