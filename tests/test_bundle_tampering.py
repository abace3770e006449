import hashlib
import json
from pathlib import Path

import pytest

from conditions import unprivileged
from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.bundle import (
    open_bundle,
)
from reidkit.errors import BundleError
from small_bundle import files_of, put, sign, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "m.reid").path


ACCURACY = {
    "dataset": "d", "protocol": "p", "metric": "cosine", "runtime": "r", "precision": "float32", "device": "cpu",
    "rank1": 0.5, "mAP": 0.5, "mINP": 0.5, "queries": 1, "gallery": 1,
}  # fmt: skip


def refusal(path: Path | str) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    return str(caught.value)


class TestTampering:
    @pytest.mark.parametrize("name", ["golden.npz", "model.onnx", "weights.safetensors"])
    @pytest.mark.parametrize("place", [0, -1])
    def test_one_changed_byte_is_refused_by_name(self, folder, name, place):
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 1
        (folder / name).write_bytes(data)
        text = refusal(folder)
        expected = files_of(folder)[name]
        got = hashlib.sha256(data).hexdigest()
        assert text == (
            f"{folder / name} is not the file that the manifest was written for\n"
            f"  got: sha256 {got[:16]}… of {len(data):,} bytes\n  expected: sha256 {expected[:16]}…\n"
            "  to do: copy the bundle again, whole; or export it again"
        )

    @pytest.mark.parametrize("name", ["golden.npz", "model.onnx", "weights.safetensors"])
    def test_a_truncated_file_is_refused_by_name(self, folder, name):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1])
        assert refusal(folder).startswith(f"{folder / name} is not the file that the manifest was written for\n")

    @pytest.mark.parametrize("name", ["golden.npz", "model.onnx", "weights.safetensors"])
    @pytest.mark.parametrize("instead", ["nothing", "folder"])
    def test_a_missing_file_is_named(self, folder, name, instead):
        (folder / name).unlink()
        if instead == "folder":
            (folder / name).mkdir()
        assert refusal(folder) == (
            f"{folder / name} is missing\n  to do: copy the bundle again, whole; or export it again"
        )

    @pytest.mark.parametrize(
        "change",
        [
            ('"dim": 5', '"dim": 6'),
            ('"größe"', '"grösse"'),
            ('"scale": 1.0', '"scale": 2.0'),
            ('"bgr"', '"rgb"'),
            ('"lr": 0.1', '"lr": 0.2'),
            ('"sha256": "', '"sha256": "0'),
            ('"batch": 2,', ""),
        ],
    )
    def test_a_changed_manifest(self, folder, change):
        file = folder / "manifest.json"
        text = file.read_text(encoding="utf-8")
        assert change[0] in text
        file.write_text(text.replace(*change, 1), encoding="utf-8")
        assert refusal(folder).startswith(f"{file} was changed after it was written\n  got: sha256 ")

    def test_no_byte_of_the_manifest_can_be_changed_unseen(self, folder):
        file = folder / "manifest.json"
        data = file.read_bytes()
        before = open_bundle(folder)
        for place in range(0, len(data), 7):
            file.write_bytes(data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :])
            try:
                assert open_bundle(folder) == before  # a space that became another
            except BundleError as error:
                assert "manifest.json" in str(error)  # noqa: PT017 (most raise, a few need not)

    def test_no_manifest(self, folder):
        (folder / "manifest.json").unlink()
        assert refusal(folder) == (
            f"{folder / 'manifest.json'} is missing\n  expected: a bundle\n  to do: check the path, or copy it whole"
        )

    @pytest.mark.parametrize(
        "content",
        [b"", b"no json", b'{"schema": 1, ', b"\xff\xfe\xfd", b"[" * 100_000, b'{"schema": ' + b"9" * 5000 + b"}"],
        ids=["empty", "text", "cut", "no-text", "deep", "long-number"],
    )
    def test_a_manifest_that_is_no_json(self, folder, content):
        (folder / "manifest.json").write_bytes(content)
        text = refusal(folder)
        assert text.startswith(f"{folder / 'manifest.json'} cannot be read\n  got: ")
        assert text.endswith("\n  to do: copy the bundle again, whole")

    def test_a_truncated_manifest(self, folder):
        file = folder / "manifest.json"
        data = file.read_bytes()
        for length in range(0, len(data) - 1, 37):
            file.write_bytes(data[:length])
            assert refusal(folder).startswith(f"{file} cannot be read\n")

    @pytest.mark.parametrize("depth", range(900, 1010, 5))
    def test_a_manifest_nested_to_the_limit(self, folder, depth):
        (folder / "manifest.json").write_text('{"schema": 1, "x": ' + "[" * depth + "]" * depth + "}")
        assert "cannot be read" in (text := refusal(folder)) or "was changed after it was written" in text

    @pytest.mark.parametrize(
        "content",
        ["[]", "3", "null", "{}", '{"schema": "1"}', '{"schema": null}', '{"schema": 1.0}', '{"schema": true}'],
    )
    def test_json_that_is_no_manifest(self, folder, content):
        (folder / "manifest.json").write_text(content)
        assert refusal(folder) == (
            f'{folder / "manifest.json"} is no manifest\n  expected: an object with a number "schema"'
        )

    @pytest.mark.parametrize(
        ("schema", "fix"),
        [(3, "update reidkit (pip install -U reidkit)"), (0, "export the bundle again"), (-1, "export")],
    )
    def test_another_schema(self, folder, schema, fix):
        sign(folder, {}, schema=schema, a_new_key=True)
        text = refusal(folder)
        assert text.startswith(
            f"{folder / 'manifest.json'} has a schema this reidkit cannot read\n  got: {schema}\n  expected: 2\n"
        )
        assert f"  to do: {fix}" in text

    def test_an_older_schema_is_read_and_what_it_lacks_takes_its_default(self, folder, monkeypatch):
        values = json.loads((folder / "manifest.json").read_bytes())
        assert values.pop("precision") == "float32"
        assert values.pop("batch") == 2
        (folder / "manifest.json").write_text(json.dumps(values))
        sign(folder, {})
        monkeypatch.setattr("reidkit.manifest.SCHEMA", 3)
        manifest = open_bundle(folder).manifest
        assert (manifest.precision, manifest.batch, manifest.name) == ("float32", None, "größe")
        sign(folder, {}, schema=4)
        assert "manifest.json has a schema this reidkit cannot read\n  got: 4\n  expected: 3\n" in refusal(folder)

    def test_the_flat_architecture_of_the_first_schema_is_read(self, folder):
        options = {"depth": 18, "ibn": "none", "last_stride": 2, "pooling": "gem", "gem_p": 2.0, "gem_learned": True}
        sign(folder, {"architecture": {"family": "resnet", "options": options}}, schema=1)
        assert open_bundle(folder).manifest.architecture == ModelSpec(
            ResNetSpec(depth=18, ibn="none", last_stride=2), HeadSpec(pooling="gem", gem_p=2.0, gem_learned=True)
        )
        sign(folder, {"architecture": {"family": "squeezenet", "options": {}}}, schema=1)
        assert "Unknown architecture family 'squeezenet'" in refusal(folder)

    @pytest.mark.parametrize(
        ("change", "got"),
        [
            (
                {"architecture": {"backbone": {"family": "osnett"}}},
                "Unknown value of manifest.json.architecture.backbone",
            ),
            ({"architecture": {"backbone": {"depth": 18}}}, "Missing in manifest.json.architecture.backbone: family"),
            ({"cost": {"parameters": 10**400}}, "The number of parameters is out of range"),
            ({"cost": {"parameters": -5}}, "The number of parameters is out of range"),
            ({"accuracy": [ACCURACY | {"mAP": 1.5}]}, "mAP is out of range\n"),
            ({"accuracy": [ACCURACY | {"rank1": float("nan")}]}, "rank1 is out of range\n"),
            ({"taks": "person"}, "Unknown key 'manifest.json.taks'"),
            ({"task": "dog"}, "Unknown value of manifest.json.task: 'dog'"),
            ({"embedding": {"dim": "5"}}, "manifest.json.embedding.dim has the wrong type"),
            ({"embedding": {"dim": 0}}, "The embedding width is out of range"),
            ({"batch": 0}, "The batch size is out of range"),
            ({"batch": -1}, "The batch size is out of range"),
            ({"input": {"height": 0, "width": 3}}, "The input size is out of range"),
            ({"input": {"height": 4, "width": 3, "scale": 10**400}}, "manifest.json.input.scale has the wrong type"),
            ({"files": {"model.onnx": 3}}, "manifest.json.files.model.onnx has the wrong type"),
        ],
    )
    def test_a_signed_manifest_that_says_something_impossible(self, folder, change, got):
        sign(folder, change)
        assert refusal(folder).startswith(f"{folder / 'manifest.json'} is not what this reidkit writes\n  got: {got}")

    @pytest.mark.parametrize("name", ["golden.npz", "model.onnx"])
    def test_a_signed_manifest_that_lists_no_model_or_golden(self, folder, name):
        files = files_of(folder)
        del files[name]
        sign(folder, {"files": files})
        assert refusal(folder) == f"{folder / 'manifest.json'} lists no {name}\n  to do: export the bundle again"


