"""Engines in a bundle: what is chosen, what is refused and in which words, and what happens when several use them."""

import hashlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from conditions import unprivileged
from reidkit.bundle import Bundle, open_bundle
from reidkit.errors import BundleError, ConfigError, OutputError, RuntimeMissing
from reidkit.runtime import engine_store
from reidkit.runtime.engine_facts import (
    Choice,
    EngineFacts,
    Machine,
    Pick,
    Profile,
    graph_digest,
    misfits,
    runs_on,
)
from reidkit.runtime.engine_store import (
    FOLDER,
    choose_engine,
    engine_lock,
    open_engine,
    read_choice,
    read_engine,
    read_store,
    record_choice,
    write_engine,
)
from small_bundle import MODEL, write

H200 = Machine("tensorrt", "8.6.0", "NVIDIA H200", "9.0", "580.95")
RTX4090 = Machine("tensorrt-rtx", "1.7.1.116", "NVIDIA GeForce RTX 4090", "8.9", "580.95")
NAME = "tensorrt-8.6.0-nvidia-h200-float16-network"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path / "a model.reid")


def facts_for(bundle: Bundle, **changes: object) -> EngineFacts:
    """Of an engine that fits H200."""
    values: dict[str, object] = {
        "runtime": "tensorrt",
        "version": "8.6.0",
        "precision": "float16",
        "via": "network",
        "graph": graph_digest(bundle, changes.get("via", "network")),  # pyright: ignore[reportArgumentType]
        "profiles": (Profile(1, 1, 1), Profile(2, 64, 64)),
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "driver": "580.95",
    }
    return EngineFacts(**values | changes)  # pyright: ignore[reportArgumentType]


def put(bundle: Bundle, data: bytes = b"kernels", **changes: object) -> EngineFacts:
    return write_engine(bundle, facts_for(bundle, **changes), data)


def rtx(bundle: Bundle, **changes: object) -> EngineFacts:
    own = {"runtime": "tensorrt-rtx", "version": "1.7.1.116", "gpu": None, "compute_capability": None, "driver": None}
    return facts_for(bundle, **own | changes)


def stored(bundle: Bundle) -> list[str]:
    return sorted(file.name for file in (bundle.path / FOLDER).iterdir())


def tamper(bundle: Bundle, name: str = NAME, **changes: object) -> Path:
    file = bundle.path / FOLDER / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


# Writing and reading


def test_what_was_written_is_read(bundle):
    written = put(bundle, b"kernels", options=("refit",), workspace=1 << 30, build_seconds=65.5, created="2025-01-01")
    assert written.sha256 == hashlib.sha256(b"kernels").hexdigest()
    assert written.size == 7
    assert stored(bundle) == [f"{NAME}-{written.sha256[:16]}.engine", f"{NAME}.json"]
    assert read_store(bundle) == [written]
    assert read_engine(bundle, written) == b"kernels"
    assert open_bundle(bundle.path).manifest == bundle.manifest


def test_an_engine_replaces_one_of_its_name(bundle):
    first = put(bundle, b"one")
    put(bundle, b"other", precision="float32")
    second = put(bundle, b"two")
    assert stored(bundle) == sorted(
        [f"{NAME}.json", second.file, *(file for file in stored(bundle) if "float32" in file)]
    )
    assert read_engine(bundle, choose_engine(bundle, "tensorrt", "float16", None, H200)) == b"two"
    with pytest.raises(BundleError, match=r"\.engine is missing"):
        read_engine(bundle, first)


def test_the_same_engine_built_twice_stays(bundle):
    put(bundle, b"one", build_seconds=1.0)
    again = put(bundle, b"one", build_seconds=2.0)
    assert read_engine(bundle, again) == b"one"
    assert len(stored(bundle)) == 2


