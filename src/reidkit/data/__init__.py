"""Data sets on disk, parsed to one `Split`; and a data set drawn by program."""
