"""Manifests of bundles that a test changes, and seals again as `compile` would."""

import json
from pathlib import Path

from edgeq.check_folder import UNSEALED, seal


def rewrite_manifest(folder: Path, *, without: str = "", **changes: object) -> None:
    """Change entries of a bundle's manifest, leave one out, and give it its digest."""
    path = folder / "manifest.json"
    entry = json.loads(path.read_text()) | changes
    entry = {key: value for key, value in entry.items() if key not in (without, "sha256")}
    path.write_text(seal(json.dumps(entry | {"sha256": UNSEALED})))