def test_a_crash_between_engine_and_facts_leaves_the_old_engine(bundle, monkeypatch):
    old = put(bundle, b"old")
    write_text = Path.write_text

    def crash(path, *arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", crash)
    with pytest.raises(KeyboardInterrupt):
        put(bundle, b"new")
    monkeypatch.setattr(Path, "write_text", write_text)
    assert read_store(bundle) == [old]
    assert read_engine(bundle, old) == b"old"
    orphan = bundle.path / FOLDER / f"{NAME}-{hashlib.sha256(b'new').hexdigest()[:16]}.engine"
    other = orphan.with_name(orphan.name.replace("float16", "float32"))
    shutil.copy(orphan, other)
    put(bundle, b"newer")
    assert orphan.exists()  # somebody else may be about to write its facts
    for file in (orphan, other):
        os.utime(file, (0, 0))
    put(bundle, b"newest")
    assert not orphan.exists()
    assert other.exists()  # of another name: not for this writer to judge


@pytest.mark.parametrize("data", [b"kernel", b"kernels and more", b""])
def test_an_engine_of_another_length_is_refused(bundle, data):
    written = put(bundle)
    file = bundle.path / FOLDER / written.file
    file.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        read_engine(bundle, written)
    assert str(caught.value) == (
        f"{file} has the wrong length\n  got: {len(data)} bytes\n  expected: 7 bytes\n"
        f"  to do: reid build '{bundle.path}' --runtime tensorrt --precision fp16 --via network --rebuild"
    )


def test_a_changed_engine_is_refused(bundle):
    written = put(bundle)
    file = bundle.path / FOLDER / written.file
    file.write_bytes(b"Kernels")
    with pytest.raises(BundleError) as caught:
        open_engine(bundle, "tensorrt", None, None, H200)
    assert caught.value.problem == f"{file} is not the engine that its facts were written for; it was not loaded"
    assert caught.value.expected == f"sha256 {hashlib.sha256(b'kernels').hexdigest()[:16]}… of 7 bytes"


def test_facts_without_a_hash_open_nothing(bundle):
    (bundle.path / FOLDER).mkdir()
    facts = facts_for(bundle)
    (bundle.path / FOLDER / facts.file).write_bytes(b"")
    with pytest.raises(BundleError, match="is not the engine that its facts were written for"):
        read_engine(bundle, facts)


def test_a_link_is_refused(bundle, tmp_path):
    written = put(bundle)
    file = bundle.path / FOLDER / written.file
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is no plain file"):
        read_engine(bundle, written)


def test_a_linked_folder_is_refused_by_everybody(bundle, tmp_path, caplog):
    written = put(bundle)
    (bundle.path / FOLDER).rename(tmp_path / "elsewhere")
    (bundle.path / FOLDER).symlink_to(tmp_path / "elsewhere")
    for use in (
        lambda: read_engine(bundle, written),
        lambda: choose_engine(bundle, "tensorrt", None, None, H200),
        lambda: put(bundle, b"new"),
        lambda: engine_lock(bundle, NAME).__enter__(),
    ):
        with pytest.raises(BundleError, match="engines is a link"):
            use()
    assert read_store(bundle) == []
    assert "engines is a link" in caplog.text


def test_names_do_not_lead_out_of_the_folder(bundle):
    for name in ("../../x", "/tmp/x", "..\\x"):
        with pytest.raises(BundleError, match="An engine cannot be called"), engine_lock(bundle, name):
            pass
    assert facts_for(bundle, gpu="../../../etc/passwd").name == "tensorrt-8.6.0-..-..-..-etc-passwd-float16-network"


def test_a_bundle_that_cannot_be_written_to(bundle):
    bundle.path.chmod(0o555)
    try:
        with unprivileged(bundle.path):
            with pytest.raises(OutputError, match=r"Cannot write .*engine") as caught:
                put(bundle)
            assert caught.value.got == "Permission denied"
            with pytest.raises(OutputError, match=r"Cannot write .*\.lock") as caught, engine_lock(bundle, NAME):
                pytest.fail("nobody holds a lock that cannot be written")
            assert caught.value.fix == "copy the bundle to a folder that you may write to"
            with pytest.raises(OutputError, match=r"Cannot write .*auto-cuda-h200\.json"):
                record_choice(bundle, choice_for(bundle, machine="H200"))
    finally:
        bundle.path.chmod(0o755)


def test_an_engine_of_a_bundle_that_cannot_be_written_to_opens(bundle):
    put(bundle)
    for folder in (bundle.path / FOLDER, bundle.path):
        folder.chmod(0o555)
    try:
        with unprivileged(bundle.path):
            assert open_engine(bundle, "tensorrt", None, None, H200)[1] == b"kernels"
    finally:
        for folder in (bundle.path, bundle.path / FOLDER):
            folder.chmod(0o755)


# Hostile facts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[]", "It has no schema that this reidkit knows"),
        ("[" * 60_000, "cannot be read"),
        ('{"schema": 2}', "It has no schema that this reidkit knows"),
        ('{"schema": 1, "build_seconds": NaN}', "NaN is no number"),
        ('{"schema": 1, "build_seconds": 1e400}', "1e400 is no number"),
        ('{"schema": 1}' + " " * 70_000, "has the wrong length"),
        ('{"schema": 1}', "Missing in"),
        ('{"schema": 1, "size": ' + "1" * 5000 + "}", "cannot be read"),
    ],
)
def test_facts_that_are_none_are_skipped_with_a_warning(bundle, caplog, text, message):
    good = put(bundle, precision="float32")
    (bundle.path / FOLDER / f"{NAME}.json").write_text(text)
    assert read_store(bundle) == [good]
    assert message in caplog.text
    assert f"{NAME}.json" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "../../8"}, "version of an engine cannot be this"),
        ({"runtime": "bash"}, "Unknown runtime 'bash'"),
        ({"options": ["turbo"]}, "Unknown option of an engine 'turbo'"),
        ({"sha256": "../../model.onnx"}, "sha256 of an engine cannot be this"),
        ({"sha256": ""}, "is not of the engine that it is named after"),
        ({"gpu": "../../x"}, "is not of the engine that it is named after"),
        ({"size": -1}, "numbers are out of range"),
        ({"size": True}, "size has the wrong type"),
        ({"size": 7.0}, "size has the wrong type"),
        ({"build_seconds": 1e400}, "Infinity is no number"),
        ({"profiles": []}, "profiles of an engine are out of order"),
        ({"profiles": [{"least": 1, "best": 1, "most": 8}, {"least": 8, "best": 8, "most": 9}]}, "out of order"),
        ({"profiles": [{"least": 2, "best": 1, "most": 8}]}, "batches are out of order"),
        ({"compute_capability": "newest"}, "compute capability of an engine cannot be this"),
        ({"surprise": 1}, "Unknown key"),
    ],
)
def test_hostile_facts_are_an_error_when_they_are_asked_for(bundle, caplog, changes, message):
    good = put(bundle, precision="float32")
    put(bundle)
    file = tamper(bundle, **changes)
    with caplog.at_level(logging.WARNING):
        assert read_store(bundle) == [good]
    assert message in caplog.text
    with pytest.raises(BundleError, match=file.name) as caught:
        choose_engine(bundle, "tensorrt", "float16", None, H200)
    assert message in str(caught.value)
    assert choose_engine(bundle, "tensorrt", "float32", None, H200) == good
    assert choose_engine(bundle, "tensorrt", None, None, H200) == good
    with pytest.raises(RuntimeMissing, match="No tensorrt engine in bfloat16 was built"):  # not `float16`'s affair
        choose_engine(bundle, "tensorrt", "bfloat16", None, H200)
    with pytest.raises(RuntimeMissing, match="No tensorrt-rtx engine was built"):
        choose_engine(bundle, "tensorrt-rtx", None, None, RTX4090)


