"""Ctrl-C as a wish that a run grants between two steps."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_logger = logging.getLogger(__name__)


@contextmanager
def interrupts() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a step can end in peace; the second one stops at once.

    Handlers are as before when the block ends. A signal that is ignored stays so: a shell that starts a run in the
    background wants its Ctrl-C to pass it by.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals go to the main thread, and only it may set handlers
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    earlier = {number: handler for number, handler in found.items() if handler not in (signal.SIG_IGN, None)}

    def ask(number: int, _: object) -> None:
        _logger.info("signal %d: stopping after this step", number)
        stop.set()
        signal.signal(number, earlier[signal.Signals(number)])

    for number in earlier:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
