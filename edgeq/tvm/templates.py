"""The texts around the kernels: templates of C, make, CMake, Markdown and JavaScript."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgeq.tvm.c_text import comment, initializer, string_literal

if TYPE_CHECKING:
    import jinja2

FOLDER = Path(__file__).parent.parent / "templates" / "tvm"


def text_of(name: str) -> bytes:
    """Return a file that is the same in every bundle."""
    return (FOLDER / name).read_bytes()


def render(name: str, **facts: object) -> bytes:
    """Return the file `name`, filled in."""
    return _environment().get_template(f"{name}.j2").render(facts).encode()


@cache
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=False,  # C, not HTML: names pass c_string or c_comment
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(c_string=string_literal, c_comment=comment, c_list=initializer)
    return environment
