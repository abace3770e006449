"""Crops that are decoded once, and batches of them wherever they are."""

import errno
import logging
import os
import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from conditions import as_installed, unprivileged
from reidkit.errors import ConfigError, ImageError, InputError
from reidkit.train import crops as crops_module
from reidkit.train.crops import HostCrops, ResidentCrops, StreamedCrops, load_crops, place_crops
from reidkit.types import InputSpec

SPEC = InputSpec(6, 4)
N = 7
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 256, (12, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def truth(files):
    return np.stack([np.asarray(Image.open(file).resize((4, 6), Image.Resampling.BICUBIC)) for file in files])


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "crops"


@pytest.fixture
def load(files, folder, monkeypatch):
    """Loads crops, and says how many pictures were decoded for it."""
    decoded = []
    stream = crops_module.stream_crops

    def counted(sources, spec):
        for crop in stream(sources, spec):
            decoded.append(crop)
            yield crop

    monkeypatch.setattr(crops_module, "stream_crops", counted)

    def call(files=files, spec=SPEC, *, folder=folder, **options):
        decoded.clear()
        return load_crops(files, spec, folder=folder, **options), len(decoded)

    return call


@pytest.fixture
def silent(caplog):
    caplog.set_level(logging.WARNING)
    yield
    assert not caplog.records


# -- decoding once -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("silent")
def test_crops_are_decoded_once(load, truth, folder):
    progress = []
    for expected in (N, 0):
        crops, decoded = load(progress=lambda done, total: progress.append((done, total)))
        assert decoded == expected
        np.testing.assert_array_equal(crops, truth)
        assert not crops.flags.writeable
    assert progress == [(i + 1, N) for i in range(N)] + [(N, N)]
    (entry,) = folder.iterdir()
    assert [place.stat().st_mode & 0o777 for place in (folder, entry)] == [0o700, 0o600]
    np.testing.assert_array_equal(np.load(entry), truth)  # a plain file of numpy's


@pytest.mark.usefixtures("silent")
def test_without_a_folder_nothing_is_kept(load, truth, folder):
    for _ in range(2):
        crops, decoded = load(folder=None)
        assert decoded == N
        np.testing.assert_array_equal(crops, truth)
    assert not folder.exists()


def test_no_pictures_are_no_crops(load, folder):
    assert load([])[0].shape == (0, 6, 4, 3)
    assert not folder.exists()


def test_what_decides_the_crops(load, files, folder, monkeypatch):
    load()
    for options in ({"spec": replace(SPEC, resize="nearest")}, {"spec": replace(SPEC, width=5)}):
        assert load(**options)[1] == N
    assert load(files[::-1])[1] == N
    assert load(files[:3])[1] == 3
    assert load(spec=replace(SPEC, mean=(0.0, 0.0, 0.0), color="bgr"))[1] == 0  # of the graph, and not of the crops
    with monkeypatch.context() as patch:
        patch.setattr(PIL, "__version__", "99.0")
        assert load()[1] == N
    with monkeypatch.context() as patch:
        patch.setattr(crops_module, "sources_sha256", lambda package, names: f"other {names}")
        assert load()[1] == N
    assert load()[1] == 0
    assert len(list(folder.iterdir())) == 7


def test_a_changed_picture_is_decoded_again(load, files):
    load()
    Image.new("RGB", (8, 12), (1, 2, 3)).save(files[2])
    crops, decoded = load()
    assert decoded == N
    assert crops[2, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.usefixtures("silent")
def test_an_unreadable_picture_is_named_and_nothing_is_kept(load, files, folder):
    files[3].write_text("no picture")
    for place in (folder, None):
        with pytest.raises(ImageError, match=r"3\.png is not a picture"):
            load(folder=place)
    assert list(folder.iterdir()) == []
    files[3].unlink()
    with pytest.raises(ImageError, match=r"No such picture: .*3\.png"):
        load()


def test_a_failure_leaves_no_threads_decoding(files, folder):
    def stop(done, total):
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    for place in (folder, None):
        with pytest.raises(KeyboardInterrupt):
            load_crops(files, SPEC, folder=place, progress=stop)
        assert set(threading.enumerate()) <= before
    assert list(folder.iterdir()) == []


def test_pictures_that_change_meanwhile_are_not_kept(load, files, folder, caplog):
    def change(done, total):
        if done == N:
            Image.new("RGB", (8, 12), (1, 2, 3)).save(files[0])

    crops, _ = load(progress=change)
    assert crops[0, 0, 0].tolist() == [1, 2, 3]
    assert list(folder.iterdir()) == []
    assert "the pictures changed while they were decoded" in caplog.text


# -- damage ------------------------------------------------------------------------------------------------------------


def test_no_damaged_byte_is_believed(load, truth, folder, caplog):
    load()
    (entry,) = folder.iterdir()
    whole = entry.read_bytes()
    for place in range(0, len(whole), 41):
        entry.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        crops, decoded = load()
        assert decoded == N
        np.testing.assert_array_equal(crops, truth)
    assert len(caplog.records) == len(range(0, len(whole), 41)) > 15
    assert "(other contents than were written); it is removed, and the pictures are decoded again" in caplog.text
    for length in (0, 50, len(whole) - 1):
        entry.write_bytes(whole[:length])
        assert load()[1] == N
    entry.write_bytes(whole + b"x")
    assert load()[1] == N


def test_an_entry_of_other_pictures_is_not_believed(load, files, truth, folder):
    load()
    (entry,) = folder.iterdir()
    load(files[::-1])
    (other,) = set(folder.iterdir()) - {entry}
    other.replace(entry)
    crops, decoded = load()
    assert decoded == N
    np.testing.assert_array_equal(crops, truth)


def test_a_link_in_place_of_an_entry_is_not_followed(load, folder, tmp_path):
    load()
    (entry,) = folder.iterdir()
    victim = entry.rename(tmp_path / "victim")
    entry.symlink_to(victim)
    assert load()[1] == N
    assert victim.exists()
    assert not entry.is_symlink()


def test_crops_that_are_in_use_survive_their_removal(load, truth, folder):
    load()
    crops, _ = load()
    (entry,) = folder.iterdir()
    entry.unlink()
    np.testing.assert_array_equal(crops, truth)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_costs_the_entry_and_not_the_run(load, truth, folder, caplog, monkeypatch):
    def full(stream, *arguments):
        stream.write(bytes(100))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(crops_module, "_write_entry", full)
    crops, decoded = load()
    assert decoded == N
    np.testing.assert_array_equal(crops, truth)
    assert list(folder.iterdir()) == []
    (message,) = caplog.messages
    assert message.startswith(f"the cache of crops in {folder} cannot be used: ")
    assert "No space left on device" in message


def test_a_folder_that_cannot_be_made(load, truth, tmp_path, caplog):
    (tmp_path / "file").touch()
    crops, decoded = load(folder=tmp_path / "file" / "crops")
    assert decoded == N
    np.testing.assert_array_equal(crops, truth)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_folder_without_permission(load, files, folder, caplog, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with unprivileged(files[0]):
        assert load()[1] == N
    folder.chmod(0o700)
    assert "Permission denied" in caplog.text
    assert list(folder.iterdir()) == []


def test_the_limit(load, files, folder):
    assert load(limit=100)[1] == N
    assert not folder.exists()
    load()
    (entry,) = folder.iterdir()
    size = entry.stat().st_size
    time.sleep(0.01)
    load(files[::-1], limit=2 * size)
    time.sleep(0.01)
    assert load(limit=2 * size)[1] == 0  # used just now
    time.sleep(0.01)
    load(files[1:] + files[:1], limit=2 * size)
    assert [load(order)[1] for order in (files, files[::-1])] == [0, N]


# -- batches -----------------------------------------------------------------------------------------------------------


CROPS = np.random.default_rng(1).integers(0, 256, (40, 5, 3, 3), dtype=np.uint8)
BATCHES = [np.random.default_rng(i).integers(0, 40, size) for i, size in enumerate([8] * 9 + [3])]


def read_only():
    crops = CROPS.copy()
    crops.flags.writeable = False
    return crops


def resident(crops):
    return ResidentCrops(crops, torch.device("cpu"))


def check(source):
    def same(batch, indices):
        assert batch.dtype == torch.uint8
        np.testing.assert_array_equal(batch.cpu().numpy(), CROPS[indices])

    same(source.batch(BATCHES[0]), BATCHES[0])
    same(source.batch(BATCHES[0].astype(np.uint8)), BATCHES[0])
    for _ in range(2):
        with closing(source.stream(iter(BATCHES))) as stream:
            got = list(stream)
        assert [indices.tolist() for _, indices in got] == [indices.tolist() for indices in BATCHES]
        for batch, indices in got:  # also those of before are whole still
            same(batch, indices)
    assert list(source.stream([])) == []


@pytest.mark.parametrize("place", [HostCrops, resident])
@pytest.mark.parametrize("make", [CROPS.copy, read_only])
def test_batches_hold_the_crops_that_were_asked_for(place, make):
    check(place(make()))


def test_a_batch_is_the_callers_own():
    source = HostCrops(CROPS.copy())
    source.batch(np.arange(40)).zero_()
    check(source)


def test_all_of_a_large_set_is_uploaded(monkeypatch):
    monkeypatch.setattr(crops_module, "_UPLOAD", 100)  # two crops at a time
    check(resident(CROPS))
    monkeypatch.setattr(crops_module, "_UPLOAD", 1)
    check(resident(CROPS))


@pytest.mark.parametrize("place", [HostCrops, resident])
def test_wrong_indices_are_refused_before_the_first_batch(place):
    source = place(CROPS)
    for wrong in (-1, 40):
        message = rf"There is no crop {wrong}\n  got: 2 such indices\n  expected: 0 to 39"
        with pytest.raises(InputError, match=message):
            source.batch(np.array([3, wrong, wrong]))
        with pytest.raises(InputError, match=message):
            next(iter(source.stream([BATCHES[0], np.array([3, wrong, wrong])])))
    with as_installed(), pytest.raises(InputError, match=r"got: float64 \(2,\)"):
        source.batch(np.array([1.0, 2.0]))
    with pytest.raises(InputError, match=r"got: int64 \(2, 1\)"):
        next(iter(source.stream([np.array([[1], [2]])])))


def test_where_crops_are(load):
    assert place_crops(np.zeros((1000, 10, 50, 3), np.uint8), torch.device("cpu")).describe() == "2 MB in memory"
    assert place_crops(load()[0], torch.device("cpu")).describe() == "0 MB mapped from the disk"
    assert resident(CROPS).describe() == "0 MB on cpu"
    there = StreamedCrops(CROPS, torch.device("cuda:1"))
    assert there.describe() == "0 MB in memory, copied to cuda:1 batch by batch"


def test_a_share_that_cannot_be():
    with pytest.raises(ConfigError, match="share is out of range"):
        place_crops(CROPS, torch.device("cpu"), share=1.5)


@pytest.mark.parametrize(("free", "kind"), [(3600, ResidentCrops), (3599, StreamedCrops)])
def test_a_gpu_takes_what_fits(monkeypatch, free, kind):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10_000))
    monkeypatch.setattr(crops_module, "ResidentCrops", lambda crops, device: ResidentCrops(crops, torch.device("cpu")))
    assert isinstance(place_crops(CROPS, torch.device("cuda:0"), share=0.5), kind)
    assert CROPS.nbytes == 1800


@needs_cuda
@pytest.mark.parametrize(("share", "kind"), [(1.0, ResidentCrops), (0.0, StreamedCrops)])
def test_on_a_gpu(share, kind):
    for crops in (CROPS, read_only()):
        source = place_crops(crops, torch.device("cuda"), share=share)
        assert isinstance(source, kind)
        assert "cuda:0" in source.describe()
        check(source)


@needs_cuda
def test_a_busy_gpu_sees_whole_batches_and_early_closing_leaves_no_thread():
    """The consumer's stream lags far behind, so that a buffer or a batch that is overwritten too early shows."""
    crops = np.random.default_rng(2).integers(0, 256, (500, 256, 128, 3), dtype=np.uint8)
    batches = [np.random.default_rng(i).integers(0, 500, 64) for i in range(40)]
    source = place_crops(crops, torch.device("cuda"), share=0.0)
    work = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch, _ in source.stream(batches):
        for _ in range(5):
            work = (work @ work).clamp(-1, 1)
        sums.append(batch.sum(dim=(1, 2, 3), dtype=torch.int64))
    expected = crops.sum(axis=(1, 2, 3), dtype=np.int64)
    for got, indices in zip(sums, batches, strict=True):
        np.testing.assert_array_equal(got.cpu().numpy(), expected[indices])
    stream = source.stream(batches)
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reidkit-gather")]


@needs_cuda
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_a_graph_can_be_captured_between_two_batches(share):
    source = place_crops(CROPS, torch.device("cuda"), share=share)
    static = torch.empty((8, 5, 3, 3), dtype=torch.uint8, device="cuda")
    doubled = torch.empty((8, 5, 3, 3), dtype=torch.int32, device="cuda")
    graph = None
    for batch, indices in source.stream(BATCHES[:9]):
        static.copy_(batch)
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                doubled.copy_(static.int() * 2)
        graph.replay()
        np.testing.assert_array_equal(doubled.cpu().numpy(), CROPS[indices].astype(np.int32) * 2)
