"""`reid train`: a recipe and a data set become a checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reidkit.cli import console, options
from reidkit.data import load_split
from reidkit.types import Task

if TYPE_CHECKING:
    from reidkit.train.loop import StepReport


def train(
    data: options.DataRoot,
    out: Annotated[Path, typer.Option("--out", help="Folder of the run: model.safetensors and log.csv.")],
    recipe: Annotated[str, typer.Option("--recipe", help="baseline, demo, or a TOML file.")] = "baseline",
    model: Annotated[
        str | None, typer.Option("--model", help="A network of `reid models` in place of the recipe's: osnet-x0.25.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Change the recipe: --set optim.epochs=20.")
    ] = None,
    task: Annotated[Task, typer.Option("--task", help="What the identities are.")] = "person",
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from the backbone of anyone's checkpoint, of the same network.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda or cuda:N.")] = "cpu",
    overwrite: options.Overwrite = False,
    data_format: options.DataFormat = None,
    variant: options.DataVariant = None,
) -> None:
    """Train a model on the training part of a data set."""
    from reidkit.train.loop import train as run_training
    from reidkit.train.recipe import load_recipe

    loaded = load_recipe(recipe, model=model, overrides=overrides or ())
    split = load_split(data, data_format, variant=variant)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console.err) as progress:
        decoding = progress.add_task("decoding", total=None, state="")
        training = progress.add_task("training", total=None, state="", start=False)
        said = [-1]  # a log file, which no bar can be drawn into, gets a line an epoch

        def on_decode(done: int, total: int) -> None:
            progress.update(decoding, completed=done, total=total, state=f"{done}/{total} crops")

        def on_step(report: "StepReport") -> None:
            state = f"epoch {report.epoch:.1f}  loss {report.loss:.3f}  {report.images_per_second:.0f} images/s"
            progress.start_task(training)
            progress.update(training, completed=report.step, total=report.steps, state=state)
            if not console.err.is_terminal and int(report.epoch) > said[0]:
                said[0] = int(report.epoch)
                console.err.print(f"step {report.step}/{report.steps}  {state}", highlight=False)

        result = run_training(
            split,
            loaded,
            out,
            device=device,
            task=task,
            init=init,
            overwrite=overwrite,
            on_decode=on_decode,
            on_step=on_step,
        )
    console.say(
        f"trained on {result.crops} crops of {result.identities} identities: {result.steps} steps in "
        f"{result.seconds:.0f} s; wrote {result.checkpoint}"
    )
