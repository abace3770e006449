"""Runs that take a second: people of a few pixels, and a ResNet of one narrow block a stage."""

import csv
import signal
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from reidkit import architecture
from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.models import resnet
from reidkit.train.loop import train
from reidkit.train.recipe import Recipe
from reidkit.train.settings import Augment, Batches, Optim
from reidkit.train.step import Step
from reidkit.types import Crop, InputSpec, Split

PEOPLE, PICTURES = 6, 6
TINY = ModelSpec(ResNetSpec(), HeadSpec(pooling="average"))
"""To be built within `narrow_networks`."""

RECIPE = Recipe(
    input=InputSpec(32, 16),
    model=TINY,
    batches=Batches(3, 2),
    augment=Augment(pad=2, erase=0.3),
    optim=Optim(kind="sgd", epochs=0.7, lr=0.02, warmup_epochs=0.2),
    amp="off",
)
"""Four steps of 6 crops out of 36."""


def draw_people(folder, *, people=PEOPLE, pictures=PICTURES, seed=0):
    """People in coats of two colours, each seen once by every camera, under light and noise that change."""
    rng = np.random.default_rng(seed)
    for pid, colors in enumerate(rng.uniform(40, 215, (people, 2, 3))):
        for i in range(pictures):
            picture = np.repeat(colors, 16, axis=0)[:, None].repeat(16, axis=1)
            picture = picture * rng.uniform(0.7, 1.3) + rng.normal(0, 25, picture.shape)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{pid}_{i}.png")
    return people_in(folder)


def people_in(folder):
    """What `draw_people` has drawn."""
    names = [path.stem.split("_") for path in sorted(folder.iterdir())]
    return tuple(Crop(folder / f"{pid}_{i}.png", 10 * int(pid), int(i)) for pid, i in names)


@contextmanager
def narrow_networks():
    """Within it a ResNet-18 has a block a stage and few channels: nothing here depends on how much it learns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(architecture.STAGE_BLOCKS, 18, (1, 1, 1, 1))
        for module in (architecture, resnet):
            patch.setattr(module, "STAGE_WIDTHS", (8, 8, 16, 16))
        patch.setattr(resnet, "_STEM_WIDTH", 8)
        yield


def split_of(crops, root, **others):
    return Split("folder", root, train=crops, **others)


@contextmanager
def interrupted(every=1):
    """Sends Ctrl-C after so many steps of each run."""
    learn, taken = Step.__call__, []

    def interrupting(self, crops, labels):
        learn(self, crops, labels)
        taken.append(1)
        if len(taken) % every == 0:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", interrupting)
        yield


def train_in_pieces(split, recipe, out, *, every=1, **options):
    """Trains, interrupted after so many steps again and again; the run, and how many pieces it took."""
    with interrupted(every):
        for pieces in range(1, 100):
            try:
                return train(split, recipe, out, resume=pieces > 1, **options), pieces
            except KeyboardInterrupt:
                assert (out / "state.pt").is_file()
    raise AssertionError("the run never ends")


def tensors(file):
    return load_file(file)


def log_rows(out, *, without=("images_per_second",)):
    with (out / "log.csv").open(newline="") as stream:
        return [{name: value for name, value in row.items() if name not in without} for row in csv.DictReader(stream)]


def with_optim(recipe, **changes):
    return replace(recipe, optim=replace(recipe.optim, **changes))
