"""Write and open bundles: the folder that is deployed, with everything that proves it.

    model.onnx  manifest.json  golden/{inputs,outputs,taps}.npz  check.py  report.html  report.json

A bundle is written to a folder beside its destination and renamed when it is whole: there is never
half of one. The same contents give the same bytes in every file.
"""

import ast
import dataclasses
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.check_folder import CheckError, altered_files, inside, read_manifest
from edgeq.errors import BundleError
from edgeq.golden import GoldenVectors
from edgeq.manifest import Manifest, VersionRange, load_manifest
from edgeq.numerics.affine import dequantize, quantize
from edgeq.numerics.qtype import QTYPES
from edgeq.read_report import read_report
from edgeq.report import Report, render_json
from edgeq.report_page import render_html
from edgeq.targeting import Artifact
from edgeq.trajectory import TrajectoryComparison

# In the order in which the bundle's check.py holds them: a file after those that it imports.
CHECK_SOURCES = (
    "check_needs",
    "check_folder",
    "check_saturation",
    "check_machine",
    "check_memory",
    "check_session",
    "check_bits",
    "check_accuracy",
    "check",
)
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk.

    Attributes:
        path: Its folder.
        manifest: What it says about itself.
    """

    path: Path
    manifest: Manifest

    @property
    def artifact(self) -> Path:
        """Path of the file that the runtime opens."""
        return inside(self.path, self.manifest.artifact)

    def session(self, *, threads: int = 1) -> Any:  # noqa: ANN401  # onnxruntime has no types
        """Return an `onnxruntime.InferenceSession` with the options that the bits depend on."""
        from edgeq.check_session import open_session

        options = dict(self.manifest.session_options)
        entry = {"artifact": self.manifest.artifact, "session_options": options}
        try:
            return open_session(self.path, entry, threads=threads)
        except CheckError as error:
            raise BundleError(str(error)) from error

    def quantize_inputs(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Return feeds as the artifact takes them: reals become codes where it takes codes.

        Raises:
            BundleError: A dimension that the model leaves open is beyond the manifest's `max_dim`.
        """
        self.check_sizes(feeds)
        known = {item.name: item for item in self.manifest.inputs}
        result = {}
        for name, array in feeds.items():
            item = known.get(name)
            if item is None or item.scale is None or array.dtype.kind != "f":
                result[name] = np.asarray(array)
                continue
            scale, zero_point = np.float32(item.scale), np.int32(item.zero_point or 0)
            codes = quantize(array, np.asarray(scale), np.asarray(zero_point), QTYPES[item.dtype])
            result[name] = codes
        return result

    def check_sizes(self, feeds: Arrays) -> None:
        """Refuse dimensions that the model leaves open beyond those that bits are proven for.

        Raises:
            BundleError: One is beyond the manifest's `max_dim`.
        """
        limit = self.manifest.max_dim
        for item in self.manifest.inputs:
            sizes = np.shape(feeds.get(item.name, 0))
            for size, fixed in zip(sizes, item.shape or (), strict=False):
                if not isinstance(fixed, int) and size > limit:
                    raise BundleError(
                        f"input {item.name!r} has a dimension of {size}; the bits of this bundle"
                        f" are proven up to {limit}: compile it again with --max-dim {size}"
                    )

    def dequantize_outputs(self, outputs: Arrays) -> dict[str, NDArray[Any]]:
        """Return outputs as float32 reals where the artifact gives codes."""
        known = {item.name: item for item in self.manifest.outputs}
        result = {}
        for name, array in outputs.items():
            item = known.get(name)
            if item is None or item.scale is None or array.dtype.kind not in "iu":
                result[name] = np.asarray(array)
                continue
            scale, zero_point = np.float32(item.scale), np.int32(item.zero_point or 0)
            result[name] = dequantize(array, np.asarray(scale), np.asarray(zero_point))
        return result


