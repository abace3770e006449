"""Engines: `load` opens a bundle on one of them; each engine is one file, and only `load` imports it."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from reidkit.bundle import Bundle, GraphFormat, open_bundle
from reidkit.errors import BundleError, ConfigError, ReidkitError, RuntimeMissing, require_one_of, unknown_name
from reidkit.runtime.contract import Hint, Opening, Optimization, engine_words
from reidkit.runtime.engine_store import read_store
from reidkit.runtime.machine import has_card, install_command
from reidkit.types import Embedder, Precision, Via

RuntimeName = Literal["onnxruntime", "openvino", "pytorch", "inductor", "tensorrt", "tensorrt-rtx", "auto"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
"""What `load` takes: the engines, and "auto" for what `reid build --runtime auto` has found to be the fastest."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine: its file here, the library it needs, and the extra that installs that.

    Attributes:
        module: the file, with a function `open_embedder(bundle, opening)`.
        library: its import name.
        extra: `pip install 'reidkit[extra]'`.
        needs_weights: whether it builds the network from weights, so cannot open a foreign graph.
        device: where it runs unless somebody says otherwise.
        built: whether it opens an engine that `reid build` has made, and nothing else.
        on_request: whether it is tried only when it is named, since opening it takes a minute.
        graphs: formats of the graphs that it can read.
        options: of `load` that it knows and others do not.
    """

    module: str
    library: str
    extra: str
    needs_weights: bool = False
    device: str = "cpu"
    built: bool = False
    on_request: bool = False
    graphs: tuple[GraphFormat, ...] = ("onnx",)
    options: tuple[str, ...] = ()


ENGINES: dict[RuntimeName, Engine] = {
    "onnxruntime": Engine("reidkit.runtime.onnxruntime", "onnxruntime", "onnx", options=("optimization",)),
    "openvino": Engine(
        "reidkit.runtime.openvino", "openvino", "openvino", graphs=("onnx", "openvino"), options=("hint",)
    ),
    "pytorch": Engine("reidkit.runtime.pytorch", "torch", "train", needs_weights=True),
    "inductor": Engine("reidkit.runtime.inductor", "torch", "train", needs_weights=True, on_request=True),
    "tensorrt": Engine("reidkit.runtime.tensorrt", "tensorrt", "tensorrt", device="cuda", built=True),
    "tensorrt-rtx": Engine("reidkit.runtime.tensorrt", "tensorrt_rtx", "tensorrt-rtx", device="cuda", built=True),
}


def installed(bundle: Bundle | None = None) -> list[RuntimeName]:
    """Engines whose library is on this machine, but for those that want to be named; with a bundle, that can open it.

    One that has to be built first can open a bundle when something was built for it.
    """
    names: list[RuntimeName] = []
    for name, engine in ENGINES.items():
        if engine.on_request or importlib.util.find_spec(engine.library) is None:
            continue
        if bundle is not None:
            if bundle.graph_format not in engine.graphs or (engine.needs_weights and bundle.weights is None):
                continue
            if engine.built and not any(facts.runtime == name for facts in read_store(bundle)):
                continue
        names.append(name)
    return names


def usual_device(runtime: RuntimeName) -> str:
    """Where a runtime runs unless somebody says otherwise; "auto" on a card where there is one."""
    if runtime == "auto":
        return "cuda" if has_card() else "cpu"
    return ENGINES[runtime].device


def load(
    bundle: Bundle | Path | str,
    runtime: RuntimeName = "onnxruntime",
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    via: Via | None = None,
    hint: Hint | None = None,
    optimization: Optimization | None = None,
) -> Embedder:
    """Opens a bundle on an engine.

    Args:
        bundle: a path, or a bundle that is open already.
        runtime: the engine; "auto" takes the fastest, which `reid build --runtime auto` has found for this machine.
        device: "cpu"; "cuda" or "cuda:N" for onnxruntime, pytorch, inductor and tensorrt; "gpu", "gpu.N" or "npu" for
            openvino. None takes the processor, or the first card for engines that run on nothing else, and for "auto"
            where there is one.
        threads: that one call may use on the processor; None leaves it to the engine.
        precision: of the arithmetic; None takes the graph's own, or that of the one engine that was built. "int8" runs
            the graph that `reid quantize` has made, on onnxruntime, openvino, tensorrt and tensorrt-rtx.
        via: "network" or "parser", for engines that were built both ways; None takes the first.
        hint: of openvino: "latency" (None too) for one call at a time, or "throughput", which runs the parts of a large
            call, and calls of several threads, side by side.
        optimization: of onnxruntime: how far it may rewrite the graph; None is "all".

    Raises:
        BundleError: as `reidkit.bundle.open_bundle`; or the engine cannot run the graph.
        RuntimeMissing: the engine's library or device is not on this machine, it cannot run this bundle, or nothing
            that fits was built for it; or for "auto", nothing was chosen here, or it does not fit any more.
        ConfigError: no engine, precision, `via`, hint or optimization of this name, or an option that the engine does
            not know.

    Example:
        >>> import reidkit
        >>> embedder = reidkit.load("model.reid")                          # doctest: +SKIP
        >>> embedder.embed(np.zeros((2, 256, 128, 3), np.uint8)).shape     # doctest: +SKIP
        (2, 512)
    """
    if runtime not in RUNTIMES:
        raise unknown_name("runtime", runtime, RUNTIMES)
    for what, value, known in (
        ("precision", precision, get_args(Precision)),
        ("way to the builder", via, get_args(Via)),
        ("hint", hint, get_args(Hint)),
        ("optimization", optimization, get_args(Optimization)),
    ):
        if value is not None:
            require_one_of(what, value, known)
    check_options(runtime, hint=hint, optimization=optimization)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    device = usual_device(runtime) if device is None else device
    opening = Opening(runtime, device, threads, precision, via, hint, optimization)
    if runtime == "auto":
        from reidkit.runtime import auto  # which loads engines itself

        return auto.open_embedder(opened, opening)
    check_graph(opened, runtime)
    engine = ENGINES[runtime]
    try:
        module = importlib.import_module(engine.module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "cuda":
            alone = importlib.util.find_spec(engine.library) is not None  # or the engine's own extra brings both
            fix = "pip install cuda-bindings" if alone else install_command(engine.extra)
            raise RuntimeMissing("cuda-bindings is not installed", fix=fix) from error
        if error.name != engine.library:
            raise  # our own typo, or a broken installation: never "please install"
        raise RuntimeMissing(f"{engine.library} is not installed", fix=install_command(engine.extra)) from error
    try:
        return module.open_embedder(opened, opening)
    except ReidkitError:
        raise
    except Exception as error:  # engines raise exceptions of their own on a graph that they cannot run
        raise BundleError(
            f"{runtime} cannot open {opened.model}",
            got=engine_words(error),
            fix=f"update {engine.library}, or choose another runtime",
        ) from error


def check_options(runtime: RuntimeName, **options: object) -> None:
    """Refuses options that a runtime does not know; None is no option.

    Args:
        runtime: an engine, or "auto", which has chosen for itself.
        options: as of `load`: `hint` and `optimization`.

    Raises:
        ConfigError: one would be ignored; names the engines that know it.
    """
    known = ENGINES[runtime].options if runtime in ENGINES else ()
    for name, value in options.items():
        if value is not None and name not in known:
            able = ", ".join(other for other, engine in ENGINES.items() if name in engine.options)
            raise ConfigError(
                f"{runtime} knows no {name}", got=f"{name} {value}", expected=f"runtime {able}", fix="leave it out"
            )


def check_graph(bundle: Bundle, runtime: RuntimeName) -> None:
    """Refuses an engine that cannot read the graph of a bundle, nor build its network from weights.

    Raises:
        RuntimeMissing: names the engines that can.
    """
    if runtime not in ENGINES:  # "auto" chose among those that can
        return
    engine = ENGINES[runtime]
    readers = [name for name, e in ENGINES.items() if not e.needs_weights and bundle.graph_format in e.graphs]
    if bundle.graph_format not in engine.graphs:
        raise RuntimeMissing(
            f"{bundle.path.name} holds its network as OpenVINO IR, which {runtime} cannot read",
            expected=f"runtime {', '.join(readers)}",
        )
    if engine.needs_weights and bundle.weights is None:
        raise RuntimeMissing(
            f"{bundle.path.name} is a foreign graph without named weights, which {runtime} cannot build",
            expected=f"one of {', '.join(readers)}",
        )
