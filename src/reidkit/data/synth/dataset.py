"""A whole data set of drawn pedestrians, on disk as Market-1501 is."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from reidkit.atomic import check_free, output_directory
from reidkit.data.synth.camera import draw_camera
from reidkit.data.synth.crop import bad_framing, draw_crop, good_framing
from reidkit.data.synth.identity import Stream, draw_identity, generator
from reidkit.data.synth.scene import Scene, draw_scene
from reidkit.errors import ConfigError, ReidkitError
from reidkit.imaging import available_cores
from reidkit.types import Progress, no_progress

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
MARKER = ".reidkit-synth"
"""By this file a folder is known to be drawn, so that `overwrite` removes no other."""

MAX_IDENTITIES, MAX_CAMERAS, MAX_CROPS = 9999, 9, 999
_CHUNK = 32
_WORTH_A_PROCESS = 150
_FIRST_PASSER_BY, _PASSERS_BY = 10**9, 60  # beyond every identity and distractor


@dataclass(frozen=True, slots=True)
class _Job:
    """One crop to draw: where it goes and whom it shows."""

    folder: str
    stream: Stream
    number: int  # of the identity
    pid: str
    camera: int
    index: int

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.pid}_c{self.camera}s1_{151 + 25 * self.index:06d}_00.jpg"


def synthesize(
    out: Path | str,
    *,
    identities: int = 60,
    cameras: int = 4,
    crops_per_camera: int = 8,
    seed: int = 0,
    test_fraction: float = 0.5,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Path:
    """Draws pedestrians in street cameras and writes them as Market-1501 is written.

    Every identity is seen by every camera. The first identities train, the rest test; a test identity gives one query
    a camera, and its other crops are gallery. The gallery also holds distractors (pid 0000: people nobody asks for,
    each another one) and junk (pid -1: badly cut boxes), one of each for about every ten and every twenty gallery
    crops. Crops are JPEG, 64 pixels wide and 128 high. The same arguments give the same bytes with any number of
    workers, on one machine with one version of numpy and Pillow.

    Args:
        out: folder to make; it appears when everything is drawn, or not at all.
        identities: people with a pid of their own, from 1.
        cameras: streets that are watched.
        crops_per_camera: of one identity in one camera.
        seed: 0 or above; another seed draws other people in other streets.
        test_fraction: share of the identities that test.
        workers: processes; None takes one a core where the work is worth it, 1 draws in this process.
        overwrite: replace a folder that stands at `out`, when it is empty or was drawn.
        progress: called with crops done and crops in all.

    Returns:
        The folder, as `out`.

    Raises:
        ConfigError: a number is out of its range, or the identities do not suffice for both sides.
        OutputError: something stands at `out` and may not be replaced, or the disk refuses.
        ReidkitError: a worker process died.
    """
    _check(identities, cameras, crops_per_camera, seed, workers)
    test = _test_identities(identities, test_fraction)
    jobs = _plan(identities, test, cameras, crops_per_camera)
    chunks = [
        jobs_of_camera[start : start + _CHUNK]
        for camera in range(1, cameras + 1)
        for jobs_of_camera in [[job for job in jobs if job.camera == camera]]
        for start in range(0, len(jobs_of_camera), _CHUNK)
    ]
    processes = workers or max(1, min(available_cores(), len(jobs) // _WORTH_A_PROCESS))
    check_free(out, overwrite=overwrite, marker=MARKER)
    # The processes run before there is anything to leave behind, should they die.
    with (
        _painters(seed, chunks, processes) as draw,
        output_directory(out, marker=MARKER, overwrite=overwrite) as folder,
    ):
        for name in (TRAIN, QUERY, GALLERY):
            (folder / name).mkdir()
        done = 0
        progress(done, len(jobs))
        with closing(draw(folder)) as drawn:  # nothing is written any more when the folder gets its name or is removed
            for count in drawn:
                done += count
                progress(done, len(jobs))
    return Path(out)


def _check(identities: int, cameras: int, crops_per_camera: int, seed: int, workers: int | None) -> None:
    ranges = [
        ("identities", identities, 4, MAX_IDENTITIES, "Market-1501 writes a pid with four digits"),
        (
            "cameras",
            cameras,
            2,
            MAX_CAMERAS,
            "a person is looked for in another camera, and Market-1501 writes one digit",
        ),
        ("crops_per_camera", crops_per_camera, 2, MAX_CROPS, "one is the query, the others are gallery"),
        ("seed", seed, 0, 2**63 - 1, None),
        ("workers", 1 if workers is None else workers, 1, 1024, None),
    ]
    for name, value, least, most, why in ranges:
        if not least <= value <= most:
            expected = f"{least} to {most}" + (f" ({why})" if why else "")
            raise ConfigError(
                f"{name} is out of range", got=value, expected=expected, fix="choose a number in that range"
            )


def _test_identities(identities: int, fraction: float) -> int:
    test = round(identities * fraction) if 0.0 < fraction < 1.0 else 0
    if test < 2 or identities - test < 2:
        raise ConfigError(
            "The identities cannot be split into train and test",
            got=f"{identities} identities with test_fraction {fraction}",
            expected="at least 2 identities on each side",
            fix="take more identities, or a test_fraction nearer to 0.5",
        )
    return test


def _plan(identities: int, test: int, cameras: int, crops: int) -> list[_Job]:
    jobs = []
    for pid in range(1, identities + 1):
        trains = pid <= identities - test
        for camera in range(1, cameras + 1):
            for index in range(crops):
                folder = TRAIN if trains else QUERY if index == 0 else GALLERY
                jobs.append(_Job(folder, Stream.PERSON, pid - 1, f"{pid:04d}", camera, index))
    gallery = test * cameras * (crops - 1)
    # Nobody else wears what a distractor wears: their numbers go on where the identities end.
    for stream, pid, count in ((Stream.DISTRACTOR, "0000", gallery // 10), (Stream.JUNK, "-1", gallery // 20)):
        for i in range(max(count, 2)):
            number = identities + i if stream is Stream.DISTRACTOR else i % identities
            jobs.append(_Job(GALLERY, stream, number, pid, i % cameras + 1, i // cameras))
    return jobs


@contextmanager
def _painters(
    seed: int, chunks: list[list[_Job]], processes: int
) -> Iterator[Callable[[Path], Generator[int, None, None]]]:
    """What draws the chunks into a folder, here or in processes that run by then."""
    if processes == 1:
        yield partial(_draw_here, seed, chunks)
        return
    # A fresh interpreter for each worker: forking a process that runs threads (torch, BLAS) can hang.
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    try:
        cameras = sorted({chunk[0].camera for chunk in chunks})
        scenes = dict(zip(cameras, pool.map(draw_scene, [seed] * len(cameras), cameras), strict=True))
        yield partial(_draw_apart, pool, seed, scenes, chunks)
    except BrokenProcessPool as error:
        raise ReidkitError(
            "A process that drew pictures died",
            got=str(error),
            fix="take workers=1; or, in a script of your own, call this below `if __name__ == '__main__':`",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _draw_here(seed: int, chunks: list[list[_Job]], folder: Path) -> Generator[int, None, None]:
    scenes: dict[int, Scene] = {}
    for chunk in chunks:
        camera = chunk[0].camera
        if camera not in scenes:
            scenes = {camera: draw_scene(seed, camera)}
        yield _draw_chunk(seed, folder, scenes[camera], chunk)


def _draw_apart(
    pool: ProcessPoolExecutor, seed: int, scenes: dict[int, Scene], chunks: list[list[_Job]], folder: Path
) -> Generator[int, None, None]:
    drawn = [pool.submit(_draw_chunk, seed, folder, scenes[chunk[0].camera], chunk) for chunk in chunks]
    try:
        for future in as_completed(drawn):
            yield future.result()
    finally:
        for future in drawn:
            future.cancel()
        wait(drawn)


def _draw_chunk(seed: int, folder: Path, scene: Scene, jobs: list[_Job]) -> int:
    """Draws and writes the crops of one camera; returns how many."""
    camera = draw_camera(seed, jobs[0].camera)
    for job in jobs:
        rng = generator(seed, job.stream, job.number, job.camera, job.index)
        framing = bad_framing(rng) if job.stream is Stream.JUNK else good_framing(rng)
        passer_by = draw_identity(seed, _FIRST_PASSER_BY + int(rng.integers(_PASSERS_BY)))
        (folder / job.name).write_bytes(
            draw_crop(scene, camera, draw_identity(seed, job.number), framing, passer_by, rng)
        )
    return len(jobs)
