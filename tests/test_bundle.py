import dataclasses
import errno
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conditions import as_installed, unprivileged
from reidkit.bundle import (
    Bundle,
    Golden,
    check_place,
    file_sha256,
    open_bundle,
    record_accuracy,
    record_latency,
    replace_files,
    write_bundle,
)
from reidkit.errors import BundleError, ConfigError, InputError, OutputError
from reidkit.manifest import Accuracy, Embedding, Latency, Manifest, Provenance
from reidkit.types import InputSpec
from small_bundle import CROPS, EMBEDDINGS, FILES, GOLDEN, MANIFEST, MODEL, WEIGHTS, names, put, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "m.reid").path


class TestRoundTrip:
    def test_what_was_written_is_opened(self, folder):
        opened = open_bundle(str(folder))
        assert opened.path == folder
        assert dataclasses.replace(opened.manifest, files={}) == MANIFEST
        assert opened.manifest.files["model.onnx"] == hashlib.sha256(b"the graph").hexdigest()
        assert names(folder) == FILES
        assert opened.model.read_bytes() == MODEL
        assert opened.weights is not None
        assert opened.weights.read_bytes() == WEIGHTS
        golden = opened.golden()
        np.testing.assert_array_equal(golden.crops, CROPS)
        np.testing.assert_array_equal(golden.embeddings, EMBEDDINGS)

    def test_writing_gives_what_opening_gives(self, tmp_path):
        assert write(tmp_path / "m.reid") == open_bundle(tmp_path / "m.reid")

    def test_a_foreign_graph_has_no_weights(self, tmp_path):
        manifest = Manifest("foreign", "person", InputSpec(4, 3), Embedding(5))
        opened = write_bundle(tmp_path / "f.reid", manifest, model=MODEL, golden=GOLDEN)
        assert opened.weights is None
        assert names(opened.path) == ["golden.npz", "manifest.json", "model.onnx"]
        assert dataclasses.replace(opened.manifest, files={}) == manifest

    def test_the_manifest_is_readable(self, folder):
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        assert text.startswith('{\n  "schema": 2,\n  "sha256": "')
        assert '"name": "größe"' in text

    def test_a_file_name_that_is_no_unicode(self, tmp_path):
        source = os.fsdecode(b"caf\xe9.pth")
        provenance = Provenance(source=source)
        opened = write(tmp_path / "m.reid", dataclasses.replace(MANIFEST, provenance=provenance))
        assert open_bundle(opened.path).manifest.provenance.source == source

    def test_spaces_and_order_of_the_manifest_do_not_matter(self, folder):
        file = folder / "manifest.json"
        values = json.loads(file.read_bytes())
        file.write_text(json.dumps(dict(reversed(values.items()))))
        assert dataclasses.replace(open_bundle(folder).manifest, files={}) == MANIFEST

    def test_a_stray_file_does_no_harm(self, folder):
        (folder / ".DS_Store").write_bytes(b"x")
        assert open_bundle(folder).manifest.name == "größe"

    def test_the_hash_of_a_file_longer_than_a_piece(self, tmp_path):
        data = bytes(range(256)) * 5000
        (tmp_path / "x").write_bytes(data)
        assert file_sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


