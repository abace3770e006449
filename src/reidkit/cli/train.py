"""`reid train`: a recipe and a data set become a checkpoint, and that a verified bundle."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from reidkit.bundle import Bundle, open_bundle
from reidkit.cache import default_folder
from reidkit.calibration import EngineKind, Range
from reidkit.cli import console, options
from reidkit.cli.outcome import finish, places_in
from reidkit.cli.training_table import TrainingTable
from reidkit.data import load_split
from reidkit.errors import ModelError
from reidkit.imaging import available_cores
from reidkit.train.quantization import Rounding
from reidkit.train.recipe import Recipe, load_recipe, recipe_names
from reidkit.types import Split, Task


class InterruptedRun(Exception):  # noqa: N818 (nothing went wrong)
    """Ctrl-C ended a training, which the same command with --resume goes on with."""


_RECIPES = ", ".join(recipe_names())
_LEARNED, _RUN, _MACHINE, _OUTCOME = "What is learned", "The run", "The machine", "The outcome"


def train(
    data: options.DataRoot,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run, and of all that comes of it.")],
    recipe: Annotated[
        str,
        typer.Option("--recipe", rich_help_panel=_LEARNED, help=f"{_RECIPES}; or a file NAME.toml."),
    ] = "from-scratch",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            rich_help_panel=_LEARNED,
            help="A network of `reid models` in place of the recipe's: osnet-x0.25.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            rich_help_panel=_LEARNED,
            help="Change the recipe: --set optim.epochs=20. May be repeated.",
        ),
    ] = None,
    task: Annotated[Task, typer.Option("--task", rich_help_panel=_LEARNED, help="What the identities are.")] = "person",
    init: Annotated[
        Path | None,
        typer.Option(
            "--init",
            rich_help_panel=_LEARNED,
            help="Start from the backbone of anyone's checkpoint, of the same network; for eight bits from a bundle.",
        ),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher",
            rich_help_panel=_LEARNED,
            help="Copy a trained network, too: a run, a bundle, or anyone's checkpoint.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", rich_help_panel=_RUN, help="Go on with the interrupted run in --out, the rest as it was said."
        ),
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", rich_help_panel=_RUN, help="Write TensorBoard's events, too.")
    ] = False,
    device: Annotated[str, typer.Option("--device", rich_help_panel=_MACHINE, help="cpu, cuda or cuda:N.")] = "cpu",
    devices: Annotated[
        int,
        typer.Option(
            "--devices", min=1, rich_help_panel=_MACHINE, help="So many of them, each with batches of its own."
        ),
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, rich_help_panel=_MACHINE, help="Of PyTorch (default: one a core)."),
    ] = None,
    cached: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache", rich_help_panel=_MACHINE, help="Keep decoded crops and embeddings for the next time."
        ),
    ] = True,
    bundle: Annotated[
        bool,
        typer.Option(
            "--bundle/--no-bundle", rich_help_panel=_OUTCOME, help="Export, verify, measure, and write a card."
        ),
    ] = True,
    overwrite: options.Overwrite = False,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> None:
    """Train a model on the training part of a data set; a verified bundle, its card and curves come of it."""
    from reidkit.train.parallel import is_follower
    from reidkit.train.state import STATE

    if is_follower():
        console.hush()
    loaded = load_recipe(recipe, model=model, overrides=overrides or ())
    rounding = None
    if loaded.quantization is not None:
        loaded, rounding = _quantized(recipe, init, model=model, overrides=overrides or ())
    split = load_split(data, data_format, variant=variant)
    places = places_in(out)
    if not resume or (out / STATE).exists():  # else that is what is to be said
        places.check(bundle=bundle, overwrite=overwrite)
    saved = _saved_at(out / STATE)
    _set_threads(threads, devices)
    logging.getLogger("lightning_fabric.utilities").setLevel(logging.WARNING)  # which process is here, several times
    try:
        learn(
            split,
            loaded,
            out,
            device=device,
            devices=devices,
            task=task,
            init=init,
            teacher=teacher,
            rounding=rounding,
            resume=resume,
            overwrite=overwrite,
            tensorboard=tensorboard,
            cache=default_folder("crops") if cached else None,
        )
    except KeyboardInterrupt:
        if is_follower():
            return
        # A state that was there before is that of this run only if this run went on with it.
        if _saved_at(out / STATE) in (None, None if resume else saved):
            raise
        raise InterruptedRun from None
    if is_follower():
        return
    outcome = finish(out, places, split, bundle=bundle, device=device, cached=cached, overwrite=overwrite)
    if outcome.status:
        raise typer.Exit(outcome.status)


def learn(split: Split, recipe: Recipe, out: Path, **options: Any) -> None:
    """Trains, and shows how it goes.

    Args:
        split: a data set with training crops.
        recipe: what to learn and how.
        out: folder of the run.
        options: of `reidkit.train.loop.train`.
    """
    from reidkit.train.callbacks import Callbacks
    from reidkit.train.loop import train as run
    from reidkit.train.parallel import is_follower

    if is_follower():
        run(split, recipe, out, **options)
        return
    with TrainingTable(recipe) as table:
        callbacks = Callbacks(console.note, table.on_decode, table.on_step, table.on_measured)
        trained = run(split, recipe, out, callbacks=callbacks, **options)
    best = trained.best
    measured = "" if best is None else f", best mAP {best.mean_ap:.1%} and rank-1 {best.rank1:.1%} at step {best.step}"
    console.say(
        f"trained on {trained.crops} crops of {trained.identities} identities: {trained.steps} steps in "
        f"{trained.seconds:.0f} s{measured}; wrote {trained.checkpoint}"
    )


def _quantized(name: str, init: Path | None, *, model: str | None, overrides: Sequence[str]) -> tuple[Recipe, Rounding]:
    """A recipe for eight bits, for the network of a bundle; and where the engine rounds that bundle's graph."""
    from reidkit.train.quantized_start import check_bundle

    check_bundle(init)
    assert init is not None
    bundle = open_bundle(init)
    manifest = bundle.manifest
    if manifest.architecture is None or bundle.weights is None:
        raise ModelError(
            f"{init} is a graph, which cannot be trained",
            got="a graph without an architecture",
            expected="a bundle with an architecture and weights",
            fix="of a known network, `reid import FILE.onnx --architecture NAME` makes one",
        )
    recipe = load_recipe(name, model=model, overrides=overrides, begins_with=(manifest.architecture, manifest.input))
    assert recipe.quantization is not None
    return recipe, _rounding(bundle, recipe.quantization.engine)