def open_bundle(path: str | os.PathLike[str], *, digests: bool = True) -> Bundle:
    """Open a bundle.

    Args:
        path: Its folder.
        digests: Hold every file against its sha256.

    Raises:
        BundleError: The folder is no bundle, is altered, or names paths outside of itself.
    """
    folder = Path(path)
    manifest = load_manifest(folder)
    altered = altered_files(folder, read_manifest(folder)) if digests else ()
    if altered:
        raise BundleError(f"{folder}: altered or missing: {', '.join(altered)}; compile it again")
    return Bundle(folder, manifest)


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a manifest that edgeq can read."""
    try:
        load_manifest(path)
    except BundleError:
        return False
    return True


def check_destination(path: Path, *, force: bool) -> None:
    """Refuse a destination early, before any work.

    Raises:
        BundleError: The destination exists and may not be replaced, or its parent is no folder.
    """
    parent = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not parent.is_dir():
        raise BundleError(f"{path}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise BundleError(f"{path}: the folder {parent} is not writable")
    if not os.path.lexists(path):
        return
    if not force:
        raise BundleError(f"{path} exists: choose another folder, or replace it with --force")
    if path.is_symlink() or not path.is_dir() or (any(path.iterdir()) and not is_bundle(path)):
        raise BundleError(f"{path} is not a bundle: --force replaces nothing else; remove it first")


def write_bundle(
    destination: str | os.PathLike[str],
    *,
    artifact: Artifact,
    manifest: Manifest,
    golden: GoldenVectors,
    report: Report,
    force: bool = False,
) -> Bundle:
    """Write a bundle, whole or not at all.

    Args:
        destination: The folder to make.
        artifact: What is deployed.
        manifest: All but `artifact`, `files`, `taps`, `feeds`, `scalars` and `runtime`, which are
            filled in; `runtime` are the patch releases of `versions["onnxruntime"]`.
        golden: The golden runs.
        report: What `report.html` and `report.json` say.
        force: Replace a bundle that is there, once the new one is whole.

    Raises:
        BundleError: The destination may not be written, or the disk is full.
    """
    path = Path(destination)
    check_destination(path, force=force)
    contents = {
        **artifact.files,
        **golden.files(),
        **({} if "check.c" in artifact.files else {"check.py": standalone_check()}),
        **_report_files(report),
    }
    manifest = dataclasses.replace(
        manifest,
        artifact=artifact.entry,
        runtime=VersionRange.of(manifest.versions["onnxruntime"]),
        files={name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
        taps=golden.taps,
        feeds=golden.feeds,
        scalars=golden.scalars,
    )
    write_folder(path, {**contents, "manifest.json": manifest.to_text().encode()}, force=force)
    return open_bundle(path)


def replace_report(bundle: Bundle, *, trajectory: TrajectoryComparison) -> Bundle:
    """Write the report of a bundle anew, with a trajectory; return the bundle as it is then.

    Raises:
        BundleError: The report cannot be read, or the folder not be written.
    """
    path = bundle.path
    report = dataclasses.replace(read_report(path / "report.json"), trajectory=trajectory)
    contents = _report_files(report)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    manifest = dataclasses.replace(bundle.manifest, files={**bundle.manifest.files, **digests})
    contents["manifest.json"] = manifest.to_text().encode()
    partial = {name: path / f".{name}.partial-{os.getpid()}" for name in contents}
    try:
        for name, data in contents.items():  # all of them first: what can fail, fails here
            partial[name].write_bytes(data)
        for name in contents:
            partial[name].replace(path / name)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        for file in partial.values():
            file.unlink(missing_ok=True)
    return open_bundle(path)


def _report_files(report: Report) -> dict[str, bytes]:
    return {
        "report.html": render_html(report).encode(),
        "report.json": render_json(report).encode(),
    }


def write_folder(path: Path, contents: Mapping[str, bytes], *, force: bool) -> None:
    """Write files to a folder beside `path`, then rename it to `path`.

    With `force`, the folder that was there is moved aside first and removed last; it comes back if
    the new one cannot take its place.

    Raises:
        BundleError: The disk is full, or the operating system refuses.
    """
    with _staging(path) as staging:
        for name, data in contents.items():
            file = inside(staging, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        if not (force and path.is_dir()):
            staging.rename(path)
            return
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        path.rename(old)
        try:
            staging.rename(path)
        except BaseException:
            old.rename(path)
            raise
        shutil.rmtree(old)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Give a fresh folder beside `path`; whatever is left of it afterwards is removed.

    Parents of `path` that are missing are made, and go again if nothing comes to lie in them.
    """
    staging = path.with_name(f".{path.name}.partial-{os.getpid()}")
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BundleError(f"{path}: the disk is full; nothing was written") from error
        raise BundleError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):  # it is not empty, or was never made
                folder.rmdir()


def standalone_check() -> bytes:
    """Return the bundle's `check.py`: `edgeq/check.py` behind the files that it imports.

    Imports of edgeq are left out, since everything they name stands above.
    """
    parts = []
    for name in CHECK_SOURCES:
        text = Path(__file__).with_name(f"{name}.py").read_text("utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgeq."):
                assert node.end_lineno is not None
                for number in range(node.lineno - 1, node.end_lineno):
                    lines[number] = ""
        parts.append("\n".join(lines).strip())
    return ("\n\n\n".join(parts) + "\n").encode()
