"""The fastest engine that is faithful, on this machine: each is tried, held to the golden embeddings, and timed.

What is timed is `embed`, from crops on the host to embeddings on the host: what whoever calls it waits for. The
candidates take turns, so that a machine that slows down slows all of them down.
"""

import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from reidkit.bundle import Bundle, Golden, open_bundle
from reidkit.deploy.bench import BATCHES, device_ms
from reidkit.deploy.build import build_engine
from reidkit.deploy.verify import Parity, check_parity
from reidkit.deploy.ways import Way
from reidkit.errors import ConfigError, ReidkitError, RuntimeMissing
from reidkit.runtime import ENGINES, RuntimeName, usual_device
from reidkit.runtime.engine_facts import Choice, Pick, graph_digest, runs_on
from reidkit.runtime.engine_store import record_choice
from reidkit.runtime.machine import install_command, machine
from reidkit.types import Embedder, Precision, Progress, Via, no_progress

CLOSE = 1.02
"""Of the best time: one engine that is so near to it at every batch is taken alone."""

_ROUNDS = 5  # in which every candidate has a turn
_WARM_UP = 2  # calls: the first ones allocate, compile and capture


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a candidate.

    Attributes:
        way: engine, precision and, where it is built, how; of an engine that cannot be tried here, its name alone.
        reason: why it was left out, in words; None where it was timed.
        parity: how near it comes to the golden embeddings; None where it could not be opened.
        ms: median wall time of `embed`, milliseconds, for each of the batches.
        gpu_ms: median by the device's own clock likewise; None where it has none.
    """

    way: Way
    reason: str | None = None
    parity: Parity | None = None
    ms: tuple[float, ...] = ()
    gpu_ms: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was tried and what was chosen.

    Attributes:
        batches: that were timed, ascending.
        trials: all candidates, in the order in which they were tried.
        winners: for each of the batches.
        choice: as it was put into the bundle's store.
    """

    batches: tuple[int, ...]
    trials: tuple[Trial, ...]
    winners: tuple[Way, ...]
    choice: Choice


