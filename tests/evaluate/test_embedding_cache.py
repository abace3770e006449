import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
import pytest
from PIL import Image

import reidkit
from conditions import unprivileged
from reidkit import cache
from reidkit.bundle import record_accuracy
from reidkit.errors import ConfigError, DataError, ImageError
from reidkit.evaluate import embed_crops, embed_split
from reidkit.evaluate.embedding_cache import default_folder, open_cache
from reidkit.manifest import Accuracy
from reidkit.runtime.pipeline import Extraction, embed_files
from reidkit.runtime.tta import MultiViewEmbedder, with_tta
from reidkit.types import Crop, EmbedderSpec, InputSpec, Split
from small_bundle import MANIFEST, write

SPEC = EmbedderSpec(InputSpec(4, 3), 3, False, None, "onnxruntime", "float32", "cpu")


class MeanColor:
    """Embeds a crop as its mean colour, and counts what it embeds."""

    spec = SPEC

    def __init__(self):
        self.embedded = 0

    def embed(self, crops):
        self.embedded += len(crops)
        return crops.mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (3, 4), (10 * i, 100, 200)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def bundle(tmp_path):
    return write(tmp_path / "a.reid")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "embeddings"


@pytest.fixture
def fetch(bundle, folder):
    """Fetches from a cache that is opened anew; gives the extraction and how many pictures it embedded."""

    def call(files, *, cache=None, spec=SPEC, tta="none", bundle=bundle, unreadable="raise", **options):
        cache = cache or open_cache(folder, bundle, spec, tta, **options)
        embedder = MeanColor()
        got = cache.fetch(files, lambda: embed_files(embedder, files, unreadable=unreadable), unreadable=unreadable)
        return got, embedder.embedded

    return call


@pytest.fixture
def silent(caplog):
    caplog.set_level(logging.WARNING)
    yield
    assert not caplog.records


def entries(folder):
    return sorted(folder.iterdir())


def same(a, b):
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    np.testing.assert_array_equal(a.rows, b.rows)
    assert [str(error) for error in a.unreadable] == [str(error) for error in b.unreadable]
    assert (a.embeddings.dtype, a.rows.dtype) == (b.embeddings.dtype, b.rows.dtype)


@pytest.mark.usefixtures("silent")
def test_a_second_time_costs_no_extraction(fetch, files, folder):
    first, embedded = fetch(files)
    assert embedded == 3
    assert first.embeddings[:, 0].tolist() == [0, 10, 20]
    again, embedded = fetch(files)
    assert embedded == 0
    same(again, first)
    again.embeddings[:] = 0  # the caller's own
    same(fetch(files)[0], first)
    assert len(entries(folder)) == 1
    assert [place.stat().st_mode & 0o777 for place in (folder, *entries(folder))] == [0o700, 0o600]  # nobody else's


