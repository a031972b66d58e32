"""What the check needs of this Python, said before anything that is missing is imported.

First part of a bundle's `check.py`, where nothing else stands before it; not imported elsewhere.
"""

import importlib.util
import sys


def missing() -> str:
    """Return what is missing here and what to do, in words; an empty text where nothing is."""
    if sys.version_info < (3, 10):  # noqa: UP036  # what parses there still says what is missing
        version = ".".join(str(part) for part in sys.version_info[:2])
        return f"the check needs Python 3.10 or later; {sys.executable} is {version}"
    names = [name for name in ("numpy", "onnxruntime") if importlib.util.find_spec(name) is None]
    if not names:
        return ""
    return (
        f"the check needs numpy and onnxruntime; {sys.executable} has no {' and no '.join(names)}:"
        f" {sys.executable} -m pip install {' '.join(names)}, in a version that manifest.json has"
        " under runtime"
    )


if missing():
    print(f"error: {missing()}", file=sys.stderr)
    sys.exit(2)
