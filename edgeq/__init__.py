"""Quantize a float model for an edge device, and prove that its bits are the same there.

    bundle = edgeq.compile("model.onnx", target="ort-cpu", calibration="data.npz", output="b")
    edgeq.check(bundle).raise_for_mismatch()

Names are loaded when they are first used, so that `import edgeq` takes no time.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgeq.api import check as check
    from edgeq.api import compile as compile
    from edgeq.api import export as export
    from edgeq.api import sensitivity as sensitivity
    from edgeq.api import simulate as simulate
    from edgeq.bundle import Bundle as Bundle
    from edgeq.errors import EdgeqError as EdgeqError
    from edgeq.recipe import Recipe as Recipe

_VERBS = ("check", "compile", "export", "sensitivity", "simulate")
_HOME = {
    **dict.fromkeys(_VERBS, "edgeq.api"),
    "Bundle": "edgeq.bundle",
    "EdgeqError": "edgeq.errors",
    "Recipe": "edgeq.recipe",
}
__all__ = [
    "Bundle",
    "EdgeqError",
    "Recipe",
    "__version__",
    "check",
    "compile",
    "export",
    "sensitivity",
    "simulate",
]


class _Facade(ModuleType):
    """A package whose verbs are not replaced by the modules of the same name.

    Importing `edgeq.check` sets that module as an attribute of `edgeq`, which would hide the
    function `edgeq.check`. The modules stay importable: `from edgeq.check import CheckResult`.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _VERBS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Facade
