"""Speed of training, beside a plain PyTorch loop and beside what the device could do.

    python bench/training.py --device cuda [--networks r18 r50] [--batch-identities 16] [--host-crops] [--devices 2]
    python bench/training.py --size 64x32 --networks r18 --seconds 1      # on a processor, to try it

Crops are noise, as many of as many identities as market600 has to train on; the recipe is the bag of tricks (identity
loss with smoothing, batch-hard triplet; flip, pad, erase; P16 x K4; bfloat16 on a GPU), changed by `--set`. Measured in
one process, in turn:

- reidkit: batches planned, fetched, augmented, learned from and reported every 10 steps, as `reid train` does it;
- plain PyTorch: the same network, losses, augmentation and batches in a loop as one writes it by hand: eager, channels
  last, autocast, fused optimiser, all crops on the device;
- one batch again and again: reidkit without planning and fetching;
- the bare network: forward and backward of a sum, compiled (and captured) as reidkit's, without augmentation, losses
  and optimiser.

With several devices it is reidkit on each of them by itself, all at the same time, and on all together.

Compilation and capture are not in these times, but in "first step". Beside them stands what the device's memory and
its arithmetic would each allow if there were nothing else: bytes and multiply-adds of a step (see `traffic`), over the
speed of a large copy and of a large matrix product measured here.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from reidkit.architecture import ModelSpec
from reidkit.models.cost import model_cost
from reidkit.models.model import Network, build_model
from reidkit.train.arithmetic import autocast_type
from reidkit.train.crops import CropSource, place_crops
from reidkit.train.learner import Learner, make_learner
from reidkit.train.losses.criterion import Criterion
from reidkit.train.optimizer import set_learning_rate
from reidkit.train.parallel import Team, assemble, is_follower
from reidkit.train.plan import Plan
from reidkit.train.recipe import Recipe, load_recipe
from reidkit.train.schedule import learning_rate
from reidkit.train.step import Step

NETWORKS = {"r18": "resnet18-ibn-a", "r50": "resnet50-ibn-a"}
REPORT = 10  # steps between two waits for the device, as `reid train` has it; every way waits as often
CAMERAS = 6
GB = 1e9

Way = Iterator[None]
"""Makes one step each time it is asked for the next one."""


@dataclass(frozen=True)
class Work:
    """What all ways learn from, and how."""

    recipe: Recipe
    device: torch.device
    pixels: np.ndarray
    source: CropSource
    labels: np.ndarray
    cameras: np.ndarray

    @property
    def arithmetic(self) -> torch.dtype | None:
        return autocast_type(self.device, self.recipe.amp, width=self.recipe.input.width)

    @property
    def compiled(self) -> bool:
        wanted = self.recipe.compile
        return self.device.type == "cuda" if wanted == "auto" else wanted

    def autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self.arithmetic is None else torch.autocast(self.device.type, dtype=self.arithmetic)

    def plan(self, team: Team) -> Plan:
        return Plan(self.labels, self.cameras, self.recipe.stages[0], self.recipe.seed, team.rank, team.size)


class Measured(NamedTuple):
    """Of one way: images a second of all devices together, in the median of the repeats, and its first step."""

    way: str
    images: float
    first: float


def main() -> None:
    options = parsed()
    team = assemble(options.device, options.devices)
    height, width = (int(side) for side in options.size.split("x"))
    pixels, labels, cameras = drawn(options.crops, options.identities, height, width)
    source = place_crops(pixels, team.device, share=0.0 if options.host_crops else 0.9)
    torch.backends.cudnn.benchmark = options.cudnn_benchmark
    say(f"{device_name(team.device)}, torch {torch.__version__}, {team.size} in the team")
    rows: list[dict[str, object]] = []
    for name in options.networks:
        overrides = [
            f"input.height={height}",
            f"input.width={width}",
            f"augment.pad={min(10, width // 4)}",
            f"batches.identities={options.batch_identities}",
            "optim.epochs=1000000",  # nothing here ends with an epoch
            *(options.overrides or ()),
        ]
        recipe = load_recipe("bag-of-tricks", model=NETWORKS.get(name, name), overrides=overrides)
        work = Work(recipe, team.device, pixels, source, labels, cameras)
        say(f"\n{NETWORKS.get(name, name)} at {height} x {width}, {in_words(work)}")
        say(f"{len(labels):,} crops of {options.identities} identities, {source.describe()}")
        measured = measure(ways(work, team), work, team, options.seconds, options.repeats)
        show(measured, team)
        limits = {} if team.size > 1 else bounds(work, measured[0].images)
        rows += [{"network": name, "devices": team.size, **row._asdict(), **limits} for row in measured]
        torch._dynamo.reset()
    if options.csv is not None and team.leads:
        with options.csv.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--devices", type=int, default=1, help="how many of them learn together")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="r18, r50 or names of `reid models`")
    parser.add_argument("--size", default="256x128", help="height x width of crops")
    parser.add_argument("--batch-identities", type=int, default=16, help="P of P x K")
    parser.add_argument("--crops", type=int, default=8479)
    parser.add_argument("--identities", type=int, default=480)
    parser.add_argument("--host-crops", action="store_true", help="keep the crops off the device")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms, in every way")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, about")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", dest="overrides", action="append", metavar="NAME=VALUE", help="change the recipe")
    parser.add_argument("--csv", type=Path, help="write all figures there")
    return parser.parse_args()


def drawn(crops: int, identities: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, rows of the classifier and cameras."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (crops, height, width, 3), dtype=np.uint8)
    return pixels, np.arange(crops, dtype=np.int64) % identities, random.integers(0, CAMERAS, crops)


# -- the ways ----------------------------------------------------------------------------------------------------------


def ways(work: Work, team: Team) -> dict[str, Way]:
    if team.size > 1:
        return {"each by itself": reidkit(work, Team(team.device)), "together": reidkit(work, team)}
    return {
        "reidkit": reidkit(work, team),
        "plain PyTorch": plain(work, team),
        "one batch again and again": same_batch(work, team),
        "the bare network": bare(work),
    }


def reidkit(work: Work, team: Team) -> Way:
    """The loop of `reidkit.train.run`, without what happens every few minutes."""
    learner, plan, optim = learner_of(work, team), work.plan(team), work.recipe.optim
    step = Step(learner, batch=work.recipe.batches.size, history=REPORT, compiled=work.compiled)
    done = 0
    for piece in plan.pieces(0, no_mining):
        labels = torch.from_numpy(work.labels[np.stack(piece)]).to(team.device)
        with closing(work.source.stream(piece)) as batches:  # pyright: ignore[reportArgumentType]
            for (crops, _), targets in zip(batches, labels, strict=True):
                set_learning_rate(learner.optimizer, learning_rate(plan.epoch(done), optim))
                step(crops, targets)
                done += 1
                if done % REPORT == 0:
                    step.read_losses()
                yield


def same_batch(work: Work, team: Team) -> Way:
    learner = learner_of(work, team)
    step = Step(learner, batch=work.recipe.batches.size, history=REPORT, compiled=work.compiled)
    indices = next(work.plan(team).pieces(0, no_mining))[0]
    crops, labels = work.source.batch(indices), torch.from_numpy(work.labels[indices]).to(team.device)
    while True:
        for _ in range(REPORT):
            step(crops, labels)
            yield
        step.read_losses()


def plain(work: Work, team: Team) -> Way:
    """As one writes it by hand; nothing of `Step`, and all crops on the device from the start."""
    device, recipe = team.device, work.recipe
    parts = learner_of(work, team)
    model, criterion, optimizer = parts.model, parts.criterion, plain_optimizer(parts.model, recipe)
    pixels, every_label = torch.from_numpy(work.pixels).to(device), torch.from_numpy(work.labels).to(device)
    done = 0
    for piece in work.plan(team).pieces(0, no_mining):
        for indices in piece:
            chosen = torch.from_numpy(indices).to(device)
            x = parts.preprocess.normalize(parts.augmenter(pixels[chosen], parts.generator))
            x = x.contiguous(memory_format=torch.channels_last)
            with work.autocast():
                loss = criterion(model.training_outputs(x), every_label[chosen])[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done % REPORT == 0:
                loss.item()
            yield


def bare(work: Work) -> Way:
    device, batches, spec = work.device, work.recipe.batches, work.recipe.input
    model = make_model(work).train()
    x = torch.randn(batches.size, 3, spec.height, spec.width, device=device)
    x = x.contiguous(memory_format=torch.channels_last)

    def forward(x: Tensor) -> Tensor:
        with work.autocast():
            return torch.stack([head.embedding.sigmoid().sum() for head in model.training_outputs(x)]).sum()

    computed = torch.compile(forward) if work.compiled else forward

    def both() -> None:
        model.zero_grad(set_to_none=True)
        computed(x).backward()

    once = captured(both) if device.type == "cuda" else both
    while True:
        for _ in range(REPORT):
            once()
            yield
        synchronize(device)


def captured(work: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def make_model(work: Work) -> Network:
    torch.manual_seed(work.recipe.seed)
    model = build_model(work.recipe.model, identities=int(work.labels.max()) + 1).to(work.device)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def learner_of(work: Work, team: Team) -> Learner:
    recipe = work.recipe
    model = make_model(work)
    with torch.no_grad():
        blank = torch.zeros(2, 3, recipe.input.height, recipe.input.width, device=work.device)
        criterion = Criterion(recipe.loss, model.eval().training_outputs(blank)).to(work.device)
    return make_learner(model.train(), criterion, recipe.stages[-1], recipe, team)


def plain_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    optim, weights = recipe.optim, [weight for weight in model.parameters() if weight.requires_grad]
    match optim.kind:
        case "sgd":
            nesterov = optim.momentum > 0
            return torch.optim.SGD(
                weights, optim.lr, optim.momentum, weight_decay=optim.weight_decay, nesterov=nesterov, fused=True
            )
        case "adamw":
            return torch.optim.AdamW(weights, optim.lr, weight_decay=optim.weight_decay, fused=True)
        case "adam":
            return torch.optim.Adam(weights, optim.lr, weight_decay=optim.weight_decay, fused=True)


def no_mining(_: int) -> list[np.ndarray]:
    raise SystemExit("mining is not measured here: leave mining.round_epochs at 0")


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(found: dict[str, Way], work: Work, team: Team, seconds: float, repeats: int) -> list[Measured]:
    """Every way in turn, so that a device that slows down slows all of them down; all processes step alike."""
    first = {name: timed(way, 1, team) for name, way in found.items()}
    steps: dict[str, int] = {}
    for name, way in found.items():
        timed(way, REPORT - 1, team)
        steps[name] = REPORT * max(1, round(seconds / timed(way, REPORT, team)))
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repeats):
        for name, way in found.items():
            times[name].append(timed(way, steps[name], team))
    crops = work.recipe.batches.size * team.size
    return [Measured(name, crops * steps[name] / statistics.median(times[name]), first[name]) for name in found]


def timed(way: Way, steps: int, team: Team) -> float:
    """Seconds that the slowest process took."""
    synchronize(team.device)
    team.gather(None)  # all begin together
    started = time.perf_counter()
    for _ in range(steps):
        next(way)
    synchronize(team.device)
    return max(team.gather(time.perf_counter() - started))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- what the device could do ------------------------------------------------------------------------------------------


def bounds(work: Work, images: float) -> dict[str, float]:
    """Images a second that memory alone and arithmetic alone would allow; printed beside what was reached."""
    size = (work.recipe.input.height, work.recipe.input.width)
    moved = traffic(work.recipe.model, size, 4 if work.arithmetic is None else 2) * work.recipe.batches.size
    moved += optimizer_traffic(work.recipe)
    # Forward, and backward twice as many: for the gradient of the input and that of the weights.
    added = 3 * (model_cost(work.recipe.model, size).multiply_adds or 0)
    bandwidth, rate = copy_bandwidth(work.device), multiply_add_rate(work.device, work.arithmetic)
    by_memory, by_arithmetic = work.recipe.batches.size * bandwidth / moved, rate / added
    say(
        f"memory: {moved / GB:.2f} GB a step at {bandwidth / GB:,.0f} GB/s allow {by_memory:,.0f} images/s; "
        f"reached: {images / by_memory:.0%}"
    )
    say(
        f"arithmetic: {added / GB:.2f} G multiply-adds an image at {rate / GB:,.0f} G/s allow {by_arithmetic:,.0f} "
        f"images/s; reached: {images / by_arithmetic:.0%}"
    )
    return {"memory_allows": by_memory, "arithmetic_allows": by_arithmetic}


def traffic(spec: ModelSpec, size: tuple[int, int], width: int) -> int:
    """Bytes that forward and backward of one crop move to and from memory when each layer is a kernel of its own.

    ReLUs, sums and everything else that goes element by element are taken to be part of the layer before, and weights
    to stay in the cache. A convolution or linear layer is three products (output, gradient of the input, gradient of
    the weights), each of which reads two tensors or writes one of them: its input and its output three times each. A
    normalisation needs its statistics before it can begin: forward reads twice and writes once, backward reads both the
    input and the gradient twice and writes once. A pooling reads and writes once in either direction.

    Args:
        spec: of the network.
        size: height and width of crops.
        width: bytes of a number.
    """
    moved = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal moved
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            moved += 3 * (given[0].numel() + out.numel())
        elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d, nn.InstanceNorm2d)):
            moved += 8 * out.numel()
        elif "Pool" in type(module).__name__:
            moved += 2 * (given[0].numel() + out.numel())

    with torch.device("meta"):
        model, crop = build_model(spec).eval(), torch.empty(1, 3, *size)
    for module in model.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        model(crop)
    return moved * width


def optimizer_traffic(recipe: Recipe) -> int:
    """Bytes of an update: weights and moments read and written, the gradient written and read; all float32."""
    moments = 1 if recipe.optim.kind == "sgd" else 2
    size = (recipe.input.height, recipe.input.width)
    return 4 * (2 * (1 + moments) + 2) * model_cost(recipe.model, size).parameters


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, those read and those written, of a copy that no cache holds."""
    source = torch.zeros(1 << (30 if device.type == "cuda" else 28), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / fastest(lambda: target.copy_(source), device)


def multiply_add_rate(device: torch.device, arithmetic: torch.dtype | None) -> float:
    """Multiply-adds a second of a large matrix product in the arithmetic of the run."""
    side = 8192 if device.type == "cuda" else 1024
    factors = torch.randn(2, side, side, device=device, dtype=arithmetic)
    return side**3 / fastest(lambda: factors[0] @ factors[1], device)


def fastest(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(10):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


# -- showing -----------------------------------------------------------------------------------------------------------


def show(measured: list[Measured], team: Team) -> None:
    if team.size == 1:
        say(f"{'':<28} {'images/s':>9} {'of plain':>9} {'first step':>11}")
        base = next(row.images for row in measured if row.way == "plain PyTorch")
    else:
        say(f"{f'on {team.size} devices':<28} {'images/s':>9} {'of each':>9} {'first step':>11}  {'a device':>9}")
        base = measured[0].images
    for row in measured:
        share = "" if team.size == 1 else f"  {row.images / team.size:>9,.0f}"
        say(f"{row.way:<28} {row.images:>9,.0f} {row.images / base:>8.2f}x {row.first:>9.1f} s{share}")


def say(text: str) -> None:
    """Prints, unless this process was started by another one, which does."""
    if not is_follower():
        print(text, flush=True)


def in_words(work: Work) -> str:
    batches, arithmetic = work.recipe.batches, work.arithmetic
    kind = "float32" if arithmetic is None else str(arithmetic).removeprefix("torch.")
    return f"P{batches.identities} x K{batches.crops}, {work.recipe.optim.kind}, {kind}"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