def _rounding(bundle: Bundle, engine: EngineKind) -> Rounding:
    """Where an engine rounds a bundle's graph, and what its table says, if it has one: ranges, layers in float."""
    from reidkit.deploy.quantize.calibrate import quantizable_graph
    from reidkit.deploy.quantize.placement import grid_names, place, rounded_layers
    from reidkit.deploy.quantize.quantize import read_table

    graph = quantizable_graph(bundle)
    floats: tuple[str, ...] = ()
    ranges: dict[str, Range] = {}
    if bundle.calibration is not None:
        table, names = read_table(bundle), grid_names(graph)
        floats = table.floats
        ranges = {names[value]: given for value, given in table.ranges.items() if value in names}
    layers = rounded_layers(graph, place(graph, engine, floats=floats))
    return Rounding(engine, layers, floats, ranges)


def _saved_at(state: Path) -> int | None:
    return state.stat().st_mtime_ns if state.exists() else None


def _set_threads(threads: int | None, devices: int) -> None:
    """Gives PyTorch its threads; those of an environment that says how many stay, unless the option says so, too."""
    import torch

    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes of other devices, and for lightning-fabric
    elif "OMP_NUM_THREADS" in os.environ:
        return
    torch.set_num_threads(threads or max(1, available_cores() // devices))
