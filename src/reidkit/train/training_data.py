"""Who is to be learned, from which crops."""

from collections.abc import Sequence

import numpy as np

from reidkit.errors import DataError
from reidkit.train.mining import check_mining
from reidkit.train.recipe import Recipe
from reidkit.train.sampler import describe_batches
from reidkit.train.state import data_digest
from reidkit.train.teacher import identities_digest
from reidkit.types import Crop, InputSpec, Split


class TrainingData:
    """The crops of a run as numbers.

    Args:
        split: the data set.
        learned: its crops to learn from.
        spec: of the crops.

    Attributes:
        labels: row of the classifier of each crop.
        cameras: of each crop.
        names: of the identities, as the data set writes them, by row of the classifier.
        identities: digest of the names.
        digest: of the crops; see `reidkit.train.state.data_digest`.
        size: height and width of the crops.
        words: what a checkpoint says of it.

    Raises:
        DataError: there is nothing to learn from.
    """

    def __init__(self, split: Split, learned: Sequence[Crop], spec: InputSpec) -> None:
        if not learned:
            raise DataError(
                f"{split.root} has no crops to train on", got=f"format {split.format}", expected="a train subset"
            )
        pids, labels = np.unique([crop.pid for crop in learned], return_inverse=True)
        self.labels = labels.astype(np.int64)
        self.cameras = np.array([crop.camid for crop in learned], dtype=np.int64)
        self.names = [split.pid_names.get(int(pid), str(pid)) for pid in pids]
        self.identities = identities_digest([f"{split.name}: {name}" for name in self.names])
        self.digest = data_digest(learned, split.root)
        self.size = (spec.height, spec.width)
        self.words = f"{split.name} train: {len(self.names)} identities, {len(self.labels)} crops"

    def check(self, recipe: Recipe) -> list[str]:
        """What a user should know before the run, in sentences.

        Raises:
            ConfigError: mined groups that fit in no batch.
            TrainingError: too few identities, or nothing that a loss could learn from.
        """
        notes: list[str] = []
        for stage in recipe.stages:
            mines = stage.mining.round_epochs > 0
            if mines:
                check_mining(stage.mining, stage.batches)
            if mines or stage.loss.compares or len(self.names) == 1:
                notes += describe_batches(self.labels, self.cameras, stage.batches, metric=stage.loss.compares)
        return list(dict.fromkeys(notes))
