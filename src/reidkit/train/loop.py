"""The training run: crops in memory, P x K batches, identity and triplet loss, a checkpoint at the end."""

import csv
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import astuple, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

import reidkit
from reidkit.architecture import with_size
from reidkit.atomic import check_free, growing_file
from reidkit.bundle import file_sha256
from reidkit.checkpoints.starting import starting_weights, weights_file
from reidkit.config import to_dict
from reidkit.errors import DataError, RuntimeMissing, TrainingError
from reidkit.imaging import stream_crops
from reidkit.manifest import Provenance
from reidkit.models.checkpoint import CheckpointFacts, save_checkpoint
from reidkit.models.cost import model_cost
from reidkit.models.model import EmbeddingModel, Preprocess
from reidkit.train.augment import augment_batch
from reidkit.train.losses import batch_hard_triplet, identity_loss
from reidkit.train.recipe import Amp, Recipe
from reidkit.train.sampler import identity_batches
from reidkit.types import InputSpec, Progress, Split, Task, no_progress

CHECKPOINT = "model.safetensors"
LOG = "log.csv"

_LOWER_RATE = "lower the learning rate: --set optim.lr=1e-4"


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where a run is: one row of `log.csv`.

    Attributes:
        step: batches done.
        steps: batches of the whole run, an estimate while it runs.
        epoch: passes over the data so far, as a fraction.
        loss: their weighted sum, mean since the last report.
        identity_loss: cross-entropy.
        triplet_loss: batch-hard.
        lr: learning rate.
        images_per_second: since the last report.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    identity_loss: float
    triplet_loss: float
    lr: float
    images_per_second: float


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What a run leaves behind."""

    checkpoint: Path
    identities: int
    crops: int
    steps: int
    seconds: float


def train(
    split: Split,
    recipe: Recipe,
    out: Path | str,
    *,
    device: str = "cpu",
    task: Task = "person",
    init: Path | None = None,
    overwrite: bool = False,
    report_every: int = 10,
    on_decode: Progress = no_progress,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> TrainedRun:
    """Trains a model on `split.train` and writes `model.safetensors` and `log.csv` into the folder `out`.

    The log grows row by row and stays when the run breaks off; the checkpoint is written at the end, or not at all.

    All crops are decoded once and kept as uint8 on the device: height x width x 3 bytes each (0.8 GB for 8,500 at
    256 x 128).

    Args:
        split: a data set with training crops.
        recipe: what to learn and how.
        out: folder of the run; made if it is not there.
        device: "cpu" or "cuda".
        task: what the identities are.
        init: anyone's checkpoint, whose backbone the network starts from; None starts from random weights.
        overwrite: replace the checkpoint of an earlier run in `out` at the end, and its log at once.
        report_every: steps between two calls of `on_step`, and two rows of the log.
        on_decode: progress of decoding.
        on_step: called with the state of the run.

    Raises:
        ConfigError: the network cannot be built, or takes no crops of the recipe's size.
        DataError: nothing to train on.
        ImageError: a crop cannot be decoded.
        RuntimeMissing: the device is not there.
        ModelError: `init` cannot be read, or its backbone is another.
        TrainingError: too few identities for a batch, or losses or weights that are not finite.
        OutputError: the folder holds a checkpoint and `overwrite` is False, or it cannot be written to.
    """
    target = _device(device)
    labels, pids = _labels(split)
    next(_batches(labels, recipe, epoch=0))  # too few identities: said before the decoding
    checkpoint = Path(out) / CHECKPOINT
    check_free(checkpoint, overwrite=overwrite)
    size = (recipe.input.height, recipe.input.width)
    spec = with_size(recipe.model, size)
    model_cost(spec, size)  # a network that takes no such crops: said before the decoding, too
    weights = None if init is None else starting_weights(init, spec.backbone)
    # Opened first: a folder that cannot be written to is refused before the work, not after it.
    with growing_file(Path(out) / LOG) as stream:
        log = csv.writer(stream)
        log.writerow(field.name for field in fields(StepReport))

        def report(row: StepReport) -> None:
            log.writerow(astuple(row))
            on_step(row)

        torch.manual_seed(recipe.seed)
        crops = _decode(split, recipe.input, on_decode).to(target)
        model = EmbeddingModel(spec, identities=len(pids))
        if weights is not None:
            model.load_state_dict(weights, strict=False)
        model = model.to(target)
        model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        started = time.perf_counter()
        steps = _optimise(model, crops, labels, recipe, report_every, report)
        seconds = time.perf_counter() - started
    _check_weights(model, steps)
    provenance = Provenance(
        source=checkpoint.parent.name,
        framework=f"torch {torch.__version__}",
        init=None if init is None else f"{init.name}, sha256 {file_sha256(weights_file(init))}",
        dataset=f"{split.name} train: {len(pids)} identities, {len(labels)} crops",
        recipe=to_dict(recipe),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        reidkit=reidkit.__version__,
    )
    save_checkpoint(checkpoint, model, CheckpointFacts(spec, recipe.input, task, provenance))
    return TrainedRun(checkpoint, len(pids), len(labels), steps, seconds)


def learning_rate(epoch: float, *, epochs: float, peak: float, warmup: float) -> float:
    """Linear warm-up from a hundredth of the peak, then half a cosine to zero.

    Args:
        epoch: passes done, as a fraction.
        epochs: of the whole run.
        peak: highest rate.
        warmup: epochs of warm-up, at most half of the run.
    """
    warmup = min(warmup, epochs / 2)
    if epoch < warmup:
        return peak * (0.01 + 0.99 * epoch / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - warmup) / (epochs - warmup))))


def _optimise(
    model: EmbeddingModel,
    crops: UInt8[Tensor, "n height width 3"],
    labels: np.ndarray,
    recipe: Recipe,
    report_every: int,
    report: Callable[[StepReport], None],
) -> int:
    device = crops.device
    targets = torch.from_numpy(labels).to(device)
    preprocess = Preprocess(recipe.input).to(device)
    fill = torch.tensor(recipe.input.mean) * recipe.input.scale
    fill = fill.flip(0) if recipe.input.color == "bgr" else fill
    optimizer = torch.optim.Adam(_decayed(model, recipe.optim.weight_decay), lr=recipe.optim.lr, fused=True)
    generator = torch.Generator().manual_seed(recipe.seed)
    model.train()
    steps = max(1, round(recipe.optim.epochs * len(labels) / (recipe.batches.identities * recipe.batches.crops)))
    window = _Window(steps)
    done = 0
    epochs = recipe.optim.epochs
    for epoch in itertools.count():  # every epoch has at least one batch, so this ends
        for indices in _batches(labels, recipe, epoch=epoch):
            rate = learning_rate(
                epochs * done / steps, epochs=epochs, peak=recipe.optim.lr, warmup=recipe.optim.warmup_epochs
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = torch.from_numpy(indices).to(device)
            pixels = augment_batch(crops[chosen], recipe.augment, generator=generator, fill=fill)
            losses = _step(model, optimizer, preprocess.normalize(pixels), targets[chosen], recipe)
            done += 1
            window.add(losses, len(indices))
            if done % report_every == 0 or done == steps:
                report(window.close(done, epochs * done / steps, rate))
            if done == steps:
                return done
    raise AssertionError("unreachable")


def _step(
    model: EmbeddingModel, optimizer: torch.optim.Optimizer, x: Tensor, targets: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor, Tensor]:
    with _autocast(x.device, recipe.amp):
        embeddings, logits = model.training_outputs(x.contiguous(memory_format=torch.channels_last))
    identity = identity_loss(logits, targets, smoothing=recipe.loss.label_smoothing)
    margin = None if recipe.loss.margin == "soft" else recipe.loss.margin
    triplet = batch_hard_triplet(embeddings, targets, margin=margin)
    loss = identity + recipe.loss.triplet_weight * triplet
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach(), identity.detach(), triplet.detach()


class _Window:
    """Sums of the losses since the last report; read once a report, so that a GPU is not made to wait at each step."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._reset()

    def _reset(self) -> None:
        self.losses: list[Tensor] = []
        self.images = 0
        self.since = time.perf_counter()

    def add(self, losses: tuple[Tensor, Tensor, Tensor], images: int) -> None:
        self.losses.append(torch.stack(losses))
        self.images += images

    def close(self, step: int, epoch: float, rate: float) -> StepReport:
        loss, identity, triplet = torch.stack(self.losses).mean(dim=0).tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss stopped being a number by step {step}",
                got=f"identity {identity}, triplet {triplet}",
                expected="finite losses",
                fix=_LOWER_RATE,
            )
        speed = self.images / (time.perf_counter() - self.since)
        self._reset()
        return StepReport(step, self.steps, epoch, loss, identity, triplet, rate, speed)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RuntimeMissing(f"Unknown device {name!r}", expected="cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise RuntimeMissing(f"Training does not run on {name!r}", expected="cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeMissing(
            "PyTorch sees no such CUDA device", got=name, fix="say --device cpu, or install PyTorch for CUDA"
        )
    return device


def _labels(split: Split) -> tuple[np.ndarray, np.ndarray]:
    if not split.train:
        raise DataError(
            f"{split.root} has no crops to train on", got=f"format {split.format}", expected="a train subset"
        )
    pids, labels = np.unique([crop.pid for crop in split.train], return_inverse=True)
    return labels.astype(np.int64), pids


def _batches(labels: np.ndarray, recipe: Recipe, *, epoch: int) -> Iterator[np.ndarray]:
    wanted = recipe.batches
    return identity_batches(labels, identities=wanted.identities, crops=wanted.crops, seed=recipe.seed, epoch=epoch)


def _check_weights(model: nn.Module, step: int) -> None:
    """The last step comes after the last loss, so what it did to the weights is looked at once more."""
    bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        raise TrainingError(
            f"{len(bad)} weights are not finite after step {step}",
            got=", ".join(bad[:4]),
            expected="finite weights",
            fix=_LOWER_RATE,
        )


def _decode(split: Split, spec: InputSpec, progress: Progress) -> UInt8[Tensor, "n height width 3"]:
    crops = np.empty((len(split.train), spec.height, spec.width, 3), dtype=np.uint8)
    # Closed also when something fails: the threads would decode on for as long as the traceback is held.
    with closing(stream_crops([crop.path for crop in split.train], spec)) as stream:
        for i, crop in enumerate(stream):
            if isinstance(crop, Exception):
                raise crop
            crops[i] = crop
            progress(i + 1, len(crops))
    return torch.from_numpy(crops)


def _decayed(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights decay; biases and the scales of normalisation do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _autocast(device: torch.device, amp: Amp) -> AbstractContextManager[object]:
    wanted = amp == "bfloat16" or (amp == "auto" and _bfloat16_helps(device))
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def _bfloat16_helps(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; where it does not, PyTorch's emulation takes twice float32's time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
