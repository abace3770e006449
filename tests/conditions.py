"""Conditions that several tests put a block under: no privileges, no shape checks."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jaxtyping

_NOBODY = 65534


@contextmanager
def unprivileged(folder: Path) -> Iterator[None]:
    """Runs the block as somebody to whom permissions apply, also when root runs the tests.

    The folders above `folder`, which pytest keeps to its own user, can be passed through meanwhile.
    """
    if os.geteuid() != 0:
        yield
        return
    with ExitStack() as undo:
        for parent in folder.parents:
            mode = parent.stat().st_mode
            if not mode & 0o001:
                parent.chmod(mode | 0o011)
                undo.callback(parent.chmod, mode & 0o7777)
        group = os.getegid()
        os.setegid(_NOBODY)
        undo.callback(os.setegid, group)
        os.seteuid(_NOBODY)
        undo.callback(os.seteuid, 0)
        yield


@contextmanager
def as_installed() -> Iterator[None]:
    """Runs the block without the shape and type checks of the tests, as it runs for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