def test_a_changed_picture_is_never_served_stale(fetch, files):
    fetch(files)
    before = files[1].stat()
    Image.new("RGB", (3, 4), (99, 100, 200)).save(files[1])
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (files[1].stat().st_size, files[1].stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    changed, embedded = fetch(files)
    assert embedded == 3
    assert changed.embeddings[:, 0].tolist() == [0, 99, 20]


@pytest.fixture
def hashed(monkeypatch):
    """The pictures that were read for their sha256; times settle at once."""
    monkeypatch.setattr(cache, "_SETTLED", 0)
    read = []
    sha256 = cache.file_sha256
    monkeypatch.setattr(cache, "file_sha256", lambda file: read.append(file.name) or sha256(file))
    return lambda: [name for name in read if name.endswith(".png")]


def test_several_models_on_one_data_set_hash_it_once(fetch, files, hashed):
    time.sleep(0.02)
    for tta in ("none", "flip", "none"):
        fetch(files, tta=tta)
    assert sorted(hashed()) == [file.name for file in files]
    fetch(files[::-1])
    assert len(hashed()) == 6


def test_a_change_that_keeps_size_and_date_is_seen(fetch, files, hashed):
    os.utime(files[1], (1, 1))
    time.sleep(0.02)
    fetch(files)
    assert len(hashed()) == 3
    size = files[1].stat().st_size
    Image.new("RGB", (3, 4), (99, 100, 200)).save(files[1])
    os.utime(files[1], (1, 1))
    assert files[1].stat().st_size == size
    changed, embedded = fetch(files)
    assert (embedded, changed.embeddings[:, 0].tolist()) == (3, [0, 99, 20])
    assert len(hashed()) == 6


def test_what_was_touched_just_now_is_hashed_again(fetch, files, hashed, monkeypatch):
    monkeypatch.setattr(cache, "_SETTLED", 3600.0)
    fetch(files)
    fetch(files)
    assert len(hashed()) == 9  # before, after, and the second time


def test_a_moved_data_set_is_known_again(fetch, files, tmp_path):
    first, _ = fetch(files)
    shutil.move(files[0].parent, tmp_path / "elsewhere")
    moved = [tmp_path / "elsewhere" / file.name for file in files]
    os.utime(moved[0], (0, 0))
    again, embedded = fetch(moved)
    assert embedded == 0
    same(again, first)


def test_another_order_or_selection_is_another_entry(fetch, files, folder):
    fetch(files)
    for other in (files[::-1], files[:2], [files[0], *files]):
        got, embedded = fetch(other)
        assert embedded == len(other)
        assert got.embeddings[:, 0].tolist() == [10 * int(file.stem) for file in other]
    assert len(entries(folder)) == 4


@pytest.mark.parametrize(
    "other",
    [
        {"tta": "flip"},
        {"spec": replace(SPEC, runtime="openvino")},
        {"spec": replace(SPEC, precision="float16")},
        {"spec": replace(SPEC, device="cuda")},
        {"spec": replace(SPEC, normalized=True)},
        {"spec": replace(SPEC, input=replace(SPEC.input, resize="nearest"))},
    ],
)
def test_another_way_of_embedding_is_another_entry(fetch, files, other):
    fetch(files)
    assert fetch(files, **other)[1] == 3
    assert fetch(files, **other)[1] == fetch(files)[1] == 0


@pytest.mark.parametrize(
    ("package", "attribute"), [(reidkit, "__version__"), (PIL, "__version__"), (onnxruntime, "__version__")]
)
def test_another_version_is_another_entry(fetch, files, monkeypatch, package, attribute):
    fetch(files)
    monkeypatch.setattr(package, attribute, "99.0")
    assert fetch(files)[1] == 3


def test_other_code_is_another_entry(fetch, files, tmp_path, monkeypatch):
    copy = shutil.copytree(Path(reidkit.__file__).parent, tmp_path / "reidkit")
    monkeypatch.setattr(reidkit, "__file__", str(copy / "__init__.py"))
    fetch(files)
    with (copy / "metrics" / "ranking.py").open("a") as stream:
        stream.write("# no embedding knows of it\n")
    assert fetch(files)[1] == 0
    with (copy / "imaging.py").open("a") as stream:
        stream.write("# resizes otherwise\n")
    assert fetch(files)[1] == 3


def test_of_a_bundle_only_what_makes_embeddings_counts(fetch, files, bundle, tmp_path):
    fetch(files)
    accuracy = Accuracy("x", "market1501", "cosine", "onnxruntime", "float32", "cpu", 0.5, 0.5, 0.5, 1, 1)
    assert fetch(files, bundle=record_accuracy(bundle, accuracy))[1] == 0
    assert fetch(files, bundle=write(tmp_path / "named.reid", replace(MANIFEST, name="other")))[1] == 0
    assert fetch(files, bundle=write(tmp_path / "trained.reid", model=b"another graph"))[1] == 3


@pytest.mark.parametrize("change", [{"precision": "float16"}, {"build": "ab" * 32}, {"device": "cuda"}])
def test_another_arithmetic_or_engine_embeds_anew(fetch, files, change):
    fetch(files)
    other = replace(SPEC, **change)
    assert [fetch(files, spec=other)[1] for _ in range(2)] == [3, 0]
    assert fetch(files)[1] == 0


def test_the_batch_size_makes_no_difference(bundle, folder, files):
    crops = [Crop(file, 0, 0) for file in files]
    embedder = MeanColor()
    for batch_size in (1, 2):
        cache = open_cache(folder, bundle, SPEC, "none")
        embedded = embed_crops(embedder, crops, batch_size=batch_size, cache=cache)
        assert embedded.embeddings[:, 0].tolist() == [0, 10, 20]
    assert embedder.embedded == 3


@pytest.mark.parametrize("tta", ["none", "flip", "multiscale"])
def test_a_cache_serves_its_own_tta_and_no_other(bundle, folder, files, tta):
    split = Split("folder", Path("x"), query=(Crop(files[0], 0, 0),), gallery=(Crop(files[1], 0, 1),))
    cache = open_cache(folder, bundle, SPEC, tta)
    for _ in range(2):
        query, _ = embed_split(MeanColor(), split, tta=tta, cache=cache)
        assert query.embeddings.tolist() == with_tta(MeanColor(), tta).embed(_pixels(files[:1])).tolist()
    for other in {"none", "flip", "flip+multiscale"} - {tta}:
        message = (
            rf"another test-time augmentation\n  got: MeanColor, tta '{other.replace('+', '.')}'(.|\n)*tta '{tta}'"
        )
        with pytest.raises(ConfigError, match=message):
            embed_split(MeanColor(), split, tta=other, cache=cache)
    assert len(entries(folder)) == 2


def _pixels(files):
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_a_cache_is_for_a_plain_embedder_of_its_spec(bundle, folder, files):
    crops = [Crop(file, 0, 0) for file in files]
    cache = open_cache(folder, bundle, SPEC, "none")
    with pytest.raises(ConfigError, match="got: MultiViewEmbedder, tta 'none'"):
        embed_crops(MultiViewEmbedder(MeanColor(), scales=(0.5,)), crops, cache=cache)
    with pytest.raises(ConfigError, match=r"expected: a plain embedder, tta 'none': .*precision='float16'"):
        embed_crops(MeanColor(), crops, cache=open_cache(folder, bundle, replace(SPEC, precision="float16"), "none"))
    assert not folder.exists()


def test_an_unknown_engine_has_no_cache(folder, bundle):
    with pytest.raises(ConfigError, match=r"Unknown runtime 'onnx'(.|\n)*did you mean 'onnxruntime'"):
        open_cache(folder, bundle, replace(SPEC, runtime="onnx"), "none")


# Pictures that cannot be decoded


@pytest.mark.usefixtures("silent")
def test_unreadable_pictures_are_remembered(fetch, files, tmp_path):
    files[1].write_text("no picture")
    first, embedded = fetch(files, unreadable="skip")
    assert (embedded, first.rows.tolist()) == (2, [0, 2])
    again, embedded = fetch(files, unreadable="skip")
    assert embedded == 0
    same(again, first)
    moved = [tmp_path / file.name for file in files]
    for file, to in zip(files, moved, strict=True):
        file.rename(to)
    again, embedded = fetch(moved, unreadable="skip")
    assert embedded == 0
    assert again.unreadable[0].problem == f"{moved[1]} is not a picture"


@pytest.mark.usefixtures("silent")
def test_where_unreadable_pictures_are_refused_so_they_are_from_the_cache(fetch, files):
    files[1].write_text("no picture")
    files[2].write_text("nor this")
    with pytest.raises(ImageError, match=r"1\.png is not a picture"):
        fetch(files)
    fetch(files, unreadable="skip")
    with pytest.raises(ImageError, match=r"1\.png is not a picture"):
        fetch(files)


def test_a_picture_that_was_unreadable_for_a_moment(bundle, folder, files, fetch, caplog):
    """An entry without a picture that can be decoded is not believed."""
    part = embed_files(MeanColor(), files[:2])
    partly = Extraction(part.embeddings, part.rows, (ImageError("too many open files"),))
    open_cache(folder, bundle, SPEC, "none").fetch(files, lambda: partly, unreadable="skip")
    got, embedded = fetch(files, unreadable="skip")
    assert (embedded, got.rows.tolist()) == (3, [0, 1, 2])
    assert "2.png, which can be decoded" in caplog.text


def test_what_extraction_raises_is_passed_on(fetch, files, folder):
    with pytest.raises(ImageError, match=r"No such picture: .*none\.png"):
        fetch([*files, Path("none.png")])
    got, _ = fetch([*files, Path("none.png")], unreadable="skip")
    assert got.rows.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="There is no picture to embed"):
        fetch([])
    assert not folder.exists()  # a picture that is not there today may be tomorrow


