import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from reidkit import decoding, imaging
from reidkit.decoding import stream_crops
from reidkit.errors import ConfigError, ImageError, ReidkitError
from reidkit.types import InputSpec

SPEC = InputSpec(2, 2, resize="nearest")


def write_greys(folder: Path, n: int) -> list[Path]:
    files = [folder / f"{i:03}.png" for i in range(n)]
    for i, file in enumerate(files):
        file.write_bytes(encoded(Image.new("L", (3, 3), i), "PNG"))
    return files


def decoding_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reidkit-decode")]


class Counted:
    """Stands in for `load_crop` and counts how often it was started."""

    def __init__(self) -> None:
        self.started = 0
        self._lock = threading.Lock()

    def __call__(self, source: Path | str, spec: InputSpec) -> np.ndarray:
        with self._lock:
            self.started += 1
        return np.zeros((spec.height, spec.width, 3), dtype=np.uint8)

    def settle(self, wanted: int) -> int:
        """How many were started, after as many as `wanted` were, and a while for more."""
        deadline = time.monotonic() + 5
        while self.started < wanted and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.005)
        return self.started


class TestStream:
    @pytest.mark.parametrize("ahead", [1, 3, 100])
    def test_crops_come_in_order(self, tmp_path, ahead):
        files = write_greys(tmp_path, 24)
        crops = list(stream_crops(files, SPEC, workers=4, ahead=ahead))
        assert [int(crop[0, 0, 0]) for crop in crops if isinstance(crop, np.ndarray)] == list(range(24))

    def test_one_that_cannot_be_decoded_is_an_error_in_its_place(self, tmp_path):
        files = write_greys(tmp_path, 3)
        files[1].write_text("no picture")
        first, second, third = stream_crops(files, SPEC, workers=2)
        assert isinstance(first, np.ndarray)
        assert isinstance(second, ImageError)
        assert isinstance(third, np.ndarray)
        assert third[0, 0, 0] == 2
        assert str(second).startswith(f"{files[1]} is not a picture")

    def test_no_pictures_give_no_crops(self):
        assert list(stream_crops([], SPEC, workers=1)) == []

    def test_it_reads_ahead_as_far_as_it_may_and_no_further(self, monkeypatch):
        counted = Counted()
        monkeypatch.setattr(imaging, "load_crop", counted)
        stream = stream_crops([Path("x.jpg")] * 12, SPEC, workers=3, ahead=4)
        assert counted.started == 0
        for consumed, _ in enumerate(stream, start=1):
            allowed = min(12, consumed + 4)
            assert counted.settle(allowed) == allowed
        assert counted.started == 12

    def test_closed_early_it_stops_decoding_and_its_threads(self, monkeypatch):
        counted = Counted()
        monkeypatch.setattr(imaging, "load_crop", counted)
        stream = stream_crops([Path("x.jpg")] * 500, SPEC, workers=2, ahead=8)
        next(stream)
        assert decoding_threads()
        stream.close()
        assert decoding_threads() == []
        assert counted.started <= 9

    def test_an_error_that_is_not_the_pictures_fault_comes_through(self, monkeypatch):
        def out_of_memory(source: Path, spec: InputSpec) -> np.ndarray:
            raise MemoryError("too much")

        monkeypatch.setattr(imaging, "load_crop", out_of_memory)
        with pytest.raises(MemoryError, match="too much"):
            list(stream_crops([Path("x.jpg")] * 5, SPEC, workers=2))
        assert decoding_threads() == []

    @pytest.mark.parametrize("workers", [0, -1])
    def test_somebody_must_decode(self, workers):
        with pytest.raises(
            ConfigError, match=rf"So few workers cannot decode\n  got: {workers}\n  expected: 1 or more"
        ):
            next(stream_crops([Path("x.jpg")], SPEC, workers=workers))

    def test_it_must_read_ahead(self):
        with pytest.raises(ConfigError, match="Cannot decode that few pictures ahead\n  got: 0\n  expected: 1 or more"):
            next(stream_crops([Path("x.jpg")], SPEC, ahead=0))


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:  # noqa: A002 (Pillow's own name)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def odd_pictures(folder: Path) -> list[Path]:
    """Of every mode, turned, damaged, missing, too large; one that Pillow warns of."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 4), dtype=np.uint8)
    rgb, cmyk, exif = Image.fromarray(noise[..., :3]), Image.fromarray(noise, "RGBA").convert("CMYK"), Image.Exif()
    exif[0x0112] = 6
    jpeg = encoded(rgb, "JPEG", exif=exif)
    contents = {
        "rgb.jpg": jpeg,
        "rgba.png": encoded(Image.fromarray(noise), "PNG"),
        "grey.png": encoded(rgb.convert("L"), "PNG"),
        "sixteen.png": encoded(Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG"),
        "palette.gif": encoded(rgb, "GIF"),
        "palette.png": encoded(rgb.convert("P"), "PNG", transparency=b"\x00\x80"),
        "bit.png": encoded(rgb.convert("1"), "PNG"),
        "cmyk.jpg": encoded(cmyk, "JPEG"),
        "float.tif": encoded(rgb.convert("F"), "TIFF"),
        "whole.bmp": encoded(rgb.resize((6, 8)), "BMP"),
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "warned.jpg": encoded(rgb, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0"),  # announces five tags, and has none
        "text.jpg": b"no picture",
        "empty.png": b"",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "folder.jpg").mkdir()
    return [*(folder / name for name in contents), folder / "missing.jpg", folder / "folder.jpg"]


def told(item: np.ndarray | ImageError) -> tuple[object, ...]:
    """All that a consumer can see of a crop or an error."""
    if isinstance(item, ImageError):
        return item.problem, str(item.got), item.expected, item.fix, repr(item.__cause__)
    return item.shape, item.dtype, item.flags.writeable, item.tobytes()


@pytest.fixture
def started(monkeypatch) -> list[int]:
    """The processes that were started, by number."""
    numbers: list[int] = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            numbers.append(self.pid)

    monkeypatch.setattr(decoding, "Popen", Noted)
    return numbers


def alive(numbers: list[int]) -> list[int]:
    found = []
    for number in numbers:
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            continue
        found.append(number)
    return found


def put_before_serving(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Workers run this after they have imported what they need."""

    def popen(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert "serve(crops)" in arguments[-1]
        return subprocess.Popen(
            [*arguments[:-1], arguments[-1].replace("serve(crops)", f"{code}; serve(crops)")], **options
        )

    monkeypatch.setattr(decoding, "Popen", popen)


class TestProcesses:
    @pytest.mark.parametrize("lenient", [False, True])
    def test_they_give_what_threads_give_to_the_bit(self, tmp_path, monkeypatch, started, lenient):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # a setting of this process alone
        files = odd_pictures(tmp_path) + write_greys(tmp_path, 40)
        spec = InputSpec(8, 6)
        ways = [
            list(stream_crops(files, spec, workers=2, ahead=20, processes=processes)) for processes in (True, False)
        ]
        assert len(started) == 2
        assert alive(started) == []
        assert len(ways[0]) == len(files)
        for file, apart, here in zip(files, *ways, strict=True):
            assert told(apart) == told(here), file
        assert sum(isinstance(item, ImageError) for item in ways[0]) == 7 - lenient  # warnings are errors in tests

    @pytest.mark.parametrize("limit", ["PIL.Image.MAX_IMAGE_PIXELS", "reidkit.imaging.MAX_PIXELS"])
    def test_a_limit_of_this_process_holds_for_them(self, tmp_path, monkeypatch, limit):
        monkeypatch.setattr(limit, 4)  # the pictures have nine, more than twice as many
        files = write_greys(tmp_path, 3)
        ways = [list(stream_crops(files, SPEC, workers=1, processes=processes)) for processes in (True, False)]
        assert [told(item) for item in ways[0]] == [told(item) for item in ways[1]]
        assert {type(item) for item in ways[0]} == {ImageError}

    def test_relative_names_are_of_the_folder_that_is_current_then(self, tmp_path, monkeypatch):
        for name, grey in (("one", 10), ("two", 200)):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.png").write_bytes(encoded(Image.new("L", (3, 3), grey), "PNG"))
        monkeypatch.chdir(tmp_path / "one")
        with closing(stream_crops(["x.png"] * 4, SPEC, workers=1, ahead=1, processes=True)) as stream:
            greys = [int(next(stream)[0, 0, 0])]
            monkeypatch.chdir(tmp_path / "two")
            greys += [int(crop[0, 0, 0]) for crop in stream]
        assert greys[0] == 10
        assert greys[2:] == [200, 200]

    def test_what_one_cannot_do_is_done_here(self, tmp_path, monkeypatch):
        put_before_serving(
            monkeypatch,
            "from reidkit import imaging; imaging.load_crop = lambda source, spec: {}[source]",
        )
        crops = stream_crops(write_greys(tmp_path, 3), SPEC, workers=1, processes=True)
        assert [int(crop[0, 0, 0]) for crop in crops if isinstance(crop, np.ndarray)] == [0, 1, 2]

    def test_once_it_is_closed_nothing_is_done_again_here(self, tmp_path, monkeypatch):
        files = write_greys(tmp_path, 16)
        for file in files[4:]:  # the first four come together
            file.write_bytes(b"no picture")
        first, go_on, load, again = threading.Event(), threading.Event(), imaging.load_crop, []

        def held(source: Path, spec: InputSpec) -> np.ndarray:
            again.append(source)
            first.set()
            assert go_on.wait(30)
            return load(source, spec)

        monkeypatch.setattr(imaging, "load_crop", held)
        stream = stream_crops(files, SPEC, workers=1, ahead=8, processes=True)
        next(stream)
        assert first.wait(30)
        threading.Timer(0.2, go_on.set).start()
        stream.close()
        assert len(again) == 1

    def test_half_a_message_is_no_crop(self, tmp_path, monkeypatch):
        put_before_serving(
            monkeypatch,
            "import pickle; from reidkit import decoding; stream = os.fdopen(crops, 'wb'); "
            "stream.write(decoding._READY); stream.flush(); pickle.load(sys.stdin.buffer); "
            "pickle.dump(set(), stream); stream.write(bytes(12)); stream.flush(); os._exit(7)",
        )
        with pytest.raises(
            ReidkitError, match=r"A process that decoded pictures died\n  got: it ended with status 7, bet"
        ):
            list(stream_crops(write_greys(tmp_path, 4), SPEC, workers=1, ahead=8, processes=True))

    def test_closed_early_they_end(self, tmp_path, started):
        stream = stream_crops(write_greys(tmp_path, 60), SPEC, workers=2, ahead=8, processes=True)
        next(stream)
        assert len(alive(started)) == 2
        stream.close()
        assert alive(started) == []
        assert decoding_threads() == []

    def test_one_that_is_killed_is_an_error(self, tmp_path, started):
        with closing(stream_crops(write_greys(tmp_path, 60), SPEC, workers=2, ahead=8, processes=True)) as stream:
            next(stream)
            os.kill(started[0], signal.SIGKILL)
            with pytest.raises(ReidkitError) as caught:
                list(stream)
        problem, got, fix = str(caught.value).splitlines()
        assert problem == "A process that decoded pictures died"
        assert re.fullmatch(rf"  got: it was killed by signal 9: Killed, between {tmp_path}/\d+.png and .*\.png", got)
        assert fix == "  to do: take fewer workers if memory has run out; one decodes without processes"
        assert alive(started) == []
        assert decoding_threads() == []

    def test_what_a_library_prints_does_not_come_between_the_crops(self, tmp_path, monkeypatch, capfd):
        put_before_serving(
            monkeypatch,
            "from reidkit import imaging; load = imaging.load_crop; "
            "imaging.load_crop = lambda *what: (os.write(1, b'printed'), load(*what))[1]",
        )
        crops = stream_crops(write_greys(tmp_path, 3), SPEC, workers=1, processes=True)
        assert [int(crop[0, 0, 0]) for crop in crops if isinstance(crop, np.ndarray)] == [0, 1, 2]
        assert capfd.readouterr() == ("", "printed" * 3)

    @pytest.mark.parametrize(("workers", "ahead", "size"), [(2, 8, 2), (3, 4, 1), (1, 40, 16)])
    def test_they_read_ahead_as_far_as_they_may_and_no_further(self, monkeypatch, workers, ahead, size):
        counted = Counted()

        class Worker:
            def load(self, sources: list[Path], spec: InputSpec) -> list[np.ndarray]:
                assert len(sources) <= size
                return [counted(source, spec) for source in sources]

            def wait_until_ready(self) -> None: ...

            def kill(self) -> None: ...

            def close(self) -> None: ...

        monkeypatch.setattr(decoding, "_Worker", Worker)
        stream = stream_crops([Path("x.jpg")] * 60, SPEC, workers=workers, ahead=ahead, processes=True)
        for consumed, _ in enumerate(stream, start=1):
            allowed = min(60, consumed + ahead)
            wanted = 60 if allowed == 60 else allowed - allowed % size
            assert counted.settle(wanted) == wanted
        assert consumed == 60


SCRIPT = """
import os, sys
from pathlib import Path
from reidkit import decoding, types
print("once", flush=True)
files = sorted(Path(sys.argv[1]).iterdir())
stream = decoding.stream_crops(files, types.InputSpec(2, 2, resize="nearest"), workers=2, ahead=8, processes=True)
"""


class TestScripts:
    """Of users, without `if __name__ == "__main__"`, in a folder of files that have the names of modules."""

    @pytest.fixture
    def arguments(self, tmp_path, monkeypatch) -> list[str]:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, filter(None, sys.path))))
        (tmp_path / "pictures").mkdir()
        write_greys(tmp_path / "pictures", 20)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "pickle.py").write_text("raise SystemExit('this is not Python\\'s pickle')")
        monkeypatch.chdir(tmp_path / "elsewhere")
        return [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "pictures")]

    def test_python_is_as_isolated_as_theirs(self, arguments):
        """Under -I no code of the environment's path may run, and so not in the workers."""
        Path("sitecustomize.py").write_text("import os; os.write(2, b'ran')")
        path = os.environ["PYTHONPATH"].split(os.pathsep)
        Path(arguments[1]).write_text(f"import sys; sys.path[:0] = {path!r}\n{SCRIPT}print(len(list(stream)))")
        arguments.insert(1, "-I")
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        result = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
        assert (result.stdout, result.stderr) == ("once\n20\n", "")

    @pytest.mark.parametrize("from_file", [True, False])
    def test_they_run_once(self, arguments, from_file):
        script = SCRIPT + "print([int(crop[0, 0, 0]) for crop in stream] == list(range(20)))"
        if from_file:
            Path(arguments[1]).write_text(script)
        else:
            arguments[1:2] = ["-P", "-"] if sys.version_info >= (3, 11) else ["-"]
            Path("pickle.py").unlink()
        result = subprocess.run(arguments, input=script, capture_output=True, text=True, check=False)
        assert (result.stdout, result.stderr) == ("once\nTrue\n", "")

    @pytest.mark.parametrize(
        ("number", "last_words"), [(signal.SIGINT, r"(?s)Traceback.*KeyboardInterrupt\n"), (signal.SIGKILL, "")]
    )
    def test_a_signal_ends_them_and_their_processes(self, arguments, number, last_words):
        Path(arguments[1]).write_text(
            "import subprocess\nfrom reidkit import decoding\n"
            "class Noted(subprocess.Popen):\n"
            "    def __init__(self, *args, **options):\n"
            "        super().__init__(*args, **options)\n"
            "        print(self.pid)\n"
            "decoding.Popen = Noted\n" + SCRIPT + "next(stream)\nprint('decoding', flush=True)\n"
            "import time\ntime.sleep(60)\n"
        )
        with subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as script:
            assert script.stdout is not None
            lines = []
            for line in script.stdout:
                lines.append(line.strip())
                if lines[-1] == "decoding":
                    break
            numbers = [int(line) for line in lines if line.isdecimal()]
            assert alive(numbers) == numbers
            assert len(numbers) == 2
            os.killpg(script.pid, number)
            errors = script.communicate(timeout=30)[1]
        assert script.returncode == -number
        assert re.fullmatch(last_words, errors)
        assert errors.count("Traceback") <= 1
        deadline = time.monotonic() + 5
        while alive(numbers) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert alive(numbers) == []


