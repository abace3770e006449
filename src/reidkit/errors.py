"""The one tree of errors. Everything reidkit raises on purpose is a `ReidkitError`.

ReidkitError
├── ConfigError        a recipe, an option or a spec says something impossible
├── InputError         an array has the wrong shape, type or values
├── ImageError         one picture cannot be decoded
├── DataError          a data set or a folder is not what it should be
├── BundleError        a bundle is missing, half-written, tampered with or too new
├── ModelError         a foreign model or checkpoint cannot be taken in
├── RuntimeMissing     an engine's library or device is not on this machine
├── EngineError        an engine fails while it is built or while it runs: memory, a kernel
├── TrainingError      a training run cannot go on
└── OutputError        a file cannot be written
"""

import difflib
from collections.abc import Iterable


class ReidkitError(Exception):
    """A problem that reidkit found: what is wrong, what it got, what it expected and what to do.

    Args:
        problem: one sentence that says what is wrong and names the file, key or array.
        got: what was found.
        expected: what would have been right.
        fix: what the user can do about it.
    """

    def __init__(self, problem: str, *, got: object = None, expected: object = None, fix: str | None = None) -> None:
        super().__init__(problem, got, expected, fix)
        self.problem = problem
        self.got = got
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        rows = [("got", self.got), ("expected", self.expected), ("to do", self.fix)]
        return "\n".join([self.problem, *(f"  {name}: {value}" for name, value in rows if value is not None)])

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments: the default reduction would not survive a process pool.
        return _rebuild, (type(self), self.problem, self.got, self.expected, self.fix)


def _rebuild(kind: type[ReidkitError], problem: str, got: object, expected: object, fix: str | None) -> ReidkitError:
    return kind(problem, got=got, expected=expected, fix=fix)


class ConfigError(ReidkitError):
    """A recipe, an option or a spec says something impossible."""


class InputError(ReidkitError):
    """An array has the wrong shape, type or values."""


class ImageError(ReidkitError):
    """One picture cannot be decoded."""


class DataError(ReidkitError):
    """A data set or a folder is not what it should be."""


class BundleError(ReidkitError):
    """A bundle is missing, half-written, tampered with or written by a newer reidkit."""


class ModelError(ReidkitError):
    """A foreign model or checkpoint cannot be taken in."""


class RuntimeMissing(ReidkitError):  # noqa: N818 (it names a state, like ModuleNotFoundError)
    """An engine's library or device is not on this machine."""


class EngineError(ReidkitError):
    """An engine fails while it is built or while it runs: no memory left, no kernel that fits, a lost device."""


class TrainingError(ReidkitError):
    """A training run cannot go on."""


class OutputError(ReidkitError):
    """A file cannot be written: no permission, no space, or something else is in its place."""


def unknown_name(what: str, name: str, known: Iterable[str], *, short: str | None = None) -> ConfigError:
    """The error for a name that is none of `known`, with the nearest one suggested."""
    known = list(known)
    near = difflib.get_close_matches(short or name, known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]!r}?" if near else None
    return ConfigError(f"Unknown {what} {name!r}", expected="one of " + ", ".join(known), fix=fix)


def require_one_of(what: str, value: object, known: Iterable[object]) -> None:
    """Refuses a value that is none of `known`, with the nearest one suggested.

    Raises:
        ConfigError: names what has the value.
    """
    known = list(known)
    if value not in known:
        raise unknown_name(what, str(value), map(str, known))
