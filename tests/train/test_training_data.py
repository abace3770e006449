"""Crops as numbers, and what is said of them before a run."""

from dataclasses import replace
from types import MappingProxyType

import pytest

from reidkit.errors import ConfigError, DataError, TrainingError
from reidkit.train.recipe import Recipe, Stage
from reidkit.train.settings import Batches, Loss, Mining, TripletLoss
from reidkit.train.state import data_digest
from reidkit.train.teacher import identities_digest
from reidkit.train.training_data import TrainingData
from reidkit.types import Crop, InputSpec, Split

SPEC = InputSpec(32, 16)
PLAIN = Loss(triplet=TripletLoss(weight=0.0))


def data_of(folder, counts, *, names=None, spec=SPEC):
    """People 7, 14, ... with so many crops each."""
    crops = tuple(
        Crop(folder / f"{pid}_{i}.png", 7 * (pid + 1), i) for pid, count in enumerate(counts) for i in range(count)
    )
    split = Split("folder", folder, train=crops, pid_names=MappingProxyType(names or {}))
    return TrainingData(split, crops, spec), split


def test_crops_as_numbers(tmp_path):
    root = tmp_path / "market"
    data, split = data_of(root, [2, 1, 3], names={7: "0007", 21: "0021"})
    assert data.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert data.cameras.tolist() == [0, 1, 0, 0, 1, 2]
    assert data.names == ["0007", "14", "0021"]
    assert data.size == (32, 16)
    assert data.words == "folder market train: 3 identities, 6 crops"
    assert data.digest == data_digest(split.train, root)
    # With the data set's name: others have an identity 0007, too.
    assert data.identities == identities_digest(["folder market: 0007", "folder market: 14", "folder market: 0021"])


def test_a_part_of_the_crops(tmp_path):
    _, split = data_of(tmp_path, [2, 1, 3])
    data = TrainingData(split, [crop for crop in split.train if crop.pid != 14], SPEC)
    assert data.labels.tolist() == [0, 0, 1, 1, 1]
    assert data.names == ["7", "21"]


def test_nothing_to_learn_from(tmp_path):
    split = Split("folder", tmp_path / "people")
    with pytest.raises(DataError, match=r"people has no crops to train on\n  got: format folder\n  expected: a train"):
        TrainingData(split, (), SPEC)


@pytest.mark.parametrize(
    ("counts", "recipe", "message"),
    [
        ([9], Recipe(), r"only one identity to train on\n  got: 9 crops of one identity"),
        ([9], Recipe(loss=PLAIN), r"only one identity to train on"),
        ([4] * 5, Recipe(), r"Too few identities for a batch\n  got: 5 identities\n  expected: at least 16"),
        ([1] * 20, Recipe(), r"No identity has two crops"),
        ([1] * 20, Recipe(loss=PLAIN, before=Stage()), r"No identity has two crops"),
    ],
)
def test_data_that_a_recipe_cannot_learn_from(tmp_path, counts, recipe, message):
    with pytest.raises(TrainingError, match=message):
        data_of(tmp_path, counts)[0].check(recipe)


def test_classification_alone_takes_people_with_one_crop(tmp_path):
    assert data_of(tmp_path, [1] * 5)[0].check(Recipe(loss=PLAIN)) == []


def test_mined_groups_that_fit_in_no_batch(tmp_path):
    recipe = Recipe(batches=Batches(2, 2), mining=Mining(round_epochs=1.0, negatives=3))
    with pytest.raises(ConfigError, match="A mined query and what belongs to it do not fit in a batch"):
        data_of(tmp_path, [4] * 5)[0].check(recipe)
    data_of(tmp_path, [4] * 5)[0].check(replace(recipe, mining=Mining(negatives=3)))  # nothing is mined


def test_what_is_said_of_two_stages_is_said_once(tmp_path):
    batches = Batches(3, 4)
    notes = data_of(tmp_path, [1, 2, 8, 8, 8])[0].check(Recipe(batches=batches, before=Stage(batches=batches)))
    assert notes[0].startswith("1 of 5 identities have one crop")
    assert notes[1].startswith("1 of 5 identities have fewer than 4 crops")
    assert len(notes) == len(set(notes))