class TestGolden:
    def bundle(self, folder: Path, **arrays: np.ndarray) -> Bundle:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType]
        put(folder, "golden.npz", buffer.getvalue())
        return open_bundle(folder)

    def refused(self, bundle: Bundle) -> str:
        with pytest.raises(BundleError) as caught:
            bundle.golden()
        return str(caught.value)

    @pytest.mark.parametrize(
        ("crops", "embeddings", "got"),
        [
            (CROPS.astype(np.float32), EMBEDDINGS, "float32 (2, 4, 3, 3) and float32 (2, 5)"),
            (CROPS[:, :3], EMBEDDINGS, "uint8 (2, 3, 3, 3) and float32 (2, 5)"),
            (CROPS[0], EMBEDDINGS, "uint8 (4, 3, 3) and float32 (2, 5)"),
            (np.uint8(3), EMBEDDINGS, "uint8 () and float32 (2, 5)"),
            (CROPS, EMBEDDINGS[:1], "uint8 (2, 4, 3, 3) and float32 (1, 5)"),
            (CROPS, EMBEDDINGS[:, :4], "uint8 (2, 4, 3, 3) and float32 (2, 4)"),
            (CROPS, EMBEDDINGS.astype(np.float64), "uint8 (2, 4, 3, 3) and float64 (2, 5)"),
            (CROPS[:0], EMBEDDINGS[:0], "uint8 (0, 4, 3, 3) and float32 (0, 5)"),
            (CROPS, EMBEDDINGS * np.float32(np.nan), "embeddings that are not finite"),
        ],
    )
    def test_arrays_that_do_not_fit(self, folder, crops, embeddings, got):
        assert self.refused(self.bundle(folder, crops=crops, embeddings=embeddings)) == (
            f"{folder / 'golden.npz'} does not fit the manifest\n  got: {got}\n"
            "  expected: uint8 (n, 4, 3, 3) and float32 (n, 5), n at least 1"
        )
        if np.ndim(crops) == 4 and np.shape(embeddings)[0] == len(crops):
            with as_installed(), pytest.raises(InputError) as caught:
                write_bundle(folder, MANIFEST, model=MODEL, golden=Golden(crops, embeddings), overwrite=True)
            assert str(caught.value).startswith(f"The golden arrays do not fit the manifest\n  got: {got}\n")

    def test_an_array_is_missing(self, folder):
        text = self.refused(self.bundle(folder, crops=CROPS))
        assert text.startswith(f"{folder / 'golden.npz'} cannot be read\n  got: ")
        assert text.endswith("\n  expected: arrays crops and embeddings")

    def test_a_pickle_is_never_run(self, folder, tmp_path):
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path(tmp_path / "sprung").touch, ())

        objects = np.empty(2, dtype=object)
        objects[:] = Trap()
        text = self.refused(self.bundle(folder, crops=CROPS, embeddings=objects))
        assert "cannot be read\n  got: Object arrays cannot be loaded" in text
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("kind", ["empty", "text", "zip", "one array", "pickle"])
    def test_what_is_no_npz(self, folder, kind):
        one = io.BytesIO()
        np.save(one, CROPS)
        data = {
            "empty": b"",
            "text": b"hello",
            "zip": b"PK\x03\x04" + b"x" * 50,
            "one array": one.getvalue(),
            "pickle": b"\x80\x04N.",
        }[kind]
        put(folder, "golden.npz", data)
        assert self.refused(open_bundle(folder)).startswith(f"{folder / 'golden.npz'} cannot be read\n")