def test_a_hostile_length_is_not_read(bundle):
    put(bundle)
    tamper(bundle, size=10**18)
    with pytest.raises(BundleError, match="has the wrong length"):
        open_engine(bundle, "tensorrt", None, None, H200)


def test_a_folder_or_pipe_in_the_place_of_facts(bundle, caplog):
    good = put(bundle, precision="float32")
    (bundle.path / FOLDER / f"{NAME}.json").mkdir()
    os.mkfifo(bundle.path / FOLDER / "tensorrt-9.json")
    assert read_store(bundle) == [good]
    assert caplog.text.count("is no plain file") == 2


def test_facts_refuse_nonsense(bundle):
    with pytest.raises(ConfigError, match="numbers are out of range"):
        facts_for(bundle, build_seconds=math.nan)
    with pytest.raises(ConfigError, match="version of an engine cannot be this"):
        facts_for(bundle, version="latest")


# What fits


def test_an_engine_fits_where_it_was_built(bundle):
    assert misfits(put(bundle), bundle, H200) == ()
    assert misfits(put(bundle), bundle, replace(H200, driver="535.1")) == ()
    assert misfits(put(bundle), bundle, replace(H200, compute_capability=None)) == ()


def test_another_graph(bundle, tmp_path):
    by_parser, by_network = put(bundle, via="parser"), put(bundle)
    other = write(tmp_path / "other.reid", model=MODEL + b"!")
    assert misfits(by_parser, other, H200) == ("it was built from another graph: the bundle was made again since",)
    assert misfits(by_network, other, H200) == ()  # its weights, architecture and input are the same
    narrower = replace(bundle.manifest, input=replace(bundle.manifest.input, width=5))
    assert len(misfits(by_network, replace(bundle, manifest=narrower), H200)) == 1


