"""Engines that were built for a bundle, and the facts that bind each to a graph, a library and a card.

    NAME.reid/engines/
        tensorrt-8.6.0-nvidia-h200-float16-network.json                      `EngineFacts`
        tensorrt-8.6.0-nvidia-h200-float16-network-1f0c5a1e9b4d7730.engine   what the builder made, by its sha256
        auto-cuda-nvidia-h200-some-xeon-r-16-of-64-cores.json                `Choice`: what was fastest on that machine

An engine is native code: its bytes are handed to a library only when their sha256 is the recorded one, and facts and
graph fit. That finds damage and mix-ups, not malice: who can write the engine can write the facts. Take engines only
from whom you would run a program of.

An engine lies there before its facts do, and facts are replaced in one step: whoever reads finds the old engine or the
new one, and after a crash there is at most a file that no facts name.
"""

import hashlib
import json
import logging
import math
import re
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from reidkit.atomic import output_file
from reidkit.bundle import Bundle
from reidkit.config import from_dict, to_dict
from reidkit.errors import BundleError, ConfigError, OutputError, RuntimeMissing
from reidkit.runtime.engine_facts import Choice, EngineFacts, Machine, graph_digest, misfits, runs_on, slug
from reidkit.runtime.engine_facts import Profile as Profile  # noqa: PLC0414 (so that one import serves whoever builds)
from reidkit.types import Precision, Via

T = TypeVar("T")

FOLDER = "engines"
SCHEMA = 1

SHORT: dict[Precision, str] = {
    "float32": "fp32",
    "tf32": "tf32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "int8": "int8",
}
"""What the command line calls a precision."""

_ENGINE, _FACTS, _CHOICE = ".engine", ".json", "auto-"
_LARGEST_FACTS = 1 << 16  # bytes
_ABANDONED = 3600.0  # seconds after which an engine that no facts name is nobody's
_ATTEMPTS = 5  # at engines that are replaced while they are opened

_logger = logging.getLogger(__name__)


def read_store(bundle: Bundle) -> list[EngineFacts]:
    """Facts of every engine that was built for a bundle, by name; unreadable ones cost a warning in the log."""
    try:
        found, damaged = _scan(bundle)
    except BundleError as error:
        found, damaged = [], {FOLDER: error}
    for error in damaged.values():
        _logger.warning("%s", error)
    return found


def choose_engine(
    bundle: Bundle, runtime: str, precision: Precision | None, via: Via | None, machine: Machine
) -> EngineFacts:
    """The engine that fits.

    Args:
        bundle: that it was built for.
        runtime: "tensorrt" or "tensorrt-rtx".
        precision: of the arithmetic; None takes the only one that fits.
        via: how the network came to the builder; None prefers "network".
        machine: that it is to run on.

    Raises:
        RuntimeMissing: nothing was built, nothing of what was built fits, or engines of several precisions do.
        BundleError: nothing fits, and the facts of an engine that might cannot be read.
    """
    found, damaged = _scan(bundle)
    built = [facts for facts in found if facts.runtime == runtime]
    wanted = [f for f in built if precision in (None, f.precision) and via in (None, f.via)]
    reasons = [misfits(facts, bundle, machine) for facts in wanted]
    fitting = [facts for facts, reason in zip(wanted, reasons, strict=True) if not reason]
    if not fitting:
        _raise_damaged(damaged, runtime, precision, via)
        if not wanted:
            raise _nothing_built(bundle, runtime, precision, via, built)
        lines = [f"\n    {f.name}: {'; '.join(reason)}" for f, reason in zip(wanted, reasons, strict=True)]
        raise RuntimeMissing(
            f"No {runtime} engine of {bundle.path.name} fits this machine",
            got="".join(lines),
            fix=_remedy(bundle, machine, precision or wanted[0].precision, via),
        )
    fitting = [facts for facts in fitting if not facts.stripped] or fitting  # which could not run
    precisions: list[Precision] = list(dict.fromkeys(facts.precision for facts in fitting))
    if len(precisions) > 1:
        raise RuntimeMissing(
            f"Several {runtime} engines of {bundle.path.name} fit this machine",
            got=", ".join(_in_words(facts) for facts in fitting),
            expected="one precision to be asked for",
            fix=f"say which: precision={precisions[0]!r}, or --precision {SHORT[precisions[0]]}",
        )
    # The nearest kin first, then the youngest.
    return max(
        fitting,
        key=lambda f: (f.via == "network", f.version == machine.version, f.gpu == machine.gpu, f.created or ""),
    )


def _raise_damaged(damaged: dict[str, BundleError], runtime: str, precision: Precision | None, via: Via | None) -> None:
    """Raises what is wrong with the facts of an engine that was asked for."""
    asked = re.compile(rf"{re.escape(runtime)}-\d.*-{precision or '[a-z0-9]+'}-{via or '[a-z]+'}{re.escape(_FACTS)}")
    for name, error in damaged.items():
        if asked.fullmatch(name):
            raise error


