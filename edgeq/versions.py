"""The versions that a bundle's bits depend on."""

import importlib.metadata

from edgeq import __version__

PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxsim")


def versions() -> dict[str, str]:
    """Return the version of edgeq and of each package that shapes a bundle."""
    return {"edgeq": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}
