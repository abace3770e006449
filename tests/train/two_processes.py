"""A program that trains with two processes on the processor, several times; each process writes down what it saw.

Usage: two_processes.py FOLDER, which holds pictures in FOLDER/people as `tiny_runs.draw_people` draws them.
"""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny_runs import RECIPE, narrow_networks, people_in, split_of, with_optim

from reidkit.errors import ReidkitError
from reidkit.train.callbacks import Callbacks
from reidkit.train.journal import StepReport
from reidkit.train.loop import train
from reidkit.train.parallel import assemble, is_follower
from reidkit.train.recipe import Recipe, Stage
from reidkit.train.settings import Augment, Mining

STILL = replace(with_optim(RECIPE, epochs=1.0), augment=Augment(flip=0.0, pad=0, erase=0.0))
"""Without chance: the processes draw their own random numbers. Three steps of two processes."""

STAGES = replace(
    with_optim(RECIPE, epochs=1.0, ema=0.5),
    before=Stage(RECIPE.batches, augment=RECIPE.augment, optim=replace(RECIPE.optim, epochs=0.7)),
    mining=Mining(round_epochs=0.5),
)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    split = split_of(people_in(folder / "people"), folder / "people")
    seen: dict[str, object] = {"follower": is_follower(), "notes": []}

    def attempt(name: str, recipe: Recipe, **options: object) -> None:
        """Trains into a folder of this name; what comes of it is written down."""
        notes = seen["notes"]
        callbacks = options.pop("callbacks", Callbacks(on_note=notes.append))
        try:
            run = train(split, recipe, folder / name, devices=2, report_every=1, callbacks=callbacks, **options)
            seen[name] = run.steps
        except (ReidkitError, KeyboardInterrupt) as error:
            seen[name] = f"{type(error).__name__} {error}"

    def interrupt(report: StepReport) -> None:
        if report.stage == 2:
            signal.raise_signal(signal.SIGINT)

    def fail(report: StepReport) -> None:
        raise ReidkitError("the leader fails")

    attempt("still", STILL)
    attempt("whole", STAGES)
    attempt("pieces", STAGES, callbacks=Callbacks(on_step=interrupt))
    attempt("pieces", STAGES, resume=True)
    attempt("failed", STILL, callbacks=Callbacks(on_step=fail))
    attempt("synchronised", replace(STILL, sync_batchnorm=True))

    team = assemble("cpu", 2)
    own = [torch.full((2,), float(team.rank + 1)), torch.full((1, 3), 10.0 * (team.rank + 1))]
    team.average(own)
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, float(team.rank))
    team.equalize(layer)
    order = []
    with team.leader_first():
        order.append("leads" if team.leads else "follows")
    seen["team"] = {
        "average": [tensor.tolist() for tensor in own],
        "any": [team.any(team.rank == 1), team.any(False)],
        "gather": team.gather(f"process {team.rank}"),
        "share": team.share(lambda: f"from process {team.rank}"),
        "equalize": layer.weight.item(),
        "leader_first": order,
    }
    (folder / f"rank-{team.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    with narrow_networks():
        main(Path(sys.argv[1]))