def _remedy(bundle: Bundle, machine: Machine, precision: Precision, via: Via | None) -> str:
    """What to do where nothing fits: building again only helps where it could run."""
    if machine.gpu is None:
        return "open it where an NVIDIA card is (`reid doctor` says what is seen here), or choose another runtime"
    if not runs_on(machine.runtime, machine.compute_capability or ""):
        return "choose --runtime tensorrt, which this card needs"
    return build_command(bundle, machine.runtime, precision, via, rebuild=True)


def _nothing_built(
    bundle: Bundle, runtime: str, precision: Precision | None, via: Via | None, built: list[EngineFacts]
) -> RuntimeMissing:
    asked = "".join([f" in {precision}" if precision else "", f" by {via}" if via else ""])
    return RuntimeMissing(
        f"No {runtime} engine{asked} was built for {bundle.path.name}",
        got=", ".join(_in_words(facts) for facts in built) or None,
        fix=build_command(bundle, runtime, precision or "float16", via),
    )


def _in_words(facts: EngineFacts) -> str:
    return f"{facts.precision} by {facts.via}"


def build_command(
    bundle: Bundle, runtime: str, precision: Precision, via: Via | None = None, *, rebuild: bool = False
) -> str:
    """The command that builds an engine, ready for a shell."""
    words = ["reid", "build", str(bundle.path), "--runtime", runtime, "--precision", SHORT[precision]]
    words += (["--via", via] if via else []) + (["--rebuild"] if rebuild else [])
    return shlex.join(words)


def open_engine(
    bundle: Bundle, runtime: str, precision: Precision | None, via: Via | None, machine: Machine
) -> tuple[EngineFacts, bytes]:
    """Chooses an engine as `choose_engine` does, and reads it; one that is replaced meanwhile is chosen anew.

    Raises:
        RuntimeMissing, BundleError: as `choose_engine` and `read_engine`.
    """
    for _ in range(_ATTEMPTS - 1):
        facts = choose_engine(bundle, runtime, precision, via, machine)
        try:
            return facts, read_engine(bundle, facts)
        except BundleError:
            if facts in _scan(bundle)[0]:
                raise
    facts = choose_engine(bundle, runtime, precision, via, machine)
    return facts, read_engine(bundle, facts)


def read_engine(bundle: Bundle, facts: EngineFacts) -> bytes:
    """Reads an engine once, and gives its bytes only when they are those that the facts were written for.

    Raises:
        BundleError: the file is not there, is a link, or has another length or sha256.
    """
    file = _place(bundle, facts.file)
    fix = build_command(bundle, facts.runtime, facts.precision, facts.via, rebuild=True)
    data = _read_plain(file, facts.size, fix)
    digest = hashlib.sha256(data).hexdigest()
    if not facts.sha256 or digest != facts.sha256:
        raise BundleError(
            f"{file} is not the engine that its facts were written for; it was not loaded",
            got=f"sha256 {digest[:16]}… of {len(data):,} bytes",
            expected=f"sha256 {facts.sha256[:16]}… of {facts.size:,} bytes",
            fix=fix,
        )
    return data