def test_a_picture_that_changes_meanwhile_is_not_kept(bundle, folder, files):
    def extract():
        Image.new("RGB", (3, 4), (99, 0, 0)).save(files[0])
        return embed_files(MeanColor(), files)

    open_cache(folder, bundle, SPEC, "none").fetch(files, extract, unreadable="raise")
    assert not folder.exists()


# Damage and hostility


@pytest.fixture
def entry(fetch, files, folder):
    fetch(files)
    (file,) = entries(folder)
    return file


def test_no_damaged_byte_is_believed(fetch, files, entry, bundle, caplog):
    truth, _ = fetch(files)
    cache = open_cache(entry.parent, bundle, SPEC, "none")
    whole = entry.read_bytes()
    anew = 0
    for place in range(0, len(whole), 61):
        entry.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        got, embedded = fetch(files, cache=cache)
        same(got, truth)
        anew += embedded > 0
    assert anew == len(caplog.records) > 0.7 * len(whole) / 61  # the rest are dates and padding
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        entry.write_bytes(whole[:length])
        got, embedded = fetch(files)
        same(got, truth)
        assert embedded == 3
    assert "it is removed, and the pictures are embedded again" in caplog.records[-1].getMessage()
    assert str(entry) in caplog.records[-1].getMessage()


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def forge(entry, **changes):
    """Rewrites an entry with other arrays, and a sha256 that is theirs."""
    with np.load(entry) as arrays:
        values = {name: arrays[name] for name in arrays.files} | changes
    if "about" not in changes:
        about = json.loads(values["about"].tobytes())
        about["sha256"] = hashlib.sha256(values["embeddings"].tobytes() + values["rows"].tobytes()).hexdigest()
        values["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(entry, **{name: value for name, value in values.items() if value is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": np.array([0, 2, 1])},
        {"rows": np.array([0, 1, 1])},
        {"rows": np.array([0, 1, 3])},
        {"rows": np.array([-1, 0, 1])},
        {"rows": np.array([0, 1])},
        {"rows": np.array([0, 1, 2], np.int32)},
        {"rows": np.array(3)},
        {"rows": np.empty(0, np.int64)},
        {"rows": np.array([Trap()] * 3, dtype=object), "about": np.zeros(3, np.uint8)},
        {"embeddings": np.zeros((3, 4), np.float32)},
        {"embeddings": np.zeros((3, 3))},
        {"embeddings": np.zeros(9, np.float32)},
        {"extra": np.zeros(3)},
        {"about": np.frombuffer(b"[" * 100_000, np.uint8)},
        {"about": np.frombuffer(b"null", np.uint8)},
        {"about": np.array("{}")},
        {"about": np.zeros(2 << 20, np.uint8)},
        {"about": None},
    ],
)
def test_an_entry_of_other_contents_is_not_believed(fetch, files, entry, caplog, monkeypatch, tmp_path, changes):
    truth, _ = fetch(files)
    monkeypatch.chdir(tmp_path)
    forge(entry, **changes)
    got, embedded = fetch(files)
    assert embedded == 3
    same(got, truth)
    assert len(caplog.records) == 1
    assert fetch(files)[1] == 0
    assert not (tmp_path / "trapped").exists()


