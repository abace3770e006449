"""The latency table: what is timed, how often, and what each row says."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import reidkit
from reidkit.deploy import bench as bench_module
from reidkit.deploy.bench import BATCHES, bench, machine
from reidkit.errors import ConfigError, ImageError, InputError
from reidkit.manifest import Latency
from reidkit.runtime.engine_facts import EngineFacts, Profile
from reidkit.types import EmbedderSpec, InputSpec

SPEC = EmbedderSpec(InputSpec(8, 4), 2, False, None, "fake", "float16", "cuda:3")


class Fake:
    """Remembers what it was given."""

    def __init__(self, spec=SPEC):
        self.spec = spec
        self.calls = []

    def embed(self, crops):
        self.calls.append(crops)
        return np.zeros((len(crops), 2), np.float32)


@pytest.fixture
def clock(monkeypatch):
    """A clock of its own; an engine's call can be made to take any time."""

    class Clock:
        now = 0.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(bench_module, "time", clock)
    return clock


def slow_engine(clock, durations):
    """An engine whose calls take the given seconds in turn; the last one for ever."""

    class Slow(Fake):
        def embed(self, crops):
            clock.now += durations[min(len(self.calls), len(durations) - 1)]
            return super().embed(crops)

    return Slow()


def test_two_rows_a_batch_size_first_without_then_with_decoding():
    progress = []
    rows = bench(Fake(), batches=[3, 1], seconds=0.0, progress=lambda done, total: progress.append((done, total)))
    assert [(row.batch, row.decode) for row in rows] == [(3, False), (3, True), (1, False), (1, True)]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {(row.runtime, row.precision, row.device) for row in rows} == {("fake", "float16", "cuda:3")}
    assert {row.machine for row in rows} == {machine("cuda:3")}
    for row in rows:
        assert row.runs == 5
        assert 0 < row.median_ms <= row.p90_ms
        assert row.images_per_second == pytest.approx(row.batch / (row.median_ms / 1e3))


def test_at_least_five_runs_after_a_warm_up_of_two():
    embedder = Fake()
    bench(embedder, batches=[2], seconds=0.0)
    assert [len(crops) for crops in embedder.calls] == [2] * 14
    assert all(crops.shape == (2, 8, 4, 3) and crops.dtype == np.uint8 for crops in embedder.calls)


def test_the_figures_by_hand(clock):
    engine = slow_engine(clock, [9.0, 9.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.01])
    row = bench(engine, batches=[4], seconds=1.0)[0]
    # The two of the warm-up do not count; 0.1 to 0.5 s are five runs and more than a second.
    expected = Latency("fake", "float16", "cuda:3", "a card", 4, False, 300.0, 460.0, 4 / 0.3, 5)
    assert (row.runtime, row.batch, row.decode, row.runs) == ("fake", 4, False, 5)
    assert row.median_ms == pytest.approx(expected.median_ms)
    assert row.p90_ms == pytest.approx(expected.p90_ms)
    assert row.images_per_second == pytest.approx(expected.images_per_second)


def test_a_fast_engine_is_timed_for_the_seconds_given(clock):
    rows = bench(slow_engine(clock, [0.0625]), batches=[1], seconds=2.0)
    assert [row.runs for row in rows] == [32, 32]


def test_a_slow_engine_is_still_timed_five_times(clock):
    rows = bench(slow_engine(clock, [30.0]), batches=[1], seconds=1.0)
    assert [row.runs for row in rows] == [5, 5]


class OnCard(Fake):
    """Has a clock of its own, which takes 4 crops at most, and an engine from a store."""

    device_memory = 5_000_000
    facts = EngineFacts(
        *("tensorrt", "10.0.1", "float16", "parser", "0" * 64, (Profile(1, 4, 4),)), size=3_000_000, build_seconds=61.5
    )

    def device_seconds(self, batch, runs):
        if batch > 4:
            raise InputError("The engine does not take so many crops at once")
        return [0.001 * batch + 0.0001 * run for run in range(runs)]