def test_another_library_or_none(bundle):
    facts = facts_for(bundle)
    assert misfits(facts, bundle, replace(H200, version=None)) == ("tensorrt is not installed here",)
    assert misfits(facts, bundle, replace(H200, runtime="tensorrt-rtx"))[0] == (
        "it is for tensorrt, not for tensorrt-rtx"
    )


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("8.6.0", "8.6.1", True),
        ("8.6.1", "8.6.0", False),
        ("8.6.0", "10.3.0", True),
        ("8.6.0", "11.0.0", False),
        ("8.5.3", "8.6.0", False),
        ("10.3.0", "10.16.1", True),
        ("10.16.1", "10.3.0", False),
        ("10.3.0", "11.1.0", True),
        ("11.1.0", "10.3.0", False),
        ("10.3.0", "of unknown age", False),
    ],
)
def test_another_version(bundle, built, here, fits):
    """As NVIDIA's support matrix of TensorRT 11.4.1 has it."""
    machine = replace(H200, version=here)
    reason = f"it was built by tensorrt {built}, and this is {here}"
    assert misfits(facts_for(bundle, version=built), bundle, machine) == (reason,)
    compatible = misfits(facts_for(bundle, version=built, options=("version-compatible",)), bundle, machine)
    assert compatible == (() if fits else (f"{reason}, which cannot run it although it is version-compatible",))


def test_rtx_runs_no_engine_of_another_release(bundle):
    facts = rtx(bundle, options=("version-compatible",))
    assert misfits(facts, bundle, replace(RTX4090, version="1.8.0")) == (
        "it was built by tensorrt-rtx 1.7.1.116, and this is 1.8.0",
    )


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [("9.0", "8.0", True), ("8.6", "12.0", True), ("9.0", "7.5", False), ("7.5", "9.0", False)],
)
def test_another_card(bundle, built, here, fits):
    machine = replace(H200, gpu="NVIDIA Other", compute_capability=here)
    reason = f"it was built on NVIDIA H200 (compute capability {built}), and this is NVIDIA Other ({here})"
    assert misfits(facts_for(bundle, compute_capability=built), bundle, machine) == (reason,)
    facts = facts_for(bundle, compute_capability=built, options=("hardware-compatible",))
    assert misfits(facts, bundle, machine) == (() if fits else (f"{reason}; hardware-compatible reaches down to 8.0",))


@pytest.mark.parametrize(
    ("built_for", "here", "fits"),
    [
        (None, "8.0", True),
        (None, "8.9", True),
        (None, "12.1", True),
        (None, "7.5", False),
        (None, "9.0", False),
        (None, "8.7", False),
        (None, "10.0", False),
        ("7.5", "7.5", True),
        ("7.5", "8.6", False),
        ("8.9", "8.6", False),
        ("8.9", "12.0", True),
        ("12.0", "9.0", False),
    ],
)
def test_cards_of_rtx(bundle, built_for, here, fits):
    reasons = misfits(rtx(bundle, compute_capability=built_for), bundle, replace(RTX4090, compute_capability=here))
    assert (reasons == ()) is fits
    assert all(here in reason for reason in reasons)