class TestWriting:
    @pytest.mark.parametrize(
        ("name", "better"),
        [
            ("m", "m.reid"),
            ("m.onnx", "m.reid"),
            ("m.reid.onnx", "m.reid"),
            ("m-1.5", "m-1.5.reid"),
            ("m.bak", "m.bak.reid"),
            ("m.REID", "m.reid"),
        ],
    )
    def test_a_name_that_does_not_end_in_reid(self, tmp_path, name, better):
        with pytest.raises(BundleError) as caught:
            write(tmp_path / name)
        assert str(caught.value) == (
            f"A bundle's name must end in .reid\n  got: {tmp_path / name}\n  to do: call it {better}"
        )
        assert names(tmp_path) == []

    def test_one_that_is_there_already(self, folder):
        with pytest.raises(
            OutputError, match=r"m\.reid already exists\n  to do: choose another name, or say --overwrite"
        ):
            write(folder, model=b"new")
        assert open_bundle(folder).model.read_bytes() == MODEL

    def test_overwrite_replaces_it_whole(self, folder):
        manifest = Manifest("foreign", "person", InputSpec(4, 3), Embedding(5))
        write_bundle(folder, manifest, model=b"new", golden=GOLDEN, overwrite=True)
        assert open_bundle(folder).model.read_bytes() == b"new"
        assert names(folder) == ["golden.npz", "manifest.json", "model.onnx"]
        assert names(folder.parent) == ["m.reid"]

    def test_overwrite_never_removes_a_folder_that_is_no_bundle(self, tmp_path):
        mine = tmp_path / "holiday.reid"
        mine.mkdir()
        (mine / "photo.jpg").write_bytes(b"dear")
        with pytest.raises(OutputError) as caught:
            write(mine, overwrite=True)
        assert str(caught.value) == (
            f"{mine} is not replaced, for it may hold something else; nothing was removed\n"
            "  got: a folder with photo.jpg, and no manifest.json\n"
            "  expected: an empty folder, or one with the manifest.json that reidkit writes\n"
            "  to do: choose another name, or remove the folder yourself"
        )
        assert names(mine) == ["photo.jpg"]
        assert names(tmp_path) == ["holiday.reid"]

    def test_the_place_can_be_asked_about_before_the_work(self, folder):
        check_place(folder.parent / "new.reid")
        check_place(str(folder), overwrite=True)
        with pytest.raises(OutputError, match=r"m\.reid already exists\n  to do: choose another name, or say --over"):
            check_place(folder)
        with pytest.raises(
            BundleError, match=r"A bundle's name must end in \.reid\n  got: .*\n  to do: call it new\.reid"
        ):
            check_place(folder.parent / "new")
        (folder / "manifest.json").unlink()
        with pytest.raises(
            OutputError, match=r"nothing was removed\n  got: a folder with golden\.npz, model\.onnx, weig"
        ):
            check_place(folder, overwrite=True)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"licence": "MIT"}, "Unknown value of manifest.licence: 'MIT'\n  expected: one of permissive, "),
            ({"precision": "float64"}, "Unknown value of manifest.precision: 'float64'\n  expected: one of float32, "),
            ({"name": 3}, "manifest.name has the wrong type\n  got: 3 (int)\n  expected: str"),
            ({"provenance": Provenance(recipe={"lr": {1, 2}})}, "The manifest holds what JSON cannot say\n  got: "),
        ],
    )
    def test_what_could_not_be_opened_does_not_replace_what_can(self, folder, change, text):
        with as_installed(), pytest.raises(ConfigError) as caught:
            write(folder, dataclasses.replace(MANIFEST, **change), model=b"new", overwrite=True)
        assert str(caught.value).startswith(text)
        assert open_bundle(folder).model.read_bytes() == MODEL
        assert names(folder.parent) == ["m.reid"]

    def test_overwrite_never_removes_a_file(self, tmp_path):
        (tmp_path / "m.reid").write_bytes(b"dear")
        with pytest.raises(OutputError, match=r"Cannot write .*m\.reid\n  got: Not a directory"):
            write(tmp_path / "m.reid", overwrite=True)
        assert (tmp_path / "m.reid").read_bytes() == b"dear"

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
    @pytest.mark.parametrize("file", [1, 2, 3, 4])
    @pytest.mark.parametrize("before", ["nothing", "a bundle"])
    def test_broken_off_at_any_file(self, tmp_path, monkeypatch, error, file, before):
        if before == "a bundle":
            write(tmp_path / "m.reid")
        write_bytes, written = Path.write_bytes, []

        def failing(self: Path, data: bytes) -> int:
            written.append(self.name)
            if len(written) == file:
                write_bytes(self, data[:3])
                raise error
            return write_bytes(self, data)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", failing)
            with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
                write(tmp_path / "m.reid", model=b"new", overwrite=True)
        if isinstance(error, OSError):
            assert "m.reid\n  got: No space left on device\n  to do: free some space" in str(caught.value)
        assert len(written) == file
        if before == "nothing":
            assert names(tmp_path) == []
        else:
            assert names(tmp_path) == ["m.reid"]
            assert open_bundle(tmp_path / "m.reid").model.read_bytes() == MODEL

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_place_that_may_not_be_written_to(self, tmp_path, overwrite):
        write(tmp_path / "locked" / "m.reid")
        (tmp_path / "locked").chmod(0o555)
        tmp_path.chmod(0o755)
        target = tmp_path / "locked" / ("m.reid" if overwrite else "new.reid")
        with (
            unprivileged(tmp_path),
            pytest.raises(OutputError, match=f"Cannot write {target}\n  got: Permission denied"),
        ):
            write(target, model=b"new", overwrite=overwrite)
        assert open_bundle(tmp_path / "locked" / "m.reid").model.read_bytes() == MODEL
        assert names(tmp_path / "locked") == ["m.reid"]

    def test_a_bundle_that_may_not_be_looked_into_is_not_replaced(self, folder):
        folder.parent.chmod(0o777)
        folder.chmod(0o600)
        with (
            unprivileged(folder.parent),
            pytest.raises(OutputError, match=r"Cannot write .*m\.reid\n  got: Permission"),
        ):
            write(folder, overwrite=True)
        folder.chmod(0o700)
        assert open_bundle(folder).model.read_bytes() == MODEL

    @pytest.mark.parametrize("value", [0, -3])
    def test_impossible_numbers_are_refused_when_the_manifest_is_made(self, value):
        with pytest.raises(ConfigError, match=f"The embedding width is out of range\n  got: {value}"):
            Embedding(value)
        with pytest.raises(ConfigError, match=f"The batch size is out of range\n  got: {value}"):
            dataclasses.replace(MANIFEST, batch=value)


