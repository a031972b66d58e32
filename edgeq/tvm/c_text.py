"""Values as C source."""

from collections.abc import Sequence

import numpy as np

_ROW = 64  # bytes in a line of a literal
_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b'"\\?')  # ?: no trigraphs
_DIGITS = frozenset(b"0123456789")
_SHORT = [chr(v) if v in _PLAIN else f"\\{v:o}" for v in range(256)]
_LONG = [chr(v) if v in _PLAIN else f"\\{v:03o}" for v in range(256)]


def array_initializer(data: bytes, *, portable: bool) -> str:
    """Return what initializes an array of `unsigned char`.

    GCC and Clang read string literals fifteen times faster than lists of numbers; C promises no
    more than 4095 bytes in one, so `portable` gives numbers.
    """
    if not portable:
        return bytes_literal(data)
    rows = [",".join(map(str, data[at : at + _ROW])) for at in range(0, len(data), _ROW)]
    return "{" + (",\n".join(rows) or "0") + "}"


def bytes_literal(data: bytes) -> str:
    """Return bytes as a string literal, in lines; an array that it initializes may be longer."""
    return "\n".join(_line(data[at : at + _ROW]) for at in range(0, len(data), _ROW)) or '""'


def _line(row: bytes) -> str:
    """Escape in octal, as short as the next character allows: a digit would be read with it."""
    following = (row + b"\0")[1:]
    characters = [
        (_LONG if n in _DIGITS else _SHORT)[v] for v, n in zip(row, following, strict=True)
    ]
    return f'"{"".join(characters)}"'


def string_literal(text: str) -> str:
    """Return text as one string literal, in UTF-8."""
    return _line(text.encode())


def comment(text: str) -> str:
    """Return text that ends no comment."""
    return text.replace("*/", "* /").replace("/*", "/ *").replace("\n", " ")


def float_literal(value: float) -> str:
    """Return a `float` that reads back as the same bits: nine digits always do."""
    text = f"{float(np.float32(value)):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def initializer(values: Sequence[int]) -> str:
    """Return numbers in braces; C has no empty arrays, so none becomes one."""
    return "{" + ", ".join(map(str, values or (1,))) + "}"
