"""The templates of pages: what is put into them is escaped, and what is missing is an error."""

from collections.abc import Callable
from typing import Any

import jinja2


def template(name: str, *, finalize: Callable[[Any], Any] | None = None) -> jinja2.Template:
    """A template of this room.

    Args:
        name: of the file.
        finalize: applied to every value before it is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reidkit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    return environment.get_template(name)