ACCURACY = Accuracy("market", "market1501", "cosine", "pytorch", "float32", "cpu", 0.5, 0.25, 0.1, 7, 40)


def accuracy(dataset: str = "market", **changes: Any) -> Accuracy:
    return dataclasses.replace(ACCURACY, dataset=dataset, **changes)


class TestAccuracy:
    def test_it_is_added_and_the_rest_stays(self, folder):
        bundle = record_accuracy(open_bundle(folder), accuracy())
        assert bundle == open_bundle(folder)
        assert bundle.manifest.accuracy == (accuracy(),)
        assert dataclasses.replace(bundle.manifest, files={}, accuracy=()) == MANIFEST
        assert names(folder) == FILES

    def test_the_same_measurement_is_replaced_and_others_stay(self, folder):
        bundle = open_bundle(folder)
        others = [
            accuracy("duke"),
            accuracy(protocol="cuhk03"),
            accuracy(metric="euclidean"),
            accuracy(runtime="openvino"),
            accuracy(precision="float16"),
            accuracy(device="cuda"),
        ]
        for measured in [accuracy(rank1=0.1), *others, accuracy(rank1=0.9, gallery=41)]:
            bundle = record_accuracy(bundle, measured)
        assert open_bundle(folder).manifest.accuracy == (*others, accuracy(rank1=0.9, gallery=41))

    def test_what_could_not_be_read_back_is_not_recorded(self, folder):
        bundle = open_bundle(folder)
        with as_installed(), pytest.raises(ConfigError) as caught:
            record_accuracy(bundle, accuracy(gallery=np.int64(40)))
        assert str(caught.value).startswith("manifest.accuracy[0].gallery has the wrong type\n  got: ")
        assert open_bundle(folder) == bundle

    def test_one_recorded_meanwhile_is_kept(self, folder):
        bundle = open_bundle(folder)
        record_accuracy(bundle, accuracy("duke"))
        record_accuracy(bundle, accuracy("market"))
        assert [a.dataset for a in open_bundle(folder).manifest.accuracy] == ["duke", "market"]

    def test_a_bundle_that_was_replaced_meanwhile_is_not_praised(self, folder):
        bundle = open_bundle(folder)
        write(folder, model=b"another", overwrite=True)
        with pytest.raises(BundleError, match=r"m\.reid was replaced since it was opened\n  to do: do it again"):
            record_accuracy(bundle, accuracy())
        assert open_bundle(folder).manifest.accuracy == ()

    def test_no_permission_leaves_the_old_manifest(self, folder):
        bundle = open_bundle(folder)
        folder.chmod(0o555)
        folder.parent.chmod(0o755)
        with (
            unprivileged(folder.parent),
            pytest.raises(OutputError, match=r"Cannot write .*manifest\.json\n.*Permission"),
        ):
            record_accuracy(bundle, accuracy())
        assert open_bundle(folder) == bundle


TABLE, GRAPH = "calibration.json", "model.int8-cpu.onnx"
OLD, NEW = {TABLE: b"old table", GRAPH: b"old graph"}, {TABLE: b"new table", GRAPH: b"new graph"}


def beside(bundle: Bundle) -> dict[str, bytes]:
    """The files that the bundle lists beside those that it is made of, with their contents."""
    listed = [name for name in bundle.manifest.files if name in NEW]
    return {name: (bundle.path / name).read_bytes() for name in listed}


