"""Random changes to whole batches of crops, on the device that trains."""

from reidkit.train.augment.augmenter import Augmenter

__all__ = ["Augmenter"]
