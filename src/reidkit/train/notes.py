"""What a recipe says and does not do: told before a run, since nothing in its outcome would show it."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from reidkit.train.recipe import Recipe, Stage
from reidkit.train.settings import Augment, Loss, Mining, Optim, Validation


class _Idle(NamedTuple):
    """Settings of a table that nothing reads, and why."""

    table: str
    values: Any
    names: Sequence[str]
    reason: str


def recipe_notes(recipe: Recipe, *, init: bool, teacher: bool) -> list[str]:
    """Settings without an effect, and others that hardly are what was meant, in sentences; often none.

    A setting counts where it is not the default: so a switch can be turned off without clearing all that belongs to it.
    The run goes on, for it does what the recipe says.

    Args:
        recipe: to be run.
        init: whether the network starts from weights of another.
        teacher: whether there is one to copy from.
    """
    found = list(_said_of_validation(recipe.validation))
    for number, stage in enumerate(recipe.stages):
        place = "[before] " if number < len(recipe.stages) - 1 else ""
        found += [f"{place}{note}" for note in _said_of_stage(stage, fresh=number == 0 and not init, teacher=teacher)]
    return found


def _said_of_stage(stage: Stage, *, fresh: bool, teacher: bool) -> Iterator[str]:
    mines, compares, optim = stage.mining.round_epochs > 0, stage.loss.compares, stage.optim
    if mines or not compares:
        reason = "batches are mined" if mines else "no loss compares crops, and batches are plain"
        yield from _idle(_Idle("batches", stage.batches, ["balance"], reason))
    for part in (*_of_mining(stage.mining), *_of_augment(stage.augment), *_of_loss(stage.loss), *_of_optim(optim)):
        yield from _idle(part)
    yield from _said_of_copying(stage.loss, teacher=teacher)
    if mines and not compares:
        yield "mining looks for triplets, and no loss compares crops: set the weight of one above 0"
    late = [f"{step:g}" for step in optim.steps if step >= optim.epochs]
    if optim.schedule == "steps" and late:
        yield f"optim.steps has {', '.join(late)}, which the stage of {optim.epochs:g} epochs does not reach"
    if fresh and optim.freeze_epochs > 0:
        yield "optim.freeze_epochs holds a backbone of random weights still: give --init, or set it to 0"


def _said_of_validation(validation: Validation) -> Iterator[str]:
    if validation.every == 0:
        yield from _idle(_Idle("validation", validation, _others(validation, "every"), "validation.every is 0"))
    elif validation.on == "test":
        yield from _idle(_Idle("validation", validation, ["identities"], "nobody is held out"))


def _said_of_copying(loss: Loss, *, teacher: bool) -> Iterator[str]:
    copied, table = loss.distillation, "loss.distillation"
    if not teacher:
        asked = _others(copied) if copied.weight else _others(copied, "weight")  # a weight of 0 asks for nothing
        yield from _idle(_Idle(table, copied, asked, "there is no --teacher"))
    elif copied.weight == 0:
        yield from _idle(_Idle(table, copied, ["kind", "temperature"], f"{table}.weight is 0"))
    elif copied.relation_weight == 0:
        yield from _idle(_Idle(table, copied, ["relation_temperature"], f"{table}.relation_weight is 0"))


def _of_mining(mining: Mining) -> Iterator[_Idle]:
    if mining.round_epochs == 0:
        yield _Idle("mining", mining, _others(mining, "round_epochs"), "mining.round_epochs is 0")


def _of_augment(augment: Augment) -> Iterator[_Idle]:
    for chance, names in (
        ("affine", ("rotation", "zoom", "shear")),
        ("color", ("brightness", "contrast", "saturation", "hue")),
        ("erase", ("erase_max",)),
    ):
        if getattr(augment, chance) == 0:
            yield _Idle("augment", augment, names, f"augment.{chance} is 0")


def _of_loss(loss: Loss) -> Iterator[_Idle]:
    for name in ("identity", "triplet", "circle", "contrastive"):
        part = getattr(loss, name)
        if part.weight == 0:
            yield _Idle(f"loss.{name}", part, _others(part, "weight"), f"loss.{name}.weight is 0")
    if loss.identity.weight > 0 and loss.identity.kind == "softmax":
        yield _Idle("loss.identity", loss.identity, ["scale", "margin"], 'loss.identity.kind is "softmax"')


def _of_optim(optim: Optim) -> Iterator[_Idle]:
    if optim.kind != "sgd":
        yield _Idle("optim", optim, ["momentum"], f'optim.kind is "{optim.kind}"')
    if optim.schedule != "steps":
        yield _Idle("optim", optim, ["steps", "gamma"], f'optim.schedule is "{optim.schedule}"')
    if optim.warmup_epochs == 0:
        yield _Idle("optim", optim, ["warmup_start"], "optim.warmup_epochs is 0")


def _idle(part: _Idle) -> Iterator[str]:
    default = type(part.values)()
    changed = [name for name in part.names if getattr(part.values, name) != getattr(default, name)]
    if changed:
        names = " and ".join(f"{part.table}.{name}" for name in changed)
        yield f"{names} {'does' if len(changed) == 1 else 'do'} nothing: {part.reason}"


def _others(table: Any, *names: str) -> list[str]:
    return [item.name for item in fields(table) if item.name not in names]
