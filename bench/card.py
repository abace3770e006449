"""Engines on a card, each as fast as it gets: GPU time by network, way, precision and batch; and how near each is.

    python bench/card.py draw OUT [--networks r18-ibn r34-distilled ...]
    python bench/card.py build OUT [--via network parser] [--precision float16] [--batch 1 4 16 64] [--at-once 4]
    python bench/card.py speed OUT
    python bench/card.py parity OUT --images FOLDER
    python bench/card.py layers OUT
    python bench/card.py compiled BUNDLE [--batch 1 4 16 64]

`draw` writes networks of random weights as bundles into OUT/models, where trained ones may be put beside them; it needs
PyTorch. `build` makes an engine with one profile for each combination, in processes of their own: first one of each
network alone, whose timings of kernels the others take over, then `--at-once` of them. What is there already stays, so
what was cut off goes on. `speed` times engines one after the other, with nothing else on the card: the median of 300
launches of a captured graph, by CUDA events. `parity` holds them to PyTorch's float32 on the processor, on 64 pictures,
together and one by one. `layers` says what each layer of an engine takes, the longest first: launched one by one under
TensorRT's own profiler, so that their sum is more than a captured graph takes. `compiled` holds what `reid build BUNDLE
--runtime auto` chose beside its peer, torch.compile with reduce-overhead in float16: GPU time with crops on the card,
and wall time from and to the host, which that peer takes from pinned memory and ours from any.
"""

import argparse
import itertools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import numpy as np

from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec, named_model
from reidkit.bundle import Bundle, open_bundle
from reidkit.deploy.bench import device_ms
from reidkit.deploy.build import build_engine
from reidkit.deploy.verify import check_parity
from reidkit.errors import EngineError
from reidkit.imaging import image_files, load_crop
from reidkit.manifest import Provenance
from reidkit.runtime import RuntimeName, load
from reidkit.runtime.contract import CROPS, EMBEDDINGS
from reidkit.runtime.engine_store import EngineFacts, open_engine, read_store
from reidkit.types import Embedder, InputSpec

NETWORKS = {
    "r18-ibn": ModelSpec(ResNetSpec(ibn="a"), HeadSpec()),
    "r34-distilled": ModelSpec(ResNetSpec(depth=34, ibn="a", preactivation=True), HeadSpec()),
    "r50-ibn": ModelSpec(ResNetSpec(depth=50, ibn="a"), HeadSpec()),
    "r50": ModelSpec(ResNetSpec(depth=50, ibn="none"), HeadSpec()),
    "r50-ibn-nl": ModelSpec(ResNetSpec(depth=50, ibn="a", non_local="one"), HeadSpec(gem_learned=True)),
    "r50-se": ModelSpec(ResNetSpec(depth=50, ibn="none", se=True), HeadSpec()),
    "osnet-x1.0": named_model("osnet-x1.0"),
    "mgn-r18-ibn": ModelSpec(ResNetSpec(ibn="a"), HeadSpec(embedding_dim=256), "mgn"),
}
_RUNS, _ROUNDS, _CROPS = 300, 5, 64
_WARM, _PROFILED = 10, 50


def main() -> None:
    options = arguments()
    match options.what:
        case "draw":
            for name in options.networks:
                draw(options.place / "models" / f"{name}.reid", name)
        case "build":
            build(options)
        case "one":
            one(options)
        case "speed":
            for bundle, facts, engine in engines(options.place):
                print(speed(bundle, facts, engine), flush=True)
        case "layers":
            for bundle, facts in stored(options.place):
                print(*layers(bundle, facts), sep="\n", flush=True)
        case "parity":
            truths: dict[str, tuple[np.ndarray, np.ndarray]] = {}
            for bundle, _, engine in engines(options.place):
                name = bundle.manifest.name
                if name not in truths:
                    truths[name] = truth_of(bundle, options.images)
                print(parity(bundle, engine, *truths[name]), flush=True)
        case "compiled":
            compiled(open_bundle(options.place), options.batch)


def draw(place: Path, name: str) -> None:
    """A bundle of random weights, with statistics that all differ."""
    import torch

    from reidkit.export.torch_export import export_model
    from reidkit.models.checkpoint import CheckpointFacts
    from reidkit.models.model import build_model

    torch.manual_seed(0)
    spec = NETWORKS[name]
    model = build_model(spec).eval()
    with torch.no_grad():
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for key, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.add_(0.1 * torch.randn_like(weight))
            if key.endswith(("bn2.weight", "bn3.weight")):
                weight.mul_(0.5)  # or maps grow from block to block, beyond what trained networks have
    place.parent.mkdir(parents=True, exist_ok=True)
    size = (384, 128) if spec.branches == "mgn" else (256, 128)
    facts = CheckpointFacts(spec, InputSpec(*size), task="person", provenance=Provenance(source="random weights"))
    export_model(model, facts, place, name=name, overwrite=True)
    print(f"drew {place.name}", flush=True)


