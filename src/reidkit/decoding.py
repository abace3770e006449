"""Many pictures to crops, in order and ahead of whoever asks for them: in threads, or in processes where that pays.

Pillow decodes and resizes without Python's lock, but opens files, reads headers and hands out pixels with it: a few
cores are all that threads can use. A worker process is a fresh interpreter that runs `serve`, and nothing of the user's
script. It takes names of files through one pipe and gives crops through another, which is read without the lock.
"""

import logging
import os
import pickle
import signal
import sys
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from queue import SimpleQueue
from subprocess import PIPE, Popen, TimeoutExpired

import numpy as np
from jaxtyping import UInt8

from reidkit import imaging
from reidkit.errors import ConfigError, ImageError, ReidkitError
from reidkit.types import InputSpec

Decoded = UInt8[np.ndarray, "height width 3"] | ImageError

_WORTH_PROCESSES = 2048  # pictures: a process takes as long to start as several hundred of them to decode
_MOST = 32  # decode more crops a second than one process can take in
_CHUNK = 16  # pictures a message to a process
_READY = b"reidkit\n"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_logger = logging.getLogger(__name__)


def stream_crops(
    sources: Sequence[Path | str],
    spec: InputSpec,
    *,
    workers: int | None = None,
    ahead: int = 256,
    processes: bool | None = None,
) -> Generator[Decoded, None, None]:
    """Decodes and resizes pictures side by side, in order, at most `ahead` of them before they are asked for.

    A picture that cannot be decoded comes as its ImageError, in its place: the caller says what that means. No worker
    outlives the generator, whether it ends, fails or is closed.

    Args:
        sources: picture files.
        spec: size and filter.
        workers: that decode at the same time; None takes one per processor core this process may use, 32 at most.
        ahead: crops decoded ahead of the consumer.
        processes: whether the workers are processes or threads, which give the same crops and errors. None takes
            processes for 2,048 pictures or more, unless there is one worker. Where they cannot be started, the log
            says so and threads decode.

    Raises:
        ConfigError: `ahead` is below 1.
        ReidkitError: a worker process died.
    """
    if ahead < 1:
        raise ConfigError("Cannot decode that few pictures ahead", got=ahead, expected="1 or more")
    workers = workers or min(imaging.available_cores(), _MOST)
    if processes is None:
        processes = workers > 1 and len(sources) >= _WORTH_PROCESSES
    with (
        _started(workers if processes else 0) as crew,
        ThreadPoolExecutor(workers, thread_name_prefix="reidkit-decode") as pool,
    ):
        size = max(1, min(_CHUNK, ahead // (2 * workers))) if crew else 1
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in crew:
            idle.put(worker)

        def load(chunk: Sequence[Path | str]) -> list[Decoded]:
            if not crew:
                return [_load(source, spec) for source in chunk]
            worker = idle.get()
            try:
                return worker.load(chunk, spec)
            finally:
                idle.put(worker)

        queue: deque[Future[list[Decoded]]] = deque()
        asked = 0

        def ask(given: int) -> None:
            nonlocal asked
            while asked < len(sources) and min(asked + size, len(sources)) <= given + ahead:
                queue.append(pool.submit(load, sources[asked : asked + size]))
                asked += size

        try:
            ask(0)
            decoded: deque[Decoded] = deque()
            for given in range(1, len(sources) + 1):
                if not decoded:
                    decoded.extend(queue.popleft().result())
                item = decoded.popleft()
                ask(given)
                yield item
        finally:
            for future in queue:
                future.cancel()
            for worker in crew:
                worker.kill()


def _load(source: Path | str, spec: InputSpec) -> Decoded:
    try:
        return imaging.load_crop(source, spec)
    except ImageError as error:
        return error


@contextmanager
def _started(count: int) -> "Iterator[list[_Worker]]":
    """So many processes that are ready to decode, or none where they cannot be started."""
    with ExitStack() as stack:
        crew: list[_Worker] = []
        try:
            for _ in range(count):
                crew.append(_Worker())
                stack.callback(crew[-1].close)
            for worker in crew:
                worker.wait_until_ready()
        except OSError as error:
            _logger.warning("Pictures are decoded in threads, for processes cannot be started: %s", error)
            stack.close()
            crew = []
        yield crew


class _Worker:
    """A process that decodes. One thread at a time may use it."""

    def __init__(self) -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise OSError("the program has no Python interpreter of its own")
        # The path is this process's own: `-c` alone would put the current folder first.
        code = f"import sys; sys.path[:] = {[*map(str, sys.path)]!r}; from {__name__} import serve; serve()"
        # In a session of its own, Ctrl-C does not reach it: it is this process that decides when it ends.
        self._process = Popen(
            [sys.executable, "-c", code],
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, **_ONE_THREAD},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert isinstance(self._process.stdout, BufferedReader)
        self._files, self._crops = self._process.stdin, self._process.stdout

    def wait_until_ready(self) -> None:
        if self._crops.read(len(_READY)) != _READY:
            raise OSError(f"{sys.executable} {self._end()} before it was ready")

    def load(self, sources: Sequence[Path | str], spec: InputSpec) -> list[Decoded]:
        crops = np.empty((len(sources), spec.height, spec.width, 3), dtype=np.uint8)
        try:
            pickle.dump(([os.fspath(source) for source in sources], spec), self._files)
            self._files.flush()
            failed: set[int] = pickle.load(self._crops)  # noqa: S301 (our own process wrote it)
            if self._crops.readinto(crops.data) < crops.nbytes:
                raise EOFError
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise ReidkitError(
                "A process that decoded pictures died",
                got=f"it {self._end()}",
                fix="take fewer workers if memory has run out; one decodes without processes",
            ) from error
        crops.flags.writeable = False  # as Pillow's own arrays are
        # What a worker could not do is done here, where errors, warnings and Pillow's settings are the caller's own.
        return [_load(source, spec) if i in failed else crops[i] for i, source in enumerate(sources)]

    def _end(self) -> str:
        try:
            code = self._process.wait(timeout=1)
        except TimeoutExpired:
            return "said what was not asked for"
        return f"was killed by signal {-code}: {signal.strsignal(-code)}" if code < 0 else f"ended with status {code}"

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Ends it. No thread may be using it any more."""
        self.kill()
        with suppress(OSError):  # a task that it no longer took
            self._files.close()
        self._crops.close()
        self._process.wait()


def serve() -> None:
    """Decodes what comes through standard input until that ends: what a worker process runs."""
    files = sys.stdin.buffer
    given = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints does not come between the crops
    warnings.simplefilter("error")
    with suppress(EOFError, BrokenPipeError):
        given.write(_READY)
        while True:
            given.flush()
            sources, spec = pickle.load(files)  # noqa: S301 (the process that started this one wrote it)
            crops = np.zeros((len(sources), spec.height, spec.width, 3), dtype=np.uint8)
            failed = set()
            for i, source in enumerate(sources):
                try:
                    crops[i] = imaging.load_crop(source, spec)
                except Exception:  # also a warning, and whatever else is not the picture's fault
                    failed.add(i)
            pickle.dump(failed, given)
            given.write(crops.data)
    os._exit(0)  # what could not be given any more need not be
