"""A network that is written as two files, of which the second has the name of the first: graph and weights."""

from pathlib import Path

from reidkit.atomic import check_free
from reidkit.errors import ConfigError


def places_of(out: Path | str, what: str, suffix: str, weights_suffix: str, *, overwrite: bool) -> tuple[Path, Path]:
    """Where both files go, asked before there is anything to write.

    Args:
        out: the first file.
        what: is written, for the message.
        suffix: of the first file.
        weights_suffix: of the one beside it.
        overwrite: replace files that are already there.

    Raises:
        ConfigError: another suffix.
        OutputError: a place is taken.
    """
    out = Path(out)
    if out.suffix != suffix:
        raise ConfigError(
            f"Cannot write {what} under this name",
            got=out.name,
            expected=f"NAME{suffix}; NAME{weights_suffix} is written beside it",
            fix=f"call it {out.with_suffix(suffix).name}",
        )
    weights = out.with_suffix(weights_suffix)
    for file in (out, weights):
        check_free(file, overwrite=overwrite)
    return out, weights