class TestNamesOutside:
    @pytest.mark.parametrize(
        "name",
        ["../secret", "inner/../../secret", "/etc/passwd", "..", "", ".", "C:/secret", "..\\secret", "C:secret"],
    )
    def test_a_name_that_leads_outside(self, folder, name):
        (folder.parent / "secret").write_bytes(b"s")
        sign(folder, {"files": {**files_of(folder), name: hashlib.sha256(b"s").hexdigest()}})
        assert refusal(folder) == (
            f"{folder / 'manifest.json'} names a file outside the bundle\n  got: {name!r}\n  to do: do not use it"
        )

    @pytest.mark.parametrize("link", ["model.onnx", "golden.npz"])
    def test_a_link_is_refused_even_to_the_right_bytes(self, folder, link):
        (folder / link).rename(folder.parent / "outside")
        (folder / link).symlink_to(folder.parent / "outside")
        assert refusal(folder) == (
            f"{folder / link} is a link\n  expected: a plain file inside the bundle\n  to do: do not use it"
        )

    def test_a_link_on_the_way_is_refused(self, folder):
        outside = folder.parent / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"s")
        (folder / "inner").symlink_to(outside)
        sign(folder, {"files": {**files_of(folder), "inner/secret": hashlib.sha256(b"s").hexdigest()}})
        assert refusal(folder).startswith(f"{folder / 'inner'} is a link\n")

    def test_a_file_in_a_folder_of_the_bundle(self, folder):
        (folder / "engines").mkdir()
        put(folder, "engines/x.plan", b"engine")
        assert "engines/x.plan" in open_bundle(folder).manifest.files

    @pytest.mark.parametrize("name", ["x" * 300, "nul\0l"])
    def test_a_name_that_cannot_be(self, folder, name):
        sign(folder, {"files": {**files_of(folder), name: "0"}})
        assert refusal(folder).startswith(str(folder))

    def test_the_bundle_itself_may_be_reached_by_a_link(self, folder):
        (folder.parent / "latest.reid").symlink_to(folder)
        assert open_bundle(folder.parent / "latest.reid").manifest.name == "größe"


class TestNoBundle:
    def test_nothing_there(self, tmp_path):
        assert refusal(tmp_path / "m.reid") == (
            f"{tmp_path / 'm.reid'} does not exist\n  expected: a folder NAME.reid\n  to do: check the path"
        )

    def test_a_file(self, folder):
        assert refusal(folder / "model.onnx").startswith(f"{folder / 'model.onnx'} is a file, not a bundle\n")

    @pytest.mark.parametrize("closed", ["m.reid", "m.reid/model.onnx", "m.reid/manifest.json", "."])
    def test_one_that_may_not_be_read(self, folder, closed):
        folder.parent.chmod(0o755)
        (folder.parent / closed).chmod(0)
        with unprivileged(folder.parent):
            text = refusal(folder)
        (folder.parent / closed).chmod(0o700)
        assert text.startswith(str(folder))
        assert "cannot be read\n  got: [Errno 13] Permission denied" in text
