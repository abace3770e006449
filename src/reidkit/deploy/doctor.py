"""What this machine can run: engines, TensorRT's flavours, cards, driver; what is missing, and what would install it.

Every library is imported in a process of its own (`probe.py`): a broken one costs a line of the report, and what it
prints is kept away.
"""

import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import reidkit
from reidkit.bundle import Bundle
from reidkit.deploy import probe
from reidkit.deploy.bench import machine as machine_name
from reidkit.imaging import available_cores
from reidkit.runtime import ENGINES
from reidkit.runtime.engine_facts import RUNTIMES, EngineFacts, Machine, misfits, runs_on
from reidkit.runtime.engine_store import engine_size, read_store
from reidkit.runtime.machine import field_of, install_command, jetson, text_of

_SECONDS = 120.0  # that an import may take on a cold disk
_NVIDIA = Path("/proc/driver/nvidia")
_OLDEST_TENSORRT = (8, 6)
_BESIDE = {probe.CUDA: "cuda-bindings", "filelock": "filelock", "onnx": "onnx"}
"""What TensorRT needs beside itself, by import name: what pip calls it."""


@dataclass(frozen=True, slots=True)
class Library:
    """A library that was looked for.

    Attributes:
        name: by which it is imported.
        version: that it says it has; None where it is missing or does not say.
        problem: why it cannot be used, in its own words; None where it can, or is missing.
        fix: the command that installs or repairs it; None where it can be used.
    """

    name: str
    version: str | None
    problem: str | None
    fix: str | None

    @property
    def usable(self) -> bool:
        """Whether it is there and could be imported."""
        return self.fix is None


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card of NVIDIA's.

    Attributes:
        name: such as "NVIDIA H200".
        compute_capability: such as "9.0"; None where nothing could be asked.
        memory: bytes; None where nothing could be asked.
        flavours: of TensorRT that know it; empty where its compute capability is not known.
    """

    name: str
    compute_capability: str | None = None
    memory: int | None = None
    flavours: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stored:
    """An engine in a bundle's store.

    Attributes:
        name: of the engine.
        misfits: why it is not to run here; empty where it fits.
    """

    name: str
    misfits: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found on a machine.

    Attributes:
        reidkit: its version.
        python: version of the interpreter.
        system: operating system and architecture.
        processor: its name and cores.
        cores: that this process may run on.
        driver: version of NVIDIA's driver, as "580.95.05"; None where there is none or it does not say.
        cuda: newest CUDA that the driver knows, as "13.0"; None where it could not be asked.
        cards: in CUDA's order where CUDA could be asked.
        no_cards: why there is none, or why no more is known of them; None where they could be asked.
        engines: what each engine's library is, by the engine's name.
        beside: what TensorRT needs beside itself.
        stored: engines of the bundle that was asked about; None without a bundle.
    """

    reidkit: str
    python: str
    system: str
    processor: str
    cores: int
    driver: str | None
    cuda: str | None
    cards: tuple[Card, ...]
    no_cards: str | None
    engines: dict[str, Library]
    beside: tuple[Library, ...]
    stored: tuple[Stored, ...] | None = None


def diagnose(bundle: Bundle | None = None) -> Diagnosis:
    """Looks at this machine, and with a bundle at the engines that were built for it.

    Nothing that is broken or missing raises; an import takes a second or two, and all run side by side.
    """
    answers = _ask([*(engine.library for engine in ENGINES.values()), *_BESIDE])
    cuda = answers[probe.CUDA]
    cards, no_cards = _cards(cuda)
    engines = {
        name: _library(engine.library, answers[engine.library], install_command(engine.extra))
        for name, engine in ENGINES.items()
    }
    driver = driver_version()
    stored = None
    if bundle is not None:
        card = cards[0] if cards else None
        here = {
            name: Machine(
                name,
                engines[name].version if engines[name].usable else None,
                card and card.name,
                card and card.compute_capability,
                driver,
            )
            for name in RUNTIMES
        }
        stored = tuple(Stored(f.name, _flaws(f, bundle, here[f.runtime])) for f in read_store(bundle))
    return Diagnosis(
        reidkit=reidkit.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=machine_name("cpu"),
        cores=available_cores(),
        driver=driver,
        cuda=cuda.get("cuda"),
        cards=cards,
        no_cards=no_cards,
        engines=engines,
        beside=tuple(_library(name, answers[name], f"pip install {package}") for name, package in _BESIDE.items()),
        stored=stored,
    )


def driver_version() -> str | None:
    """Version of NVIDIA's driver, as it says itself below /proc; None where it says nothing."""
    words = text_of(_NVIDIA / "version").partition("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _flaws(facts: EngineFacts, bundle: Bundle, machine: Machine) -> tuple[str, ...]:
    """Why an engine is not to run here, as far as can be said without reading it."""
    size = engine_size(bundle, facts)
    what = "is missing" if size is None else f"has {size:,} bytes of {facts.size:,}"
    flaws = () if size == facts.size else (f"its file {what}: build it again",)
    stripped = ("it has no weights, which TensorRT's own refitter puts back",) if facts.stripped else ()
    return (*flaws, *stripped, *misfits(facts, bundle, machine))


def _ask(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What each library answered, asked side by side."""
    names = list(dict.fromkeys(names))
    with ThreadPoolExecutor(max(1, min(available_cores(), len(names)))) as pool:
        return dict(zip(names, pool.map(_ask_one, names), strict=True))


def _ask_one(name: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(probe.__file__)), json.dumps(sys.path), name]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return {"problem": f"importing it did not end within {_SECONDS:.0f} seconds"}
    except OSError as error:
        return {"problem": f"no process could be started to import it: {error.strerror}"}
    for line in reversed(done.stdout.decode(errors="replace").splitlines()):
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if isinstance(answer, dict):
            return answer
    said = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
    how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return {"problem": f"importing it ended Python with {how}" + (f": {said[-1]}" if said else "")}


def _library(name: str, answer: dict[str, Any], fix: str) -> Library:
    version, problem = answer.get("version"), answer.get("problem")
    if problem is not None:
        return Library(name, version, problem, fix.replace("pip install", "pip install --force-reinstall"))
    if name == "tensorrt" and version and _major_minor(version) < _OLDEST_TENSORRT:
        problem = f"{version} is older than 8.6, the oldest that reidkit knows"
        return Library(name, version, problem, fix.replace("pip install", "pip install --upgrade"))
    return Library(name, version, None, fix if "absent" in answer else None)


def _cards(cuda: dict[str, Any]) -> tuple[tuple[Card, ...], str | None]:
    """Cards by CUDA's own word; else by what the driver says below /proc, and why CUDA could not be asked."""
    if "cards" in cuda:
        return tuple(_card(**card) for card in cuda["cards"]), None if cuda["cards"] else "CUDA sees no card"
    reason = cuda.get("no_cards") or cuda.get("problem") or "cuda-bindings is not installed"
    names = [field_of(file, "Model") for file in sorted(_NVIDIA.glob("gpus/*/information"))] or [jetson()]
    return tuple(Card(name) for name in names if name), reason


def _card(name: str, compute_capability: str, memory: int) -> Card:
    known = tuple(flavour for flavour in RUNTIMES if runs_on(flavour, compute_capability))
    return Card(name, compute_capability, memory, known)


def _major_minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