class TestFilesBeside:
    def test_they_are_listed_and_opened_with_the_bundle(self, folder):
        bundle = open_bundle(folder)
        assert (bundle.calibration, bundle.int8_model("cpu")) == (None, None)
        result = replace_files(bundle, NEW)
        assert result == open_bundle(folder)
        assert beside(result) == NEW
        assert (result.calibration, result.int8_model("cpu")) == (folder / TABLE, folder / GRAPH)
        assert result.int8_model("tensorrt") is None
        assert names(folder) == sorted([*FILES, TABLE, GRAPH])
        assert dataclasses.replace(result.manifest, files={}) == MANIFEST
        assert {name: result.manifest.files[name] for name in bundle.manifest.files} == bundle.manifest.files

    def test_they_take_the_place_of_earlier_ones(self, folder):
        first = replace_files(open_bundle(folder), OLD)
        second = replace_files(first, {TABLE: NEW[TABLE]})
        assert beside(open_bundle(folder)) == {TABLE: NEW[TABLE], GRAPH: OLD[GRAPH]}
        assert beside(replace_files(second, NEW)) == NEW

    def test_what_was_measured_of_the_old_ones_falls_away(self, folder):
        bundle = open_bundle(folder)
        for precision in ("float32", "int8"):
            bundle = record_accuracy(bundle, dataclasses.replace(ACCURACY, precision=precision))
            row = Latency("onnxruntime", precision, "cpu", "2 cores", 1, False, 1.0, 2.0, 1000.0, 5)
            bundle = record_latency(bundle, [row])
        kept = replace_files(bundle, OLD).manifest
        assert [row.precision for row in (*kept.accuracy, *kept.latency)] == ["float32", "int8"] * 2
        left = replace_files(open_bundle(folder), NEW, stale="int8").manifest
        assert [row.precision for row in (*left.accuracy, *left.latency)] == ["float32"] * 2

    @pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "model.xml", "weights.safetensors", "golden.npz"])
    def test_what_a_bundle_is_made_of_is_not_replaced(self, folder, name):
        with pytest.raises(ValueError, match=f"'{name}'.* are written by write_bundle alone"):
            replace_files(open_bundle(folder), {name: b"x", TABLE: b"y"})
        assert names(folder) == FILES

    def test_a_changed_one_is_found_out(self, folder):
        replace_files(open_bundle(folder), NEW)
        (folder / GRAPH).write_bytes(b"tampered")
        with pytest.raises(BundleError, match=f"{GRAPH} is not the file that the manifest was written for"):
            open_bundle(folder)

    @pytest.mark.parametrize("before", [{}, OLD])
    def test_a_bundle_that_was_replaced_meanwhile_gets_none(self, folder, before):
        bundle = replace_files(open_bundle(folder), before)
        write(folder, model=b"another", overwrite=True)
        with pytest.raises(BundleError, match=r"m\.reid was replaced"):
            replace_files(bundle, NEW)
        assert beside(open_bundle(folder)) == {}

    def test_a_measurement_that_was_recorded_meanwhile_is_kept(self, folder):
        bundle = replace_files(open_bundle(folder), OLD)
        record_accuracy(bundle, accuracy())
        replace_files(bundle, NEW)
        assert [a.dataset for a in open_bundle(folder).manifest.accuracy] == ["market"]

    @pytest.mark.parametrize(
        ("call", "error"),
        [("write_bytes", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))), ("replace", KeyboardInterrupt())],
    )
    @pytest.mark.parametrize(("before", "step"), [({}, 1), ({}, 2), ({}, 3), (OLD, 1), (OLD, 2), (OLD, 3), (OLD, 4)])
    def test_broken_off_at_any_step_it_opens(self, folder, monkeypatch, error, call, before, step):
        bundle = replace_files(open_bundle(folder), before)
        real, made = getattr(Path, call), []

        def failing(self: Path, given: Any) -> Any:
            made.append(self.name)
            if len(made) == step:
                if call == "write_bytes":
                    real(self, given[:3])
                raise error
            return real(self, given)

        with monkeypatch.context() as patch:
            patch.setattr(Path, call, failing)
            with pytest.raises((OutputError, KeyboardInterrupt)):
                replace_files(bundle, NEW)
        assert len(made) == step
        opened = open_bundle(folder)
        assert beside(opened) == (before if step == 1 else {})
        assert opened.model.read_bytes() == MODEL
        assert set(names(folder)) <= {*FILES, TABLE, GRAPH}  # no temporary files
        assert beside(replace_files(opened, NEW)) == NEW

    def test_no_permission_leaves_what_there_was(self, folder):
        bundle = replace_files(open_bundle(folder), OLD)
        folder.chmod(0o555)
        folder.parent.chmod(0o755)
        with unprivileged(folder.parent), pytest.raises(OutputError, match="Permission denied"):
            replace_files(bundle, NEW)
        folder.chmod(0o755)
        assert beside(open_bundle(folder)) == OLD
