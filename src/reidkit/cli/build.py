"""`reid build`: an engine for this machine, into the bundle's store; or the fastest of all, found and remembered."""

from collections.abc import Sequence
from typing import Annotated

import typer

from reidkit.bundle import MANIFEST, Bundle, open_bundle
from reidkit.cli import console, options
from reidkit.cli.outputs import check_writable
from reidkit.cli.verify import print_parity
from reidkit.deploy.bench import BATCHES as CHOSEN_FOR
from reidkit.deploy.build import BATCHES, OPTIONS, build_engine
from reidkit.deploy.choose import Chosen, Trial, choose
from reidkit.deploy.verify import check_parity
from reidkit.deploy.ways import Way
from reidkit.errors import ConfigError, require_one_of
from reidkit.runtime import ENGINES
from reidkit.runtime.engine_store import EngineFacts, read_store
from reidkit.runtime.flavour import LIBRARIES
from reidkit.types import Via

AUTO = "auto"

_USUAL, _USUAL_OF_AUTO = (",".join(map(str, batches)) for batches in (BATCHES, CHOSEN_FOR))


def build(
    bundle: options.BundlePath,
    runtime: Annotated[
        str, typer.Option("--runtime", help="tensorrt, tensorrt-rtx, or auto: the fastest of all that passes.")
    ] = "tensorrt",
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            help="fp32, tf32, fp16, bf16, or int8 of a quantised bundle (default: fp16; of auto, the graph's own where "
            "that is not fp32, and fp32 on a processor).",
        ),
    ] = None,
    via: Annotated[
        Via | None,
        typer.Option("--via", help="network: written layer by layer; parser: from ONNX (default: as known)."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch",
            help=f"Batches to choose kernels for, one profile each (default: {_USUAL}; of auto: {_USUAL_OF_AUTO}).",
        ),
    ] = None,
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
        bool, typer.Option("--weight-stripped", help="Without the weights; TensorRT's own refitter puts them back.")
    ] = False,
    effort: Annotated[
        int | None, typer.Option("--effort", min=0, max=5, help="How hard the builder looks for kernels (default: 3).")
    ] = None,
    device: options.Device = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build although a fitting engine is there.")] = False,
) -> EngineFacts | Chosen:
    """Build an engine for this machine; a fitting one that is there already is taken.

    With --runtime auto every engine that is here is tried, held to the golden embeddings and timed, those that have to
    be built among them; which was the fastest for each batch is kept in the bundle, for --runtime auto of the other
    commands.
    """
    require_one_of("runtime to build for", runtime, (*LIBRARIES, AUTO))
    opened = open_bundle(bundle)
    arithmetic = options.parse_precision(precision)
    wanted = dict(zip(OPTIONS, (version_compatible, hardware_compatible, refit, weight_stripped), strict=True))
    if runtime == AUTO:
        idle = {"--via": via, "--workspace": workspace, "--effort": effort is not None, "--rebuild": rebuild}
        options.refuse_idle(idle | {f"--{name}": given for name, given in wanted.items()}, "of --runtime auto")
        check_writable(opened.path / MANIFEST)
        with console.progress_bar("finding the fastest engine") as progress:
            chosen = choose(
                opened,
                precision=arithmetic,
                batches=parse_batches(_USUAL_OF_AUTO if batch is None else batch),
                device=device,
                progress=progress,
            )
        _print(chosen, opened)
        return chosen
    standing = {engine.sha256 for engine in read_store(opened)}
    with console.spinner("building; this takes minutes"):
        facts = build_engine(
            opened,
            runtime,
            precision=arithmetic or "float16",
            via=via,
            batches=parse_batches(_USUAL if batch is None else batch),
            workspace=None if workspace is None else options.parse_memory(workspace, "--workspace"),
            options=[name for name, given in wanted.items() if given],
            effort=effort,
            device=device or "cuda",
            rebuild=rebuild,
        )
    how = "there already" if facts.sha256 in standing else f"built in {facts.build_seconds or 0:.0f} s"
    console.say(f"{facts.name}: {facts.size / 1e6:.1f} MB, {how}")
    _prove(opened, facts, device)
    return facts


def _prove(bundle: Bundle, facts: EngineFacts, device: str | None) -> None:
    """Holds a new engine to the golden embeddings: a builder may take a graph and compute another one.

    Raises:
        Exit: with 1, where it is beyond its tolerance.
    """
    if facts.gpu is None or facts.stripped:
        why = "no card is here" if facts.gpu is None else "it has no weights yet"
        console.say(
            f"not verified, for {why}: run `reid verify {bundle.path} --runtime {facts.runtime}` where it is used"
        )
        return
    way = Way(next(name for name in ENGINES if name == facts.runtime), facts.precision, facts.via)
    parity = check_parity(way.open(bundle, device=device), bundle.golden())
    print_parity([parity])
    if not parity.passed:
        raise typer.Exit(1)


def _print(chosen: Chosen, bundle: Bundle) -> None:
    """What was timed as a table, what was left out and why, and what was chosen."""
    timed = [trial for trial in chosen.trials if trial.reason is None]
    columns = [f"ms, {size}" for size in chosen.batches]
    clocked = any(value is not None for trial in timed for value in trial.gpu_ms)
    columns += [f"GPU ms, {size}" for size in chosen.batches] if clocked else []
    table = console.table(chosen.choice.machine, "runtime", "precision", *columns, numbers=len(columns))
    for trial in timed:
        cells = [
            f"[bold green]{ms:.2f}[/]" if winner == trial.way else f"{ms:.2f}"
            for ms, winner in zip(trial.ms, chosen.winners, strict=True)
        ]
        cells += ["" if ms is None else f"{ms:.3f}" for ms in trial.gpu_ms] if clocked else []
        table.add_row(_name(trial), trial.way.precision or "", *cells)
    console.out.print(table)
    left_out: Sequence[Trial] = [trial for trial in chosen.trials if trial.reason is not None]
    if left_out:
        console.say("left out:")
        for trial in left_out:
            console.say(f"  {trial.way.in_words()}: {trial.reason}")
    names = {size: way.in_words() for size, way in zip(chosen.batches, chosen.winners, strict=True)}
    if len(set(names.values())) == 1:
        console.say(f"chosen for {bundle.path.name} here: {chosen.winners[0].in_words()}")
    else:
        told = ", ".join(f"{name} at {size}" for size, name in names.items())
        console.say(f"chosen for {bundle.path.name} here, by batch: {told}")


def _name(trial: Trial) -> str:
    return trial.way.runtime if trial.way.via is None else f"{trial.way.runtime} by {trial.way.via}"


def parse_batches(text: str) -> list[int]:
    """The numbers of a `--batch 1,8,64`.

    Raises:
        ConfigError: something else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError("Cannot read --batch", got=text, expected="numbers above 0, such as 1,8,64")
    return [int(word) for word in words]