def engine_size(bundle: Bundle, facts: EngineFacts) -> int | None:
    """Bytes of an engine's file; None where there is none that could be read."""
    try:
        found = _place(bundle, facts.file).lstat()
    except (OSError, BundleError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def write_engine(bundle: Bundle, facts: EngineFacts, data: bytes) -> EngineFacts:
    """Puts an engine into the store, in place of one of the same name; to be called within `engine_lock`.

    Args:
        bundle: that it was built for.
        facts: of the engine; `sha256` and `size` are filled in here.
        data: what the builder made.

    Raises:
        OutputError: the bundle cannot be written to, or the disk is full.
        BundleError: the folder of engines is a link.
    """
    facts = replace(facts, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    text = _facts_text(facts)
    place = _place(bundle, facts.name + _FACTS)
    before = None
    with suppress(BundleError):
        before = _read_facts(place)
    with output_file(_place(bundle, facts.file)) as temporary:
        temporary.write_bytes(data)
    with output_file(place) as temporary:
        temporary.write_text(text, encoding="utf-8")
    _remove_replaced(place.parent, facts, before)
    return facts


def _remove_replaced(folder: Path, facts: EngineFacts, before: EngineFacts | None) -> None:
    """Removes the engine that was replaced, and those that a crash has left without facts."""
    ours = re.compile(re.escape(facts.name) + r"-[0-9a-f]{16}" + re.escape(_ENGINE))
    for file in folder.glob(f"*{_ENGINE}"):
        with suppress(OSError):  # somebody was faster, or has it open where that matters
            replaced = before is not None and file.name == before.file
            abandoned = ours.fullmatch(file.name) and time.time() - file.lstat().st_mtime > _ABANDONED
            if file.name != facts.file and (replaced or abandoned):
                file.unlink()


@contextmanager
def engine_lock(bundle: Bundle, name: str) -> Iterator[None]:
    """Keeps other processes and threads from building the engine of a name while the block runs.

    The lock is the system's: it ends with the process that holds it. Once inside, look whether the engine was built
    meanwhile.

    Args:
        bundle: that it is built for.
        name: of the engine, as `EngineFacts.name`.

    Raises:
        OutputError: the bundle cannot be written to.
        BundleError: the folder of engines is a link.
        ModuleNotFoundError: filelock is not installed.
    """
    from filelock import FileLock, Timeout

    file = _place(bundle, f".{name}.lock")
    lock = FileLock(file)
    try:
        file.parent.mkdir(exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _logger.warning("Somebody else is building %s; waiting for it", name)
            lock.acquire()
    except OSError as error:
        fix = "copy the bundle to a folder that you may write to"
        raise OutputError(f"Cannot write {file}", got=error.strerror, fix=fix) from error
    try:
        yield
    finally:
        lock.release()


def record_choice(bundle: Bundle, choice: Choice) -> None:
    """Keeps what was the fastest on a machine, in place of what was kept for it.

    Raises:
        OutputError: the bundle cannot be written to.
        BundleError: the folder of engines is a link.
    """
    with output_file(_choice_place(bundle, choice.machine, choice.device)) as temporary:
        temporary.write_text(_facts_text(choice), encoding="utf-8")


def read_choice(bundle: Bundle, machine: str, device: str) -> Choice | None:
    """What was the fastest on a machine; None where nobody measured this graph there.

    Args:
        bundle: the model.
        machine: its name, as it was recorded.
        device: that the engines were to run on, as it was recorded.

    Raises:
        BundleError: what was kept cannot be read.
    """
    file = _choice_place(bundle, machine, device)
    if not file.exists():
        return None
    choice = _parse(file, Choice, choose_command(bundle, device=device))
    known = (choice.machine, choice.device, choice.graph) == (machine, device, graph_digest(bundle, "parser"))
    return choice if known else None


def choose_command(bundle: Bundle, *, device: str | None = None, precision: Precision | None = None) -> str:
    """The command that finds the fastest engine, ready for a shell; None leaves an option out."""
    words = ["reid", "build", str(bundle.path), "--runtime", "auto"]
    words += ["--device", device] if device else []
    return shlex.join(words + (["--precision", precision] if precision else []))


def _choice_place(bundle: Bundle, machine: str, device: str) -> Path:
    return _place(bundle, f"{_CHOICE}{slug(device)}-{slug(machine)}.json")


def _scan(bundle: Bundle) -> tuple[list[EngineFacts], dict[str, BundleError]]:
    """Facts by name, and what is wrong with those that cannot be read, by the name of the file."""
    found: list[EngineFacts] = []
    damaged: dict[str, BundleError] = {}
    for file in sorted(_place(bundle, "").glob(f"*{_FACTS}")):
        if file.name.startswith((_CHOICE, ".")):
            continue
        try:
            found.append(_read_facts(file))
        except BundleError as error:
            damaged[file.name] = error
    return found, damaged


def _read_facts(file: Path) -> EngineFacts:
    facts = _parse(file, EngineFacts, "build the engine again, with --rebuild")
    if file.name != facts.name + _FACTS or not facts.sha256:
        raise BundleError(
            f"{file} is not of the engine that it is named after",
            got=f"facts of {facts.name}",
            fix="build the engine again, with --rebuild",
        )
    return facts


def _parse(file: Path, kind: type[T], fix: str) -> T:
    try:
        values: Any = json.loads(_read_plain(file, None, fix), parse_constant=_finite, parse_float=_finite)
        if not isinstance(values, dict) or values.pop("schema", None) != SCHEMA:
            raise ConfigError("It has no schema that this reidkit knows", expected=SCHEMA)
        return from_dict(kind, values, where=file.name)
    except (ValueError, RecursionError, ConfigError) as error:
        raise BundleError(f"{file} cannot be read", got=error, fix=fix) from error


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise ValueError(f"{word} is no number")
    return number


def _facts_text(facts: EngineFacts | Choice) -> str:
    return json.dumps({"schema": SCHEMA, **to_dict(facts)}, indent=2, allow_nan=False) + "\n"


def _read_plain(file: Path, size: int | None, fix: str) -> bytes:
    """The bytes of a plain file that has so many, or as many as facts may have; opened once."""
    try:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{file} is no plain file", expected="a file inside the bundle", fix=fix)
        if (status.st_size > _LARGEST_FACTS) if size is None else (status.st_size != size):
            expected = f"at most {_LARGEST_FACTS:,} bytes" if size is None else f"{size:,} bytes"
            raise BundleError(
                f"{file} has the wrong length", got=f"{status.st_size:,} bytes", expected=expected, fix=fix
            )
        with file.open("rb") as stream:
            return stream.read(status.st_size)
    except FileNotFoundError:
        raise BundleError(f"{file} is missing", fix=fix) from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read", got=error.strerror, fix=fix) from error


def _place(bundle: Bundle, name: str) -> Path:
    """A place in the folder of engines, and nowhere else."""
    folder = bundle.path / FOLDER
    if folder.is_symlink():
        raise BundleError(f"{folder} is a link", expected="a folder inside the bundle", fix="do not use it")
    if name and (Path(name).name != name or "\\" in name):
        raise BundleError(f"An engine cannot be called {name!r}", expected="a name without folders")
    return folder / name
