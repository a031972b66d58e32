"""Passes and targets by name: a file is its name, and defines one class."""

import importlib
import pkgutil
from typing import Any

from edgeq.errors import UnknownNameError, suggest


def names(package: str) -> list[str]:
    """Return the names of the files of `package`: `insert_qdq.py` is `insert-qdq`."""
    path = importlib.import_module(package).__path__
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(path))


def find(package: str, name: str, base: type, kind: str) -> type[Any]:
    """Return the one class derived from `base` that the file `name` of `package` defines.

    Args:
        package: `edgeq.passes`, `edgeq.targets`.
        name: As `names` gives it.
        base: What the class derives from.
        kind: What messages call it.

    Raises:
        UnknownNameError: There is no such file.
    """
    known = names(package)
    if name not in known:
        raise UnknownNameError(
            f"no {kind} {name!r}{suggest(name, known)}; known: {', '.join(known)}"
        )
    module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
    ]
    assert len(classes) == 1, f"{module.__name__} must define one {base.__name__}"
    return classes[0]


def own_name(cls: type) -> str:
    """Return the name of the file that defines `cls`."""
    return cls.__module__.rpartition(".")[2].replace("_", "-")
