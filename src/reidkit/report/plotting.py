"""What all plots share: colours, axes without clutter, and a figure as SVG that can stand inside a page."""

import io
import re
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which those who confuse red and green can tell apart; black and yellow left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK, FAINT, GRID = "#0f172a", "#64748b", "#e2e8f0"

# On a page these follow its light or dark colours; a viewer of the SVG alone takes what stands behind the comma.
_PAGE_COLORS = {INK: f"var(--ink, {INK})", FAINT: f"var(--faint, {FAINT})", GRID: f"var(--line, {GRID})"}
_NAMESPACE = re.compile(r"\{.*?\}")
_FONTS = re.compile("'DejaVu Sans'[^;]*")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and labels, faint horizontal lines and a bottom line; nothing else around the curves."""
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.set_xlabel(x, color=FAINT)
    axes.set_ylabel(y, color=FAINT)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=FAINT, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def inline_svg(figure: Figure, label: str) -> str:
    """A figure as an SVG element for a page: no ids, no references, no metadata; its text is the page's.

    It cuts nothing off at the edges of the axes and draws no markers, since both would need ids. The same figure gives
    the same bytes.

    Args:
        figure: of lines and text within its axes.
        label: what it shows, for those who cannot see it.
    """
    stream = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True)
    root = ET.fromstring(stream.getvalue())  # noqa: S314 (our own)
    _clean(root)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    return ET.tostring(root, encoding="unicode").strip()


def _clean(element: ET.Element) -> None:
    element.tag = _NAMESPACE.sub("", element.tag)
    for name in ("id", "clip-path"):
        element.attrib.pop(name, None)
    for name in {"d", "x", "y", "transform"} & element.attrib.keys():
        element.attrib[name] = _LONG_NUMBER.sub(lambda number: f"{float(number[0]):.2f}", element.attrib[name])
    if "style" in element.attrib:
        element.attrib["style"] = _page_style(element.attrib["style"])
    for child in list(element):
        if _NAMESPACE.sub("", child.tag) in ("metadata", "defs", "use"):
            element.remove(child)
            continue
        _clean(child)
        if child.tag == "g" and len(child) == 0:
            element.remove(child)
    element.text = (element.text or "").strip() or None
    element.tail = None


def _page_style(style: str) -> str:
    style = _FONTS.sub("system-ui, sans-serif", style)
    return re.sub("#[0-9a-f]{6}", lambda color: _PAGE_COLORS.get(color[0], color[0]), style)