def test_flavours_of_cards():
    assert [c for c in ("7.0", "7.5", "8.0", "8.7", "9.0", "10.0", "12.0", "") if runs_on("tensorrt-rtx", c)] == [
        "7.5",
        "8.0",
        "12.0",
    ]
    assert runs_on("tensorrt", "9.0")


# What is chosen


def test_nothing_built(bundle):
    with pytest.raises(RuntimeMissing) as caught:
        choose_engine(bundle, "tensorrt", None, None, H200)
    assert str(caught.value) == (
        "No tensorrt engine was built for a model.reid\n"
        f"  to do: reid build '{bundle.path}' --runtime tensorrt --precision fp16"
    )


def test_nothing_built_in_the_precision_asked_for(bundle):
    put(bundle)
    put(bundle, precision="float32", via="parser")
    with pytest.raises(RuntimeMissing) as caught:
        choose_engine(bundle, "tensorrt", "bfloat16", "network", H200)
    assert str(caught.value) == (
        "No tensorrt engine in bfloat16 by network was built for a model.reid\n"
        "  got: float16 by network, float32 by parser\n"
        f"  to do: reid build '{bundle.path}' --runtime tensorrt --precision bf16 --via network"
    )


def test_nothing_fits(bundle):
    put(bundle)
    put(bundle, version="8.6.1", graph="0" * 64)
    machine = replace(H200, gpu="NVIDIA A100", compute_capability="8.0")
    card = "it was built on NVIDIA H200 (compute capability 9.0), and this is NVIDIA A100 (8.0)"
    with pytest.raises(RuntimeMissing) as caught:
        choose_engine(bundle, "tensorrt", None, None, machine)
    assert str(caught.value) == (
        "No tensorrt engine of a model.reid fits this machine\n"
        "  got: \n"
        f"    {NAME}: {card}\n"
        "    tensorrt-8.6.1-nvidia-h200-float16-network: "
        "it was built from another graph: the bundle was made again since; "
        f"it was built by tensorrt 8.6.1, and this is 8.6.0; {card}\n"
        f"  to do: reid build '{bundle.path}' --runtime tensorrt --precision fp16 --rebuild"
    )


def test_building_again_is_not_advised_where_it_would_not_help(bundle):
    put(bundle)
    with pytest.raises(RuntimeMissing, match="there is no NVIDIA card here") as caught:
        choose_engine(bundle, "tensorrt", None, None, Machine("tensorrt", "8.6.0"))
    assert "where an NVIDIA card is (`reid doctor` says" in str(caught.value.fix)
    write_engine(bundle, rtx(bundle), b"portable")
    with pytest.raises(RuntimeMissing, match=r"tensorrt-rtx does not run on NVIDIA H200 \(compute") as caught:
        choose_engine(bundle, "tensorrt-rtx", None, None, replace(H200, runtime="tensorrt-rtx", version="1.7.1.116"))
    assert caught.value.fix == "choose --runtime tensorrt, which this card needs"


def test_several_precisions(bundle):
    put(bundle)
    exact = put(bundle, precision="float32", via="parser")
    with pytest.raises(RuntimeMissing) as caught:
        choose_engine(bundle, "tensorrt", None, None, H200)
    assert str(caught.value) == (
        "Several tensorrt engines of a model.reid fit this machine\n"
        "  got: float16 by network, float32 by parser\n"
        "  expected: one precision to be asked for\n"
        "  to do: say which: precision='float16', or --precision fp16"
    )
    assert choose_engine(bundle, "tensorrt", "float32", None, H200) == exact
    assert choose_engine(bundle, "tensorrt", None, "parser", H200) == exact