def build(options: argparse.Namespace) -> None:
    """All combinations, those of a network's largest batch before the others."""
    models = sorted((options.place / "models").glob("*.reid"))
    combinations = itertools.product(models, options.precision, options.via, sorted(options.batch, reverse=True))
    jobs = [job for job in combinations if (job[1], job[2]) != ("int8", "network")]
    first = {(model, precision): (model, precision, via, batch) for model, precision, via, batch in reversed(jobs)}
    rest = [job for job in jobs if job not in first.values()]

    def run(job: tuple[Path, str, str, int]) -> None:
        model, precision, via, batch = job
        place = options.place / "engines" / f"{model.stem}-{precision}-{via}-{batch}.reid"
        if place.exists():
            return
        command = [sys.executable, __file__, "one", str(place), "--model", str(model), "--precision", precision]
        command += ["--via", via, "--batch", str(batch), "--runtime", options.runtime]
        command += [] if options.effort is None else ["--effort", str(options.effort)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
        print(said[-1] if said else f"{place.stem}: exit status {done.returncode}", flush=True)

    for job in first.values():
        run(job)
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(run, rest))


def one(options: argparse.Namespace) -> None:
    """An engine in a copy of the bundle of its own, which is there once the engine is."""
    started, place, (batch,) = time.perf_counter(), options.place, options.batch
    unfinished = place.with_name(f"unfinished-{place.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(options.model, unfinished, ignore=shutil.ignore_patterns("engines"))
    facts = build_engine(
        unfinished,
        options.runtime,
        precision=options.precision[0],
        via=options.via[0],
        batches=[batch],
        effort=options.effort,
    )
    unfinished.rename(place)
    print(f"{place.stem}: {facts.size / 1e6:.1f} MB, {time.perf_counter() - started:.0f} s")


def stored(place: Path) -> Iterator[tuple[Bundle, EngineFacts]]:
    """What was built."""
    for path in sorted((place / "engines").glob("*.reid")):
        if not path.name.startswith("unfinished-"):
            bundle = open_bundle(path)
            for facts in read_store(bundle):
                yield bundle, facts


def engines(place: Path) -> Iterator[tuple[Bundle, EngineFacts, Embedder]]:
    """The same, opened one after the other."""
    for bundle, facts in stored(place):
        runtime = cast("RuntimeName", facts.runtime)
        yield bundle, facts, load(bundle, runtime, precision=facts.precision, via=facts.via)


def speed(bundle: Bundle, facts: EngineFacts, engine: Embedder) -> str:
    parity, batch = check_parity(engine, bundle.golden()), facts.profiles[-1].best
    ms = device_ms(engine, batch, _RUNS)
    return (
        f"{bundle.path.stem:<40} batch {batch:<4} {ms:8.4f} ms   golden cosine {parity.min_cosine:.7f} "
        f"mean {parity.mean_cosine:.7f}"
        f"   {facts.size / 1e6:6.1f} MB   built in {facts.build_seconds:.0f} s"
    )


def layers(bundle: Bundle, facts: EngineFacts) -> Iterator[str]:
    """Medians of an engine's layers over launches of its largest batch, on whatever is in the card's memory."""
    from reidkit.runtime import cuda
    from reidkit.runtime.flavour import open_flavour
    from reidkit.runtime.tensorrt import machine_of

    flavour = open_flavour(facts.runtime)
    trt = flavour.trt

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            super().__init__()
            self.seen: dict[str, list[float]] = {}

        def report_layer_time(self, name: str, ms: float) -> None:
            self.seen.setdefault(name, []).append(ms)

    def must(done: object) -> None:
        if not done:
            raise EngineError(f"TensorRT refuses {facts.name}", got=log.last_error())

    log, batch, profiler = flavour.log(), facts.profiles[-1].best, Profiler()
    with cuda.on_device(0):
        runtime = trt.Runtime(log)
        _, data = open_engine(bundle, facts.runtime, facts.precision, facts.via, machine_of(flavour))
        engine = runtime.deserialize_cuda_engine(data)
        must(engine is not None)
        context, stream = engine.create_execution_context(), cuda.Stream()
        must(context is not None)
        must(context.set_optimization_profile_async(len(facts.profiles) - 1, stream.number))
        spec = bundle.manifest.input
        crops = cuda.DeviceMemory(batch * spec.height * spec.width * 3)
        embeddings = cuda.DeviceMemory(batch * bundle.manifest.embedding.dim * 4)
        must(context.set_input_shape(CROPS, (batch, spec.height, spec.width, 3)))
        must(context.set_tensor_address(CROPS, crops.address))
        must(context.set_tensor_address(EMBEDDINGS, embeddings.address))
        for run in range(_WARM + _PROFILED):
            if run == _WARM:
                context.profiler = profiler
            must(context.execute_async_v3(stream.number))
            stream.synchronize()
    medians = {name: float(np.median(times)) for name, times in profiler.seen.items()}
    yield f"{bundle.path.stem}: {len(medians)} layers, {sum(medians.values()):.4f} ms"
    for name, ms in sorted(medians.items(), key=lambda layer: -layer[1]):
        yield f"{ms:9.4f}  {name}"


def truth_of(bundle: Bundle, images: Path) -> tuple[np.ndarray, np.ndarray]:
    """Crops of pictures, and PyTorch's embeddings of them, of unit length."""
    crops = np.stack([load_crop(file, bundle.manifest.input) for file in image_files(images)[:_CROPS]])
    return crops, unit(load(bundle, "pytorch", device="cpu").embed(crops))


def parity(bundle: Bundle, engine: Embedder, crops: np.ndarray, truth: np.ndarray) -> str:
    embeddings = engine.embed(crops)
    alone = np.concatenate([engine.embed(crop[None]) for crop in crops])
    found = unit(embeddings)
    apart, cosine = np.abs(found - truth), (found * truth).sum(axis=1).min()
    near, same = (apart - 1e-3 * np.abs(truth)).max(), "the same" if (alone == embeddings).all() else "OTHERS"
    return (
        f"{bundle.path.stem:<40} largest difference {apart.max():.1e}   near {near:.1e}   least cosine {cosine:.8f}   "
        f"{same} one by one"
    )


def unit(embeddings: np.ndarray) -> np.ndarray:
    wide = embeddings.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def compiled(bundle: Bundle, batches: Sequence[int]) -> None:
    """As whoever has PyTorch does it without reidkit, and beside it what was chosen, in turns."""
    import torch

    from reidkit.models.checkpoint import load_deployed
    from reidkit.models.deployed import PlacedModel, event_seconds

    model = PlacedModel(load_deployed(bundle), torch.device("cuda"), "float16")
    program = torch.compile(model, mode="reduce-overhead", dynamic=False)
    chosen = load(bundle, "auto")
    spec = bundle.manifest.input

    def run(crops: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return program(crops)

    print("batch   torch.compile: GPU ms  host to host   chosen: GPU ms  host to host")
    for batch in batches:
        crops = np.random.default_rng(0).integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8)
        pinned = torch.from_numpy(crops).pin_memory()
        there = pinned.cuda()
        theirs: list[float] = []
        ours: list[float] = []
        walls: tuple[list[float], list[float]] = ([], [])
        with torch.no_grad(), model.arithmetic():
            for _ in range(10):  # the first ones compile and capture
                run(there)
                chosen.embed(crops)
            for _ in range(_ROUNDS):
                theirs += event_seconds(lambda there=there: run(there), _RUNS // _ROUNDS)
                ours.append(device_ms(chosen, batch, _RUNS // _ROUNDS) or float("nan"))
                walls[0].extend(timed(lambda pinned=pinned: run(pinned.cuda(non_blocking=True)).cpu()))
                walls[1].extend(timed(lambda crops=crops: chosen.embed(crops)))
        their_wall, our_wall = (1e3 * float(np.median(wall)) for wall in walls)
        gpu = 1e3 * float(np.median(theirs)), float(np.median(ours))
        print(f"{batch:<7} {gpu[0]:21.4f} {their_wall:13.4f} {gpu[1]:16.4f} {our_wall:13.4f}", flush=True)


def timed(call: Callable[[], object]) -> list[float]:
    """Seconds of each of a round's calls."""
    times = []
    for _ in range(_RUNS // _ROUNDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return times


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["draw", "build", "one", "speed", "parity", "layers", "compiled"])
    parser.add_argument("place", type=Path, help="folder of models and engines; of `compiled`, a bundle")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--runtime", choices=["tensorrt", "tensorrt-rtx"], default="tensorrt")
    parser.add_argument("--precision", nargs="+", default=["float16"])
    parser.add_argument("--via", nargs="+", default=["network"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--effort", type=int, help="of the builder, 0 to 5")
    parser.add_argument("--at-once", type=int, default=4, help="builds beside each other")
    parser.add_argument("--images", type=Path, help="of `parity`: a folder of pictures")
    parser.add_argument("--model", type=Path, help="of `one`, which `build` runs: the bundle to copy")
    return parser.parse_args()


if __name__ == "__main__":
    main()
