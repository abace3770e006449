"""Scalars for TensorBoard. Only this file needs the package tensorboard."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

_FLUSH_SECONDS = 10  # a run that is killed loses no more


class Events:
    """Writes scalars, one folder a stage: in TensorBoard a run of its own, whose steps begin at 1.

    Args:
        folder: of all stages; made with the first scalar.
        after: stage and step that the state of a resumed run was saved at. TensorBoard shows nothing that an earlier
            attempt wrote after it, or at all when this is None.
    """

    def __init__(self, folder: Path, after: tuple[int, int] | None) -> None:
        self._folder = folder
        self._after = after
        self._writers: dict[int, SummaryWriter] = {}

    def add(self, stage: int, step: int, values: Mapping[str, float]) -> None:
        """Writes a value under each name."""
        if stage not in self._writers:
            purged = self._after[1] + 1 if self._after is not None and self._after[0] == stage else 0
            self._writers[stage] = SummaryWriter(
                self._folder / f"stage-{stage}", purge_step=purged, flush_secs=_FLUSH_SECONDS
            )
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is still held back."""
        for writer in self._writers.values():
            writer.close()
