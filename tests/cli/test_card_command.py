"""`reid card` and `reid bench --record`, end to end."""

import shutil

import pytest

from reidkit.bundle import open_bundle


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "copy.reid")


def test_a_card_of_what_was_recorded(run, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ("bench", bundle, "--runtime", "onnxruntime", "--batch", 2, "--seconds", 0, "--record")
    assert run(*arguments)[0] == 0
    assert run(*arguments)[0] == 0  # in place of the first
    without, including = open_bundle(bundle).manifest.latency
    assert (without.runtime, without.precision, without.device, without.batch) == ("onnxruntime", "float32", "cpu", 2)
    assert (without.decode, including.decode) == (False, True)
    assert "cores" in without.machine
    before = sorted(path.name for path in bundle.iterdir())
    status, out, _ = run("card", bundle)
    assert status == 0
    assert out == "wrote copy-card.md and copy-card.html\n"
    text = (tmp_path / "copy-card.md").read_text()
    numbers = (
        f"| 2 | {without.median_ms:.2f} | {without.p90_ms:.2f} | {without.images_per_second:,.1f} | {without.runs} |"
    )
    assert f"| onnxruntime on cpu | float32 | without {numbers}" in text
    assert f"{without.median_ms:.2f}" in (tmp_path / "copy-card.html").read_text()
    assert sorted(path.name for path in bundle.iterdir()) == before
    open_bundle(bundle)


def test_bench_without_record_changes_nothing(run, bundle):
    assert run("bench", bundle, "--runtime", "onnxruntime", "--batch", 1, "--seconds", 0)[0] == 0
    assert open_bundle(bundle).manifest.latency == ()


def test_files_that_are_there_are_replaced_only_when_asked(run, bundle, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    status, _, err = run("card", bundle, "--out", tmp_path / "mine.md")
    assert status == 2
    assert f"{tmp_path / 'mine.html'} already exists" in err
    assert "--overwrite" in err
    assert not (tmp_path / "mine.md").exists()
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert run("card", bundle, "--out", tmp_path / "mine.md", "--overwrite")[0] == 0
    assert "<title>tiny: Model card</title>" in (tmp_path / "mine.html").read_text()


def test_no_bundle(run, tmp_path):
    status, _, err = run("card", tmp_path / "none.reid")
    assert status == 2
    assert f"{tmp_path / 'none.reid'} does not exist" in err


def test_a_changed_bundle_gets_no_card(run, bundle, tmp_path):
    (bundle / "model.onnx").write_bytes(b"other")
    status, _, err = run("card", bundle, "--out", tmp_path)
    assert status == 2
    assert "is not the file that the manifest was written for" in err
    assert [path.name for path in tmp_path.iterdir()] == ["copy.reid"]


def test_never_into_a_bundle(run, bundle):
    status, _, err = run("card", bundle, "--out", bundle)
    assert status == 2
    assert f"The card cannot be written to {bundle / 'copy-card'}" in err
    assert "beside it" in err
    open_bundle(bundle)