def test_an_entry_of_other_pictures_is_not_believed(fetch, files, entry, folder, caplog):
    truth, _ = fetch(files)
    fetch(files[::-1])
    (other,) = set(entries(folder)) - {entry}
    other.replace(entry)
    got, embedded = fetch(files)
    assert embedded == 3
    same(got, truth)
    assert "other contents than were written" in caplog.text


def test_a_link_in_place_of_an_entry_harms_nobody(fetch, files, entry, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    entry.unlink()
    entry.symlink_to(victim)
    assert fetch(files)[1] == 3
    assert victim.read_text() == "mine"
    assert not entry.is_symlink()
    assert fetch(files)[1] == 0


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_in_place_of_an_entry_stops_nothing(fetch, files, entry, make):
    entry.unlink()
    make(entry)
    assert fetch(files)[1] == 3


def test_a_giant_file_is_not_read(fetch, files, entry):
    with entry.open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse
    assert fetch(files)[1] == 3
    assert entry.stat().st_size < 1 << 20


# The folder


def test_the_least_recently_used_entries_go_first(fetch, files, folder):
    selections = [[file] for file in files]
    fetch(selections[0])
    size = entries(folder)[0].stat().st_size
    kept = {"limit": 3 * size + 2000}
    for selection in selections:
        fetch(selection, **kept)
        time.sleep(0.01)
    assert fetch(selections[0], **kept)[1] == 0  # used just now
    time.sleep(0.01)
    assert fetch(files[:2], **kept)[1] == 2  # one has to go
    assert sum(file.stat().st_size for file in entries(folder)) <= kept["limit"]
    assert len(entries(folder)) == 3
    assert fetch(selections[0], **kept)[1] == 0
    assert fetch(selections[1], **kept)[1] == 1


def test_what_is_larger_than_the_limit_is_not_kept(fetch, files, folder):
    assert fetch(files, limit=1000)[1] == 3
    assert not folder.exists()


def test_only_what_is_its_own_is_removed(fetch, files, folder, tmp_path):
    folder.mkdir(parents=True)
    digest = "0" * 64
    (folder / "notes.npz").write_bytes(bytes(5000))
    (folder / digest).mkdir()
    (folder / f"{digest}.npz").symlink_to(tmp_path)
    abandoned, growing = (folder / f".{digest}.{name}.npz" for name in ("0123abcd", "abcd0123"))
    abandoned.touch()
    growing.touch()
    os.utime(abandoned, (0, 0))
    fetch(files[:1], limit=8000)
    fetch(files[1:2], limit=4000)
    left = {file.name for file in entries(folder)}
    assert {"notes.npz", digest, f"{digest}.npz", growing.name} < left
    assert abandoned.name not in left
    assert len(left) == 5


def test_a_place_that_cannot_be_written_to_is_said_once(files, bundle, tmp_path, fetch, caplog):
    (tmp_path / "file").touch()
    cache = open_cache(tmp_path / "file" / "embeddings", bundle, SPEC, "none")
    for selection in (files, files[:1], files):
        assert fetch(selection, cache=cache)[1] == len(selection)
    (record,) = caplog.records
    assert f"the cache of embeddings in {tmp_path / 'file' / 'embeddings'} cannot be used" in record.getMessage()


@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_folder_without_permission_breaks_nothing(fetch, files, folder, caplog, mode):
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with unprivileged(files[0]):
        assert fetch(files)[1] == 3
    folder.chmod(0o700)
    assert "cannot be used" in caplog.text
    assert entries(folder) == []


def test_an_entry_that_may_not_be_read_is_left_alone(fetch, files, entry, caplog):
    entry.chmod(0)
    entry.parent.chmod(0o755)
    entry.parent.parent.chmod(0o755)
    with unprivileged(files[0]):
        assert fetch(files)[1] == 3
    assert entry.exists()
    assert "Permission denied" in caplog.records[0].getMessage()


PROCESS = """
import sys, logging
from pathlib import Path
import numpy as np
from reidkit.evaluate.embedding_cache import EmbeddingCache
from reidkit.runtime.pipeline import Extraction
from reidkit.types import EmbedderSpec, InputSpec

logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
files = sorted(Path(sys.argv[2]).iterdir())
spec = EmbedderSpec(InputSpec(4, 3), 50, False, None, "onnxruntime", "float32", "cpu")
for turn in range(40):
    cache = EmbeddingCache(Path(sys.argv[1]), {}, spec=spec, tta="none", limit=4000)
    some = files[turn % 3 :]
    truth = np.full((len(some), 50), turn % 3, np.float32)
    extract = lambda: Extraction(truth, np.arange(len(some)), ())
    assert np.array_equal(cache.fetch(some, extract, unreadable="raise").embeddings, truth)
print("well")
"""


def test_several_processes_at_once(files, folder):
    """Each keeps, reads and removes what the others keep, read and remove."""
    arguments = [sys.executable, "-c", PROCESS, str(folder), str(files[0].parent)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["well\n"] * 2
    assert all(file.name.endswith(".npz") and not file.name.startswith(".") for file in entries(folder))


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("/big/reid", "/xdg", "/big/reid/embeddings"),
        ("~/reid", None, "/home/ann/reid/embeddings"),
        ("", "/xdg", "/xdg/reidkit/embeddings"),
        (None, "relative", "/home/ann/.cache/reidkit/embeddings"),
        (None, "", "/home/ann/.cache/reidkit/embeddings"),
        (None, None, "/home/ann/.cache/reidkit/embeddings"),
    ],
)
def test_default_folder(monkeypatch, own, xdg, expected):
    monkeypatch.setenv("HOME", "/home/ann")
    for name, value in (("REIDKIT_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert default_folder() == Path(expected)


def test_somebody_without_a_home_is_warned_and_measures(monkeypatch, bundle, files, fetch, caplog):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("REIDKIT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    folder = default_folder()
    assert folder is None
    (record,) = caplog.records
    assert "embeddings are not kept" in record.getMessage()
    assert "Set REIDKIT_CACHE" in record.getMessage()
    cache = open_cache(folder, bundle, SPEC, "none")
    assert [fetch(files, cache=cache)[1] for _ in range(2)] == [3, 3]