def test_the_nearest_kin_is_chosen(bundle):
    by_parser = put(bundle, via="parser")
    assert choose_engine(bundle, "tensorrt", "float16", None, H200) == by_parser
    put(bundle, version="8.6.0.1", options=("version-compatible",), created="2030")
    older = put(bundle, version="8.6.0", gpu="NVIDIA A100", compute_capability="8.0", options=("hardware-compatible",))
    assert choose_engine(bundle, "tensorrt", "float16", None, H200) == older
    put(bundle, created="2031", options=("weight-stripped",))
    assert choose_engine(bundle, "tensorrt", "float16", None, H200) == older  # which can run
    own = put(bundle, created="2020")
    assert choose_engine(bundle, "tensorrt", "float16", None, H200) == own
    assert choose_engine(bundle, "tensorrt", "float16", "parser", H200) == by_parser
    put(bundle, version="8.6.1")
    assert choose_engine(bundle, "tensorrt", "float16", None, H200) == own


# Several at once


def test_a_reader_finds_the_old_engine_or_the_new_one(bundle):
    put(bundle, b"engine 0", build_seconds=0.0)
    stop = threading.Event()
    failures: list[BaseException] = []
    seen: set[bytes] = set()

    def read() -> None:
        try:
            while not stop.is_set():
                facts, data = open_engine(bundle, "tensorrt", None, None, H200)
                assert data == b"engine %d" % int(facts.build_seconds or 0)
                seen.add(data)
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 20):
        put(bundle, b"engine %d" % number, build_seconds=float(number))
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert len(seen) > 1
    assert len(stored(bundle)) == 2


def test_an_engine_that_is_replaced_while_it_is_opened(bundle, monkeypatch):
    put(bundle, b"old")
    read, replacements = engine_store.read_engine, iter([b"new", b"newer"])

    def replace_first(*arguments):
        if data := next(replacements, None):
            put(bundle, data)
        return read(*arguments)

    monkeypatch.setattr(engine_store, "read_engine", replace_first)
    facts, data = open_engine(bundle, "tensorrt", None, None, H200)
    assert data == b"newer"
    assert facts.sha256 == hashlib.sha256(b"newer").hexdigest()


BUILD = """
import sys, time
from pathlib import Path
from reidkit.bundle import open_bundle
from reidkit.runtime.engine_store import *
from reidkit.runtime.engine_facts import *

bundle, log = open_bundle(sys.argv[1]), Path(sys.argv[2])
facts = EngineFacts("tensorrt", "8.6.0", "float16", "network", graph_digest(bundle, "network"), (Profile(1, 1, 8),))
print("ready", flush=True)
sys.stdin.readline()
with engine_lock(bundle, facts.name):
    found = read_store(bundle)
    if not found:
        with log.open("a") as lines:
            lines.write("built\\n")
        time.sleep(0.5)
        found = [write_engine(bundle, facts, b"kernels")]
print(found[0].sha256)
"""


def test_two_processes_build_once(bundle, tmp_path):
    command = [sys.executable, "-c", BUILD, str(bundle.path), str(tmp_path / "log")]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60) for process in both]
    assert [out.strip() for out, _ in printed] == [hashlib.sha256(b"kernels").hexdigest()] * 2, printed
    assert (tmp_path / "log").read_text() == "built\n"


