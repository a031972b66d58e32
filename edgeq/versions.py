"""The versions that a bundle's bits depend on."""

import importlib.metadata

PACKAGES = ("edgeq", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxsim")


def versions() -> dict[str, str]:
    """Return the installed version of edgeq and of each package that shapes a bundle."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "source"  # run from a checkout that is not installed
    return found