def choose(
    bundle: Bundle | Path | str,
    *,
    precision: Precision | None = None,
    batches: Sequence[int] = BATCHES,
    device: str | None = None,
    seconds: float = 1.5,
    progress: Progress = no_progress,
) -> Chosen:
    """Finds the fastest engine for each batch among those that pass verification, and keeps the choice in the bundle.

    Engines that have to be built first are built, with a profile for each batch; one that stands in the store with
    other batches or options is replaced. PyTorch's compiler is tried on a card only: on a processor it takes a minute
    and gains nothing. `reidkit.load(bundle, "auto")` opens what was chosen.

    Args:
        bundle: a path, or a bundle that is open already.
        precision: of the arithmetic; an engine that does not pass in it is tried in the graph's own. None takes the
            graph's own where that is not float32; else float16 on a card and float32 elsewhere.
        batches: to choose for. Between two of them the engine of the larger one runs, above all that of the largest.
        device: in the engines' own words; None takes a card where there is one.
        seconds: to spend on each candidate and batch, after a warm-up; five calls are timed whatever they take.
        progress: over candidates, then over the turns that they take.

    Raises:
        BundleError: there is no such bundle, or its golden file does not fit the manifest.
        ConfigError: no batch, or one below 1.
        RuntimeMissing: no engine passes; says what became of each.
        OutputError: the bundle cannot be written to.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    device = device or usual_device("auto")
    precision = precision or _usual_precision(opened, device)
    sizes = tuple(sorted(set(batches)))
    if not sizes or sizes[0] < 1:
        raise ConfigError("A batch size cannot be this", got=list(batches), expected="1 or above")
    golden = opened.golden()
    total, steps = len(ENGINES) + _ROUNDS * len(sizes), itertools.count(1)

    def tick() -> None:
        progress(next(steps), total)

    trials: list[Trial] = []
    engines: dict[Way, Embedder] = {}
    for name in ENGINES:
        for trial, engine in _try_engine(opened, name, golden, precision, device, sizes):
            trials.append(trial)
            if engine is not None:
                engines[trial.way] = engine
        tick()
    for batch in sizes:
        crops = np.resize(golden.crops, (batch, *golden.crops.shape[1:]))
        trials = _race(trials, engines, crops, seconds, tick)
    timed = {trial.way: trial.ms for trial in trials if trial.reason is None}
    if not timed:
        raise _nobody(opened, device, trials)
    winners = winners_of(timed)
    choice = Choice(
        machine=machine(device),
        device=device,
        graph=graph_digest(opened, "parser"),
        precision=precision,
        picks=_picks(sizes, winners, engines),
        timed=tuple((size, round(timed[way][i], 4)) for i, (size, way) in enumerate(zip(sizes, winners, strict=True))),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    record_choice(opened, choice)
    return Chosen(sizes, tuple(trials), winners, choice)


def winners_of(timed: Mapping[Way, Sequence[float]]) -> tuple[Way, ...]:
    """The fastest for each batch; or for all of them one that is nowhere more than `CLOSE` from the best.

    Args:
        timed: of each candidate, its time for each batch.
    """
    best = [min(times) for times in zip(*timed.values(), strict=True)]
    behind = {way: [mine / least for mine, least in zip(times, best, strict=True)] for way, times in timed.items()}
    close = [way for way, ratios in behind.items() if max(ratios) <= CLOSE]
    if close:
        return (min(close, key=lambda way: sum(behind[way])),) * len(best)
    return tuple(min(behind, key=lambda way: behind[way][i]) for i in range(len(best)))


def _usual_precision(bundle: Bundle, device: str) -> Precision:
    """What is tried where nobody says: a graph that is lower than float32 by itself runs in nothing else."""
    own = bundle.manifest.precision
    return "float16" if own == "float32" and _is_card(device) else own


def _try_engine(
    bundle: Bundle, name: RuntimeName, golden: Golden, precision: Precision, device: str, batches: Sequence[int]
) -> Iterator[tuple[Trial, Embedder | None]]:
    """One engine in the precision asked for; where that does not pass, in the graph's own.

    What is built goes to the builder by network first, and by parser where that does not pass: engines of the two are
    as fast, and each takes minutes.
    """
    reason = _out_of_the_question(name, device)
    if reason is not None:
        yield Trial(Way(name), reason), None
        return
    for arithmetic in dict.fromkeys((precision, bundle.manifest.precision)):
        vias: tuple[Via | None, ...] = ("network", "parser") if ENGINES[name].built else (None,)
        for via in vias:
            trial, engine = _try_way(bundle, Way(name, arithmetic, via), golden, device, batches)
            yield trial, engine
            if engine is not None:
                return


def _out_of_the_question(name: RuntimeName, device: str) -> str | None:
    """Why an engine is not even tried."""
    engine = ENGINES[name]
    if importlib.util.find_spec(engine.library) is None:
        return f"{engine.library} is not installed: {install_command(engine.extra)}"
    if engine.built and not _is_card(device):
        return "it runs on NVIDIA's cards only"
    if name == "inductor" and not _is_card(device):
        return "compiling for a processor takes a minute and gains nothing; `reid bench --runtime inductor` times it"
    return None


def _try_way(
    bundle: Bundle, way: Way, golden: Golden, device: str, batches: Sequence[int]
) -> tuple[Trial, Embedder | None]:
    try:
        if ENGINES[way.runtime].built:
            check_card(way.runtime, device)
            build_engine(
                bundle,
                way.runtime,
                precision=way.precision or "float32",
                via=way.via,
                batches=batches,
                device=device,
            )
        engine = way.open(bundle, device=device)
        parity = check_parity(engine, golden)
    except Exception as error:  # whatever a library raises costs its candidate, and is told
        return Trial(way, _in_words(error)), None
    if not parity.passed:
        told = f"it fails verification: {parity.in_words}; expected: {parity.tolerance.in_words}"
        return Trial(way, told, parity), None
    return Trial(way, parity=parity), engine


def check_card(runtime: RuntimeName, device: str) -> None:
    """Refuses a card that a built engine could not be opened on: TensorRT-RTX builds for cards that are not here.

    Raises:
        RuntimeMissing: no card, or one that TensorRT-RTX does not know.
    """
    if runtime != "tensorrt-rtx":
        return
    from reidkit.runtime import cuda  # which needs cuda-bindings

    card = cuda.card(device)
    if not runs_on(runtime, card.compute_capability):
        raise RuntimeMissing(
            f"{runtime} does not run on {card.name}", got=f"compute capability {card.compute_capability}"
        )


def _race(
    trials: Sequence[Trial],
    engines: Mapping[Way, Embedder],
    crops: UInt8[np.ndarray, "n height width 3"],
    seconds: float,
    tick: Callable[[], None],
) -> list[Trial]:
    """Times one batch with every engine that is still in; they take turns, each time in another order."""
    spent: dict[Way, list[float]] = {trial.way: [] for trial in trials if trial.reason is None}
    failed: dict[Way, str] = {}
    for number in range(_ROUNDS):
        order = list(spent)
        for way in order[number % max(len(order), 1) :] + order[: number % max(len(order), 1)]:
            try:
                if number == 0:
                    for _ in range(_WARM_UP):
                        engines[way].embed(crops)
                spent[way] += _turn(engines[way], crops, seconds / _ROUNDS)
            except Exception as error:  # such as no memory for so large a batch
                failed[way] = f"batch {len(crops)}: {_in_words(error)}"
                del spent[way]
        tick()

    def timed(trial: Trial) -> Trial:
        if trial.way in failed:
            return replace(trial, reason=failed[trial.way])
        if trial.reason is not None:
            return trial
        times = spent[trial.way]
        gpu = device_ms(engines[trial.way], len(crops), len(times))
        return replace(trial, ms=(*trial.ms, float(np.median(times)) * 1e3), gpu_ms=(*trial.gpu_ms, gpu))

    return [timed(trial) for trial in trials]


def _turn(engine: Embedder, crops: UInt8[np.ndarray, "n height width 3"], seconds: float) -> list[float]:
    """Seconds of each call. A third of the turn is not counted: threads of whoever was on before may still be spinning.

    ONNX Runtime's were seen to slow others down for a tenth of a second.
    """
    settled = time.perf_counter() + seconds / 3
    times: list[float] = []
    while not times or time.perf_counter() < settled + seconds * 2 / 3:
        started = time.perf_counter()
        engine.embed(crops)
        if started >= settled:
            times.append(time.perf_counter() - started)
    return times


def _picks(sizes: Sequence[int], winners: Sequence[Way], engines: Mapping[Way, Embedder]) -> tuple[Pick, ...]:
    """The winners as ranges: each up to the largest of the batches that it won in a row, the last one without end."""
    picks: list[Pick] = []
    for way, won in itertools.groupby(zip(winners, sizes, strict=True), key=lambda pair: pair[0]):
        spec = engines[way].spec
        picks.append(Pick(max(size for _, size in won), way.runtime, spec.precision, way.via, spec.build))
    picks[-1] = replace(picks[-1], most=None)
    return tuple(picks)


def _nobody(bundle: Bundle, device: str, trials: Sequence[Trial]) -> RuntimeMissing:
    return RuntimeMissing(
        f"No engine here runs {bundle.path.name} on {device} as it should",
        got="".join(f"\n    {trial.way.in_words()}: {trial.reason}" for trial in trials),
        expected="one that opens and passes verification",
        fix="see `reid doctor`, or choose another device or precision",
    )


def _in_words(error: Exception) -> str:
    if isinstance(error, ReidkitError):
        got = str(error.got).strip() if error.got is not None else ""
        return f"{error.problem} ({got})" if got and "\n" not in got else error.problem
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _is_card(device: str) -> bool:
    return device.startswith("cuda")
