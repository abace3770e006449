"""The field's protocols: which pairs are junk, and which gallery crops stand to be found. As data."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from reidkit.errors import unknown_name

ProtocolName = Literal["market1501", "cuhk03-single-shot", "camera-less", "veri776", "vehicleid"]
Draw = Literal["nothing", "per query", "gallery"]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a ranking is measured.

    Attributes:
        name: as reports and the command line write it.
        junk: whether gallery crops of the query's identity that the query's own camera took are ranked nowhere.
        draw: what is drawn at random: "nothing"; "per query", one crop of each identity, anew for each query; or
            "gallery", one crop of each identity for all queries. A distractor shows nobody, and always stays.
        draws: how often; measures are means over them.
        source: who defined it.
    """

    name: ProtocolName
    junk: bool
    draw: Draw
    draws: int
    source: str


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        protocol.name: protocol
        for protocol in (
            Protocol("market1501", True, "nothing", 1, "Zheng et al., ICCV 2015; also DukeMTMC, MSMT17, CUHK03-NP"),
            Protocol("cuhk03-single-shot", True, "per query", 10, "Li et al., CVPR 2014; mAP over the whole gallery"),
            Protocol(
                "camera-less", False, "nothing", 1, "as image retrieval does: no crop is junk, whatever its camera"
            ),
            Protocol("veri776", True, "nothing", 1, "Liu et al., ECCV 2016, from image to image"),
            Protocol("vehicleid", False, "gallery", 10, "Liu et al., CVPR 2016; the crops that are not drawn ask"),
        )
    }
)
"""Every protocol by name."""

_BY_FORMAT = {"veri776": "veri776", "vehicleid": "vehicleid"}


def named_protocol(name: str | None, *, data_format: str) -> Protocol:
    """The protocol of that name, or the usual one of a data set.

    Args:
        name: one of PROTOCOLS; None takes the one that belongs to the format.
        data_format: of the data set; see `reidkit.types.Split`.

    Raises:
        ConfigError: there is no such protocol; suggests the nearest.
    """
    name = _BY_FORMAT.get(data_format, "market1501") if name is None else name
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
