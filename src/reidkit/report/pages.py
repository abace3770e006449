"""The templates of pages: what is put into them is made printable and escaped, and what is missing is an error."""

import jinja2

from reidkit.report.results import UNKNOWN, printable


def template(name: str) -> jinja2.Template:
    """A template of this room, by the name of its file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reidkit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.globals["unknown"] = UNKNOWN
    return environment.get_template(name)


def _printable(value: object) -> object:
    # A subclass of str is what a macro made: that is escaped already, and has its line breaks.
    return printable(value) if type(value) is str and not value.isprintable() else value
