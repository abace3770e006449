"""Many pictures to crops, in order and ahead of whoever asks for them: in threads, or in processes where that pays.

Pillow decodes and resizes without Python's lock, but opens files, reads headers and hands out pixels with it: a few
cores are all that threads can use. A worker process is a fresh interpreter that runs `serve`, and nothing of the user's
script. It takes names of files through one pipe and gives crops through another, which is read without the lock.
What it cannot decode, for whatever reason, is decoded again by the process that asked: errors, warnings and what Pillow
is lenient about are those of that process. Limits of size go to workers; formats that it took out of Pillow do not.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from queue import SimpleQueue
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from reidkit import imaging
from reidkit.errors import ConfigError, ImageError, ReidkitError
from reidkit.types import InputSpec

Decoded = UInt8[np.ndarray, "height width 3"] | ImageError

_WORTH_PROCESSES = 2048  # pictures: a process takes as long to start as several hundred of them to decode
_THREADS_REACH = 2  # cores: what threads can use of them
_MOST = 32  # decode more crops a second than one process can take in
_CHUNK = 16  # pictures a message to a process
_READY = b"reidkit 1\n"  # one more with each change of the messages: after an update workers are newer than who asks
_PATIENCE = 60.0  # seconds until a process has to be ready
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
    outlives the generator, whether it ends, fails or is closed. Crops may share memory with their neighbours: whoever
    keeps one of many copies it.

    Args:
        sources: picture files.
        spec: size and filter.
        workers: that decode at the same time, `ahead` at most; None takes one per processor core this process may use,
            32 at most.
        ahead: crops decoded ahead of the consumer.
        processes: whether the workers are processes or threads, which give the same crops and errors. None takes
            processes for 2,048 pictures or more and three workers or more. Where they cannot be started, the log says
            so and threads decode.

    Raises:
        ConfigError: `ahead` or `workers` is below 1.
        ReidkitError: a worker process died.
    """
    if ahead < 1:
        raise ConfigError("Cannot decode that few pictures ahead", got=ahead, expected="1 or more")
    if workers is not None and workers < 1:
        raise ConfigError("So few workers cannot decode", got=workers, expected="1 or more")
    workers = min(workers or min(imaging.available_cores(), _MOST), ahead, max(len(sources), 1))
    if processes is None:
        processes = workers > _THREADS_REACH and len(sources) >= _WORTH_PROCESSES
    ended = threading.Event()
    with (
        _started(workers if processes else 0) as crew,
        ThreadPoolExecutor(workers, thread_name_prefix="reidkit-decode") as pool,
    ):
        size = max(1, min(_CHUNK, ahead // (2 * workers))) if crew else 1
        idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in crew:
            idle.put(worker)

        def load(chunk: Sequence[Path | str]) -> Sequence[Decoded | None]:
            if not crew:
                return [_load(source, spec) for source in chunk]
            worker = idle.get()
            try:
                decoded = worker.load(chunk, spec)
            finally:
                idle.put(worker)
            for i, source in enumerate(chunk):
                if decoded[i] is None and not ended.is_set():
                    decoded[i] = _load(source, spec)
            return decoded

        queue: deque[Future[Sequence[Decoded | None]]] = deque()
        asked = 0

        def ask(given: int) -> None:
            nonlocal asked
            while asked < len(sources) and min(asked + size, len(sources)) <= given + ahead:
                queue.append(pool.submit(load, sources[asked : asked + size]))
                asked += size

        try:
            ask(0)
            decoded: deque[Decoded | None] = deque()
            for given in range(1, len(sources) + 1):
                if not decoded:
                    decoded.extend(queue.popleft().result())
                item = decoded.popleft()
                assert item is not None
                ask(given)
                yield item
        finally:
            ended.set()
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
        # What is printed from here on goes beside the crops. The path is this process's own: `-c` alone would put the
        # current folder first. It is this process that decides when the worker ends, and not Ctrl-C. As with
        # multiprocessing, Python's own flags are those of this process.
        code = (
            "import os, signal, sys; crops = os.dup(1); os.dup2(2, 1); signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"sys.path[:] = {[*map(str, sys.path)]!a}; from {__name__} import serve; serve(crops)"
        )
        flags: list[str] = subprocess._args_from_interpreter_flags()  # pyright: ignore[reportAttributeAccessIssue]
        self._process = Popen(
            [sys.executable, *flags, "-c", code],
            stdin=PIPE,
            stdout=PIPE,
            stderr=None if _is_open(2) else DEVNULL,
            env={**os.environ, **_ONE_THREAD},
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert isinstance(self._process.stdout, BufferedReader)
        self._files, self._crops = self._process.stdin, self._process.stdout

    def wait_until_ready(self) -> None:
        impatience = threading.Timer(_PATIENCE, self.kill)
        impatience.start()
        try:
            answer = self._crops.read(len(_READY))
        finally:
            impatience.cancel()
        if answer != _READY:
            raise OSError(f"{sys.executable} {self._end()} before it was ready")

    def load(self, sources: Sequence[Path | str], spec: InputSpec) -> list[Decoded | None]:
        """Crops of a few pictures; None for those that the process could not decode."""
        files = [str(Path(source).absolute()) for source in sources]  # this process may have changed folders since
        crops = np.empty((len(sources), spec.height, spec.width, 3), dtype=np.uint8)
        try:
            pickle.dump((files, spec, Image.MAX_IMAGE_PIXELS, imaging.MAX_PIXELS), self._files)
            self._files.flush()
            failed: set[int] = pickle.load(self._crops)  # noqa: S301 (our own process wrote it)
            if self._crops.readinto(crops.data) < crops.nbytes:
                raise EOFError
        except Exception as error:  # whatever comes of half a message
            raise ReidkitError(
                "A process that decoded pictures died",
                got=f"it {self._end()}, between {files[0]} and {files[-1]}",
                fix="take fewer workers if memory has run out; one decodes without processes",
            ) from error
        crops.flags.writeable = False  # as Pillow's own arrays are
        return [None if i in failed else crop for i, crop in enumerate(crops)]

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


def serve(crops: int) -> None:
    """Decodes what comes through standard input until that ends: what a worker process runs.

    Args:
        crops: descriptor of the pipe that they go through.
    """
    files, given = sys.stdin.buffer, os.fdopen(crops, "wb")
    warnings.simplefilter("error")
    with suppress(EOFError, BrokenPipeError):
        given.write(_READY)
        while True:
            given.flush()
            sources, spec, Image.MAX_IMAGE_PIXELS, imaging.MAX_PIXELS = pickle.load(files)  # noqa: S301 (our parent's)
            decoded = np.zeros((len(sources), spec.height, spec.width, 3), dtype=np.uint8)
            failed = set()
            for i, source in enumerate(sources):
                try:
                    decoded[i] = imaging.load_crop(source, spec)
                except Exception:  # also a warning, and whatever else is not the picture's fault
                    failed.add(i)
            pickle.dump(failed, given)
            given.write(decoded.data)
    os._exit(0)  # what could not be given any more need not be


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
