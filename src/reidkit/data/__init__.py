"""Data sets on disk, parsed to one `Split`; and a data set drawn by program."""

from reidkit.data.inspection import Finding, Inspection, SubsetFacts, inspect_split
from reidkit.data.loading import FORMATS, is_data_set, load_split

__all__ = ["FORMATS", "Finding", "Inspection", "SubsetFacts", "inspect_split", "is_data_set", "load_split"]
