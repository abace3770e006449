"""What a run tells those who watch it."""

from collections.abc import Callable
from dataclasses import dataclass

from reidkit.train.journal import Measured, StepReport
from reidkit.types import Progress, no_progress


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Who is told what happens.

    Attributes:
        on_note: what a user should know, in a sentence.
        on_decode: progress of decoding.
        on_step: where the run is, every now and then.
        on_measured: what a validation found.
    """

    on_note: Callable[[str], None] = lambda _: None
    on_decode: Progress = no_progress
    on_step: Callable[[StepReport], None] = lambda _: None
    on_measured: Callable[[Measured], None] = lambda _: None


SILENT = Callbacks()
"""Nobody."""