class TestFallback:
    @pytest.mark.parametrize(
        ("program", "reason"),
        [
            (None, "the program has no Python interpreter of its own"),
            ("missing", "No such file or directory"),
            ("exit 3", "ended with status 3 before it was ready"),
            ("echo I am no Python; exec cat", "said what was not asked for before it was ready"),
        ],
    )
    def test_where_processes_cannot_be_started_threads_decode(
        self, tmp_path, monkeypatch, caplog, started, program, reason
    ):
        files = write_greys(tmp_path, 5)
        executable = tmp_path / "python"
        if program != "missing":
            executable.write_text(f"#!/bin/sh\n{program}\n")
            executable.chmod(0o755)
        monkeypatch.setattr(sys, "executable", program and str(executable))
        with caplog.at_level(logging.WARNING):
            stream = stream_crops(files, SPEC, workers=2, processes=True)
            crops = [next(stream)]
            assert alive(started) == []
            crops += stream
        assert [int(crop[0, 0, 0]) for crop in crops if isinstance(crop, np.ndarray)] == list(range(5))
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage().startswith("Pictures are decoded in threads, for processes cannot be started: ")
        assert reason in record.getMessage()

    def test_one_that_is_never_ready_is_not_waited_for(self, tmp_path, monkeypatch, caplog, started):
        (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setattr(decoding, "_PATIENCE", 0.1)
        assert len(list(stream_crops(write_greys(tmp_path, 3), SPEC, workers=1, processes=True))) == 3
        assert len(started) == 1
        assert alive(started) == []
        assert "was killed by signal 9: Killed before it was ready" in caplog.text

    def test_one_of_another_version_is_not_taken(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(decoding, "_READY", b"reidkit 0\n")  # of this process alone, as after an update
        assert len(list(stream_crops(write_greys(tmp_path, 3), SPEC, workers=1, processes=True))) == 3
        assert "said what was not asked for before it was ready" in caplog.text

    def test_a_frozen_program_is_not_started_again(self, tmp_path, monkeypatch, caplog, started):
        monkeypatch.setattr(sys, "frozen", True, raising=False)
        assert len(list(stream_crops(write_greys(tmp_path, 3), SPEC, processes=True))) == 3
        assert started == []
        assert "no Python interpreter of its own" in caplog.text


@pytest.mark.parametrize(
    ("pictures", "cores", "options", "expected"),
    [
        (2048, 3, {}, 3),
        (2047, 3, {}, 0),
        (2048, 2, {}, 0),
        (2048, 64, {}, 32),
        (2048, 2, {"workers": 40}, 40),
        (2048, 2, {"workers": 40, "ahead": 4}, 4),
        (2048, 8, {"workers": 2}, 0),
        (2048, 8, {"processes": False}, 0),
        (3000, 2, {"processes": True}, 2),
        (1, 2, {"processes": True}, 1),
    ],
)
def test_processes_for_many_pictures_on_several_cores(monkeypatch, pictures, cores, options, expected):
    asked = []

    @contextmanager
    def none(count: int) -> Iterator[list[object]]:
        asked.append(count)
        yield []

    monkeypatch.setattr(decoding, "_started", none)
    monkeypatch.setattr(imaging, "available_cores", lambda: cores)
    monkeypatch.setattr(imaging, "load_crop", Counted())
    with closing(stream_crops([Path("x.jpg")] * pictures, SPEC, **options)) as stream:
        next(stream)
    assert asked == [expected]