def test_what_only_the_engine_knows_is_asked_of_it():
    rows = bench(OnCard(), batches=[2, 5], seconds=0.0)
    assert {(row.via, row.device_memory, row.engine_bytes, row.build_seconds) for row in rows} == {
        ("parser", 5_000_000, 3_000_000, 61.5)
    }
    # The median of 2.0 to 2.4 ms; decoding is not the device's, and 5 crops are more than it takes at once.
    assert [row.gpu_ms for row in rows] == [pytest.approx(2.2), None, None, None]
    row = bench(Fake(), batches=[2], seconds=0.0)[0]
    assert (row.via, row.gpu_ms, row.device_memory, row.engine_bytes, row.build_seconds) == (None,) * 5


def test_the_device_times_as_many_runs_as_the_wall_but_a_thousand_at_most(clock):
    asked = []

    class Counting(OnCard):
        def embed(self, crops):
            clock.now += 0.001
            return super().embed(crops)

        def device_seconds(self, batch, runs):
            asked.append(runs)
            return super().device_seconds(batch, runs)

    bench(Counting(), batches=[1], seconds=0.0)
    bench(Counting(), batches=[1], seconds=1.5)
    assert asked == [5, 1000]


@pytest.mark.parametrize("batches", [[], [0], [4, -1], [1, 0]])
def test_a_batch_below_one_is_refused(batches):
    embedder = Fake()
    with pytest.raises(ConfigError, match=r"A batch size cannot be this\n  got: \[.*\]\n  expected: 1 or above"):
        bench(embedder, batches=batches)
    assert not embedder.calls


def test_pictures_that_are_given_are_what_is_embedded(tmp_path):
    files = []
    for i, color in enumerate([(255, 0, 0), (0, 0, 255)]):
        files.append(tmp_path / f"{i}.png")
        Image.new("RGB", (20, 30), color).save(files[-1])
    embedder = Fake()
    bench(embedder, batches=[3], images=files, seconds=0.0)
    red, blue = [255, 0, 0], [0, 0, 255]
    seen = [crops[:, 0, 0].tolist() for crops in embedder.calls]
    assert seen[0] == [red, blue, red]  # too few files: they come again from the first
    assert [blue, red, blue] in seen  # and the next batch goes on where the last one stopped


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.jpg is not a picture"):
        bench(Fake(), batches=[1], images=[tmp_path / "broken.jpg"], seconds=0.0)


def test_without_pictures_it_draws_its_own(monkeypatch):
    sizes = []
    decode = bench_module.load_crop

    def load_crop(source, spec):
        assert source[:2] == b"\xff\xd8"  # JPEG
        sizes.append(Image.open(BytesIO(source)).size)
        return decode(source, spec)

    monkeypatch.setattr(bench_module, "load_crop", load_crop)
    embedder = Fake()
    bench(embedder, batches=[8], seconds=0.0)
    assert set(sizes) == {(8, 16)}  # width x height, twice the input
    first = embedder.calls[0]
    assert len({crop.tobytes() for crop in first}) == 8  # no two the same


def test_every_run_with_decoding_decodes_again(monkeypatch):
    decoded = []
    decode = bench_module.load_crop
    monkeypatch.setattr(bench_module, "load_crop", lambda source, spec: decoded.append(1) or decode(source, spec))
    bench(Fake(), batches=[2], seconds=0.0)
    assert len(decoded) == 2 * (1 + 2 + 5)  # once for the ready crops; then warm-up and five runs


def test_a_fixed_batch_is_timed_at_any_size(tiny_bundle):
    embedder = reidkit.load(tiny_bundle, "onnxruntime", threads=1)
    embedder.spec = replace(embedder.spec, batch=2)
    rows = bench(embedder, batches=[1, 3], seconds=0.0)
    assert [(row.batch, row.runs) for row in rows] == [(1, 5), (1, 5), (3, 5), (3, 5)]
    assert rows[0].runtime == "onnxruntime"


def test_the_usual_batches():
    assert BATCHES == (1, 4, 16, 64)