HOLD = """
import sys, time
from reidkit.bundle import open_bundle
from reidkit.runtime.engine_store import engine_lock

with engine_lock(open_bundle(sys.argv[1]), "some-engine"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def told(monkeypatch):
    """What is said while somebody waits: called with it, in its place."""
    calls: list[str] = []

    def tell(message: str, *values: object) -> None:
        calls.append(message % values)
        told.then()

    told = SimpleNamespace(calls=calls, then=lambda: None)
    monkeypatch.setattr(engine_store._logger, "warning", tell)
    return told


def test_a_lock_ends_with_its_process(bundle, told):
    command = [sys.executable, "-c", HOLD, str(bundle.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        killer = threading.Timer(0.2, process.send_signal, [signal.SIGKILL])

        told.then = killer.start
        with engine_lock(bundle, "some-engine"):
            assert told.calls == ["Somebody else is building some-engine; waiting for it"]
            assert process.wait(10) == -signal.SIGKILL
    told.then = lambda: pytest.fail("nobody holds it")
    with engine_lock(bundle, "some-engine"):
        pass


def test_threads_wait_for_each_other_and_say_so(bundle, told):
    order: list[str] = []
    held, waits = threading.Event(), threading.Event()

    def first() -> None:
        with engine_lock(bundle, NAME):
            held.set()
            waits.wait(10)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(10)
    with engine_lock(bundle, "another"):
        order.append("another")
    told.then = waits.set
    with engine_lock(bundle, NAME):
        order.append("second")
    thread.join()
    assert order == ["another", "first", "second"]
    assert told.calls == [f"Somebody else is building {NAME}; waiting for it"]


def test_a_lock_is_given_back_when_building_fails(bundle, told):
    with pytest.raises(ValueError, match="no memory"), engine_lock(bundle, NAME):
        raise ValueError("no memory")
    with engine_lock(bundle, NAME):
        assert told.calls == []
    assert read_store(bundle) == []


# What was fastest


def choice_for(bundle: Bundle, **changes: object) -> Choice:
    values: dict[str, object] = {
        "machine": "NVIDIA H200; Intel(R) Xeon(R), 16 of 64 cores",
        "device": "cuda",
        "graph": graph_digest(bundle, "parser"),
        "precision": "float16",
        "picks": (Pick(16, "tensorrt", "float16", "network", "ab" * 32), Pick(None, "inductor", "float16")),
        "timed": ((1, 0.42), (64, 2.59)),
        "created": "2025",
    }
    return Choice(**values | changes)  # pyright: ignore[reportArgumentType]


def test_the_choice_of_each_device_and_machine_is_kept(bundle, caplog):
    fast = choice_for(bundle)
    slow = choice_for(bundle, machine="Intel(R) Xeon(R)", device="cpu", picks=(Pick(None, "openvino", "float32"),))
    assert read_choice(bundle, fast.machine, "cuda") is None
    record_choice(bundle, fast)
    record_choice(bundle, slow)
    assert stored(bundle) == [
        "auto-cpu-intel-r-xeon-r.json",
        "auto-cuda-nvidia-h200-intel-r-xeon-r-16-of-64-cores.json",
    ]
    assert read_choice(bundle, fast.machine, "cuda") == fast
    assert read_choice(bundle, "Intel(R) Xeon(R)", "cpu") == slow
    assert read_choice(bundle, "intel(r) xeon(r)", "cpu") is None
    assert read_choice(bundle, fast.machine, "cuda:1") is None
    assert read_store(bundle) == []
    assert caplog.text == ""
    record_choice(bundle, replace(fast, precision="bfloat16"))
    assert read_choice(bundle, fast.machine, "cuda") == replace(fast, precision="bfloat16")


def test_a_choice_for_another_graph_is_none(bundle, tmp_path):
    choice = choice_for(bundle)
    record_choice(bundle, choice)
    other = write(tmp_path / "other.reid", model=MODEL + b"!")
    shutil.copytree(bundle.path / FOLDER, other.path / FOLDER)
    assert read_choice(other, choice.machine, "cuda") is None


def test_a_damaged_choice_is_an_error(bundle):
    choice = choice_for(bundle, machine="H200")
    record_choice(bundle, choice)
    file = bundle.path / FOLDER / "auto-cuda-h200.json"
    file.write_text(file.read_text().replace("float16", "float61"))
    with pytest.raises(BundleError, match=r"auto-cuda-h200\.json cannot be read") as caught:
        read_choice(bundle, "H200", "cuda")
    assert caught.value.fix == f"reid build '{bundle.path}' --runtime auto --device cuda"


@pytest.mark.parametrize("ends", [(), (4,), (4, 4, None), (8, 4, None), (None, 4), (0, None), (None, None)])
def test_ranges_of_batches_that_cannot_be(bundle, ends):
    with pytest.raises(ConfigError, match="The ranges of batches are out of order"):
        choice_for(bundle, picks=tuple(Pick(end, "openvino", "float32") for end in ends))
