"""`reid export` from a bundle to the files of others."""

import subprocess
import sys

import pytest

from osnet_bundle import write_osnet


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_osnet(tmp_path_factory.mktemp("bundle") / "small.reid").path


def test_a_bundle_becomes_caffe_files(run, bundle, tmp_path):
    out = tmp_path / "small.prototxt"
    status, printed, _ = run("export", bundle, "--out", out)
    assert status == 0
    assert " ".join(printed.split()) == f"wrote {out} and small.caffemodel, which belongs to it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.caffemodel", "small.prototxt"]
    status, _, err = run("export", bundle, "--out", out)
    assert status == 2
    assert "small.prototxt already exists" in err
    assert run("export", bundle, "--out", out, "--overwrite")[0] == 0


def test_caffe_files_need_no_torch(bundle, tmp_path):
    arguments = ["export", str(bundle), "--out", str(tmp_path / "small.prototxt")]
    code = f"import sys; sys.modules['torch'] = None\nfrom reidkit.cli import main\nsys.exit(main({arguments!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "small.caffemodel").is_file()


def test_the_weights_file_is_not_named_as_the_output(run, bundle, tmp_path):
    status, _, err = run("export", bundle, "--out", tmp_path / "small.caffemodel")
    assert status == 2
    assert "expected: NAME.prototxt; NAME.caffemodel is written beside it" in err
    assert "to do: call it small.prototxt" in err


def test_a_run_is_made_a_bundle_first(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.safetensors").touch()
    for source in (tmp_path / "run", tmp_path / "run" / "model.safetensors"):
        status, _, err = run("export", source, "--out", tmp_path / "people.prototxt")
        assert status == 2
        words = " ".join(err.split())
        assert "Caffe files are written from a bundle" in words
        assert f"to do: reid export {source} --out people.reid, then export that" in words


@pytest.mark.parametrize("name", ["x.prototxt", "x.wts"])
@pytest.mark.parametrize("option", [("--name", "new"), ("--licence", "permissive")])
def test_files_for_others_have_no_place_for_facts(run, bundle, tmp_path, name, option):
    status, _, err = run("export", bundle, "--out", tmp_path / name, *option)
    assert status == 2
    assert f"{name} has no place for --name and --licence" in err


def test_something_that_is_no_bundle(run, tmp_path):
    status, _, err = run("export", tmp_path / "none.reid", "--out", tmp_path / "x.prototxt")
    assert status == 2
    assert "none.reid does not exist" in err
