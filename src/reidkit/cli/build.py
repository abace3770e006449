"""`reid build`: an engine for this machine, into the bundle's store."""

from typing import Annotated

import typer

from reidkit.bundle import open_bundle
from reidkit.cli import console, options
from reidkit.deploy.build import BATCHES, OPTIONS, build_engine
from reidkit.errors import ConfigError
from reidkit.runtime.engine_store import EngineFacts
from reidkit.types import Via

AUTO = "auto"


def build(
    bundle: options.BundlePath,
    runtime: Annotated[
        str, typer.Option("--runtime", help="tensorrt, tensorrt-rtx, or auto: the fastest of all that passes.")
    ] = "tensorrt",
    precision: options.PrecisionOption = "fp16",
    via: Annotated[
        Via | None,
        typer.Option("--via", help="network: written layer by layer; parser: from ONNX (default: as known)."),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", help="Batches to choose kernels for, one profile each.")] = ",".join(
        map(str, BATCHES)
    ),
    workspace: Annotated[
        str | None, typer.Option("--workspace", help="Memory a kernel may take: 2GiB (default: all there is).")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Also for newer versions of the library.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Also for other cards, from Ampere on; slower.")
    ] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Weights can be changed later.")] = False,
    weight_stripped: Annotated[
        bool, typer.Option("--weight-stripped", help="Without the weights, to be refitted from the bundle.")
    ] = False,
    effort: Annotated[
        int | None, typer.Option("--effort", min=0, max=5, help="How hard the builder looks for kernels (default: 3).")
    ] = None,
    device: options.Device = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build although a fitting engine is there.")] = False,
) -> EngineFacts:
    """Build an engine for this machine; a fitting one that is there already is taken."""
    opened = open_bundle(bundle)
    chosen = (version_compatible, hardware_compatible, refit, weight_stripped)
    with console.spinner("building; this takes minutes"):
        facts = build_engine(
            opened,
            runtime,
            precision=options.parse_precision(precision or "fp16"),
            via=via,
            batches=parse_batches(batch),
            workspace=options.parse_memory(workspace) if workspace else None,
            options=[name for name, wanted in zip(OPTIONS, chosen, strict=True) if wanted],
            effort=effort,
            device=device or "cuda",
            rebuild=rebuild,
        )
    console.say(f"{facts.name}: {facts.size / 1e6:.1f} MB, built in {facts.build_seconds or 0:.0f} s")
    return facts


def parse_batches(text: str) -> list[int]:
    """The numbers of a `--batch 1,8,64`.

    Raises:
        ConfigError: something else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError("Cannot read --batch", got=text, expected="numbers above 0, such as 1,8,64")
    return [int(word) for word in words]
