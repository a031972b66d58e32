"""The manifest of a bundle, typed: what `manifest.json` holds and in which words."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgeq.check_folder import SCHEMA_VERSION, UNSEALED, CheckError, read_manifest, seal
from edgeq.errors import BundleError
from edgeq.longest import MAX_DIM
from edgeq.request import Json

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of the artifact.

    Attributes:
        name: As in the user's model.
        dtype: numpy's name of what is fed or returned.
        shape: Sizes; a text or None where one is symbolic; None where the rank is unknown.
        scale: Where the values are codes: `real = (code - zero_point) * scale`.
        zero_point: See `scale`.
        tolerance: How far an output may be from the golden one, root mean square over root mean
            square, because it depends on nodes without a proof; None: not by a bit.
        span: The least and the greatest integer that may be fed, where the user said so.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None
    scale: float | None = None
    zero_point: int | None = None
    tolerance: float | None = None
    span: tuple[int, int] | None = None

    def to_json(self) -> Json:
        """Return the entry of the manifest."""
        shape = None if self.shape is None else list(self.shape)
        entry: dict[str, object] = {"name": self.name, "dtype": self.dtype, "shape": shape}
        if self.scale is not None:
            entry |= {"scale": self.scale, "zero_point": self.zero_point}
        if self.tolerance is not None:
            entry["tolerance"] = self.tolerance
        if self.span is not None:
            entry["range"] = list(self.span)
        return entry


@dataclass(frozen=True)
class TapInfo:
    """A quantized tensor whose digests are golden."""

    name: str
    dtype: str


@dataclass(frozen=True)
class VersionRange:
    """The versions of a runtime that a bundle was tested for: `at_least <= version < below`."""

    name: str = "onnxruntime"
    at_least: str = "1.31"
    below: str = "1.32"

    @classmethod
    def of(cls, version: str) -> "VersionRange":
        """Return the range of the releases that differ from `version` in the patch only.

        >>> VersionRange.of("1.31.1")
        VersionRange(name='onnxruntime', at_least='1.31', below='1.32')
        """
        major, minor = version.split(".")[:2]
        return cls(at_least=f"{major}.{minor}", below=f"{major}.{int(minor) + 1}")


@dataclass(frozen=True)
class CertificateSummary:
    """The proofs of the nodes, and what computes in float32.

    Attributes:
        proven: How many nodes have a proof.
        unproven: Those that need none by the user's word.
        kinds: How many proofs of each kind there are.
        islands: The nodes that compute in float32 outside of codes and exact forms.
    """

    proven: int
    unproven: tuple[str, ...] = ()
    kinds: Mapping[str, int] = field(default_factory=lambda: NOTHING)
    islands: tuple[str, ...] = ()


@dataclass(frozen=True)
class BitSummary:
    """What the host compared before it wrote the bundle: tensors, elements, differing elements."""

    tensors: int
    compared: int
    mismatches: int


@dataclass(frozen=True)
class SampleInfo:
    """The calibration samples: how many, and their sha256."""

    count: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle says about itself.

    Attributes:
        artifact: Path of the file that the runtime opens.
        target: Name of the target.
        recipe: Name of the recipe.
        inputs: Of the artifact, in its order.
        outputs: Likewise.
        bitwise: The host's verdict.
        certificate: The host's proofs.
        samples: What was calibrated with.
        versions: Of edgeq and of the packages that the bits depend on.
        runtime: The tested range of the runtime.
        session_options: onnxruntime's own keys.
        metrics: The host's figures: `sqnr_db`, `top1`, `top1_float`, ...
        evaluation_digest: sha256 of the evaluation file that `metrics` were measured on, if any.
        files: sha256 of every other file of the bundle, by path.
        max_dim: The most that a dimension which the model leaves open can be: bits are proven up to
            there.
        taps: The quantized tensors that `check --taps` compares.
        feeds: Number of golden runs.
        scalars: Golden inputs and outputs without any axis.
    """

    artifact: str
    target: str
    recipe: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    bitwise: BitSummary
    certificate: CertificateSummary
    samples: SampleInfo
    versions: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    runtime: VersionRange = VersionRange()
    session_options: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    metrics: Mapping[str, float] = field(default_factory=lambda: NOTHING)
    evaluation_digest: str | None = None
    files: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    max_dim: int = MAX_DIM
    taps: tuple[TapInfo, ...] = ()
    feeds: int = 0
    scalars: tuple[str, ...] = ()

    def to_text(self) -> str:
        """Return the JSON text: the same for the same manifest."""
        bits, proofs = self.bitwise, self.certificate
        entry: dict[str, object] = {
            "schema_version": SCHEMA_VERSION,
            "artifact": self.artifact,
            "target": self.target,
            "recipe": self.recipe,
            "versions": dict(sorted(self.versions.items())),
            "runtime": vars(self.runtime),
            "session_options": dict(sorted(self.session_options.items())),
            "inputs": [item.to_json() for item in self.inputs],
            "outputs": [item.to_json() for item in self.outputs],
            "bitwise": vars(bits),
            "certificate": {
                "proven": proofs.proven,
                "unproven": list(proofs.unproven),
                "kinds": dict(sorted(proofs.kinds.items())),
                "float_islands": list(proofs.islands),
            },
            "max_dim": self.max_dim,
            "samples": vars(self.samples),
            "metrics": {n: v if math.isfinite(v) else None for n, v in self.metrics.items()},
            "evaluation_digest": self.evaluation_digest,
            "golden": {"feeds": self.feeds, "scalars": list(self.scalars)},
            "taps": [vars(tap) for tap in self.taps],
            "files": dict(sorted(self.files.items())),
            "sha256": UNSEALED,
        }
        return seal(json.dumps(entry, indent=2, ensure_ascii=True) + "\n")


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle.

    Raises:
        BundleError: There is none, or it is not valid; the message names the file.
    """
    try:
        entry = read_manifest(folder)
        golden = entry["golden"]
        certificate = entry["certificate"]
        return Manifest(
            artifact=str(entry["artifact"]),
            target=str(entry["target"]),
            recipe=str(entry["recipe"]),
            inputs=tuple(_tensor(item) for item in entry["inputs"]),
            outputs=tuple(_tensor(item) for item in entry["outputs"]),
            bitwise=BitSummary(**entry["bitwise"]),
            certificate=CertificateSummary(
                int(certificate["proven"]),
                tuple(str(name) for name in certificate["unproven"]),
                {str(kind): int(count) for kind, count in certificate["kinds"].items()},
                tuple(str(name) for name in certificate["float_islands"]),
            ),
            samples=SampleInfo(**entry["samples"]),
            max_dim=int(entry["max_dim"]),
            versions=_texts(entry["versions"]),
            runtime=VersionRange(**entry["runtime"]),
            session_options=_texts(entry["session_options"]),
            metrics={
                str(name): float(value)
                for name, value in entry["metrics"].items()
                if value is not None
            },
            evaluation_digest=entry["evaluation_digest"],
            files=_texts(entry["files"]),
            taps=tuple(TapInfo(**tap) for tap in entry["taps"]),
            feeds=int(golden["feeds"]),
            scalars=tuple(str(name) for name in golden["scalars"]),
        )
    except CheckError as error:
        raise BundleError(str(error)) from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        path = folder / "manifest.json"
        raise BundleError(f"{path}: not a manifest that edgeq wrote: {error!r}") from error


def _tensor(entry: Mapping[str, Any]) -> TensorInfo:
    shape = entry["shape"]
    return TensorInfo(
        name=str(entry["name"]),
        dtype=str(entry["dtype"]),
        shape=None if shape is None else tuple(shape),
        scale=None if entry.get("scale") is None else float(entry["scale"]),
        zero_point=None if entry.get("zero_point") is None else int(entry["zero_point"]),
        tolerance=None if entry.get("tolerance") is None else float(entry["tolerance"]),
        span=None
        if entry.get("range") is None
        else (int(entry["range"][0]), int(entry["range"][1])),
    )


def _texts(entry: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in entry.items()}
