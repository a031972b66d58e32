"""`DIR.failed/`: what it takes to see a failed verification again.

model.onnx  difference.json  inputs.npz  expected.npz  actual.npz
"""

import json
import os
from pathlib import Path

from edgeq.bundle import write_folder
from edgeq.errors import BundleError
from edgeq.golden import npz_bytes
from edgeq.targeting import Artifact
from edgeq.verify import Verdict

MARK = "difference.json"


def failed_folder(destination: Path) -> Path:
    """Return where the evidence of a failed compilation to `destination` lies."""
    return destination.with_name(f"{destination.name}.failed")


def write_evidence(
    destination: str | os.PathLike[str], *, artifact: Artifact, verdict: Verdict | None, reason: str
) -> Path:
    """Write the evidence of a failed verification; evidence that is there already is replaced.

    Args:
        destination: Where the bundle would have been.
        artifact: What was run.
        verdict: The comparison, if bits differ; None when a proof or a limit is missing.
        reason: The message of the failure.

    Returns:
        The folder of the evidence.

    Raises:
        BundleError: The folder's place is taken by something else, or the disk is full.
    """
    path = failed_folder(Path(destination))
    ours = path.is_dir() and ((path / MARK).is_file() or not any(path.iterdir()))
    if os.path.lexists(path) and not ours:
        raise BundleError(f"{reason}; {path} is in the way of the evidence: remove it")
    entry: dict[str, object] = {"schema_version": 1, "reason": reason}
    contents = dict(artifact.files)
    if verdict is not None:
        entry["bitwise"] = {
            "tensors": verdict.tensors,
            "compared": verdict.compared,
            "mismatches": verdict.mismatches,
        }
        entry["first"] = None if verdict.first is None else vars(verdict.first)
        entry["tensors"] = {c.name: c.mismatches for c in verdict.counts if c.mismatches}
        if verdict.evidence is not None and verdict.first is not None:
            name = verdict.first.tensor
            contents["inputs.npz"] = npz_bytes(verdict.evidence.feeds)
            contents["expected.npz"] = npz_bytes({name: verdict.evidence.expected})
            contents["actual.npz"] = npz_bytes({name: verdict.evidence.actual})
    contents[MARK] = (json.dumps(entry, indent=2) + "\n").encode()
    write_folder(path, contents, force=path.is_dir())
    return path
