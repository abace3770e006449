"""Which OSNet a file holds, from names and numbers of values: torchreid's, which fast-reid has taken over."""

from reidkit.architecture import OSNET_WIDTHS, OSNetSpec
from reidkit.checkpoints.reading import Sizes
from reidkit.errors import ModelError

_STEM = "conv1.conv.weight"
_STEM_KERNEL = 3 * 7 * 7


def is_osnet(sizes: Sizes) -> bool:
    """Whether these look like the names of an OSNet."""
    return _STEM in sizes and "conv5.conv.weight" in sizes and any(name.startswith("conv2.0.conv2") for name in sizes)


def infer_osnet(sizes: Sizes) -> OSNetSpec:
    """The OSNet of these names.

    Raises:
        ModelError: of a width that nobody has published.
    """
    channels = sizes[_STEM] / _STEM_KERNEL
    widths = {stem: width for width, (stem, *_) in OSNET_WIDTHS.items()}
    if channels not in widths:
        raise ModelError(
            "The file holds an OSNet of an unknown width",
            got=f"{channels:g} channels in {_STEM}",
            expected=", ".join(f"{stem} (x{width:g})" for stem, width in widths.items()),
        )
    width = widths[int(channels)]
    if any(name.startswith("conv2.0.conv2.") for name in sizes):  # four streams in a list, not conv2a to conv2d
        return OSNetSpec(width=width, variant="ain")
    return OSNetSpec(width=width, variant="ibn" if "conv2.0.IN.weight" in sizes else "plain")
