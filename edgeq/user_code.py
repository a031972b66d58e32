"""Functions that users name on the command line: `MODULE:FUNCTION`, of the folder they are in."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from edgeq.errors import DataError, suggest


def find_function(text: str) -> Callable[..., object]:
    """Import the function that `MODULE:FUNCTION` names; the current folder is searched first.

    Raises:
        DataError: There is no such module or function, or importing it failed.
    """
    module_name, _, name = text.partition(":")
    if not module_name or not name:
        raise DataError(f"{text!r}: write MODULE:FUNCTION, for example mydata:frames")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs code of the user's, which can raise anything
        raise DataError(
            f"{text}: cannot import {module_name}: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(folder)
    function: object = getattr(module, name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value)]
        raise DataError(f"{text}: {module_name} has no function {name!r}{suggest(name, known)}")
    return function
