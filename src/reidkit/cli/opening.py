"""The one place where commands open engines: as they are, or with `--rebuild`, built again where they do not fit."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reidkit.bundle import Bundle
from reidkit.cli import console
from reidkit.deploy.bench import BATCHES
from reidkit.deploy.build import build_engine
from reidkit.deploy.choose import check_card, choose
from reidkit.deploy.ways import Way
from reidkit.errors import BundleError, RuntimeMissing
from reidkit.runtime import ENGINES, RuntimeName, check_graph, check_options, load, usual_device
from reidkit.runtime.contract import Hint, Optimization
from reidkit.runtime.engine_facts import EngineFacts
from reidkit.runtime.engine_store import read_choice, read_store
from reidkit.runtime.machine import machine
from reidkit.types import Embedder, Precision, Via


@dataclass(frozen=True, slots=True)
class Tuning:
    """What changes how fast an engine is and not what it gives; as of `reidkit.load`.

    Attributes:
        threads: that one call may use on the processor.
        hint: of openvino.
        optimization: of onnxruntime.
    """

    threads: int | None = None
    hint: Hint | None = None
    optimization: Optimization | None = None

    def check(self, runtimes: Sequence[RuntimeName]) -> None:
        """Refuses what one of these runtimes does not know: asked first, it spares the work.

        Raises:
            ConfigError: names runtime and option.
        """
        for runtime in runtimes:
            check_options(runtime, hint=self.hint, optimization=self.optimization)


_USUAL = Tuning()


def open_embedder(
    bundle: Bundle,
    runtime: RuntimeName,
    *,
    device: str | None = None,
    precision: Precision | None = None,
    via: Via | None = None,
    rebuild: bool = False,
    tuning: Tuning = _USUAL,
) -> Embedder:
    """Opens a bundle on an engine, as `reidkit.load` does.

    Args:
        bundle: the model.
        runtime: the engine.
        device: in the engine's own words.
        precision: of the arithmetic; None takes what there is.
        via: how the network came to the builder; None takes what there is.
        rebuild: of engines that have to be built: one that does not fit this machine or this graph, is damaged or is
            not there is built first, with the settings that the store has of it or the usual ones. For "auto" the
            fastest is found again. Nothing is ever built without this.
        tuning: threads and the options of one engine.

    Raises:
        RuntimeMissing, BundleError, ConfigError, ModelError, EngineError: as `reidkit.load`, and with `rebuild` as
            `reidkit.deploy.build.build_engine` and `reidkit.deploy.choose.choose`. Where engines of several precisions
            were built and none was asked for, none is built.
    """
    check_graph(bundle, runtime)  # which no building helps
    try:
        return _load(bundle, Way(runtime, precision, via), device, tuning)
    except (RuntimeMissing, BundleError) as error:
        if not rebuild or not (runtime == "auto" or ENGINES[runtime].built):
            raise
        last = _last_built(bundle, runtime, precision, via)
        if len({facts.precision for facts in last}) > 1 or (last and last[0].stripped):
            raise  # which is to be built again is not said; or again it would have no weights
        console.note(error.problem)
    device = usual_device(runtime) if device is None else device
    if runtime == "auto":
        _choose_again(bundle, device, precision)
    else:
        check_card(runtime, device)
        facts = _build_again(bundle, runtime, device, precision, via, last)
        precision, via = facts.precision, facts.via
    return _load(bundle, Way(runtime, precision, via), device, tuning)


def open_way(
    way: Way, bundle: Bundle, *, device: str | None = None, rebuild: bool = False, tuning: Tuning = _USUAL
) -> Embedder:
    """Opens a bundle in a way; see `open_embedder`."""
    return open_embedder(
        bundle, way.runtime, device=device, precision=way.precision, via=way.via, rebuild=rebuild, tuning=tuning
    )


def _load(bundle: Bundle, way: Way, device: str | None, tuning: Tuning) -> Embedder:
    said: dict[str, Any] = {name: value for name, value in asdict(tuning).items() if value is not None}
    return load(bundle, way.runtime, device=device, precision=way.precision, via=way.via, **said)


def _last_built(
    bundle: Bundle, runtime: RuntimeName, precision: Precision | None, via: Via | None
) -> list[EngineFacts]:
    """Of the engines in the store those that were asked for, by network first, the youngest first.

    Without weights only where there are no others.
    """
    asked = [
        facts
        for facts in read_store(bundle)
        if facts.runtime == runtime and precision in (None, facts.precision) and via in (None, facts.via)
    ]
    asked = [facts for facts in asked if not facts.stripped] or asked
    return sorted(asked, key=lambda facts: (facts.via == "network", facts.created or ""), reverse=True)


def _build_again(
    bundle: Bundle,
    runtime: RuntimeName,
    device: str,
    precision: Precision | None,
    via: Via | None,
    last: Sequence[EngineFacts],
) -> EngineFacts:
    """Builds the engine that was asked for as it was built last; where none was, as is usual."""
    with console.spinner(f"building for {runtime}; this takes minutes"):
        if not last:
            return build_engine(bundle, runtime, precision=precision or "float16", via=via, device=device, rebuild=True)
        return build_engine(
            bundle,
            runtime,
            precision=last[0].precision,
            via=last[0].via,
            batches=[profile.most for profile in last[0].profiles],
            workspace=last[0].workspace,
            options=last[0].options,
            effort=last[0].effort,
            device=device,
            rebuild=True,
        )


def _choose_again(bundle: Bundle, device: str, precision: Precision | None) -> None:
    """Finds the fastest again, at the batches of last time."""
    try:
        last = read_choice(bundle, machine(device), device)
    except BundleError:  # damaged, and to be replaced
        last = None
    precision = precision or (last.precision if last else None)
    batches = [batch for batch, _ in last.timed] if last else []
    with console.progress_bar("finding the fastest engine") as progress:
        choose(bundle, precision=precision, batches=batches or BATCHES, device=device, progress=progress)
