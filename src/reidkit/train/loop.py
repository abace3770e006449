"""`train`: a recipe and a data set become a checkpoint."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reidkit.architecture import ModelSpec, with_size
from reidkit.atomic import check_free
from reidkit.checkpoints.starting import starting_weights
from reidkit.errors import ConfigError, OutputError, TrainingError
from reidkit.manifest import CHECKPOINT
from reidkit.models.cost import model_cost
from reidkit.models.model import Network, Preprocess, build_model
from reidkit.train.callbacks import SILENT, Callbacks
from reidkit.train.crops import CropSource, load_crops, place_crops
from reidkit.train.journal import Measured
from reidkit.train.notes import recipe_notes
from reidkit.train.outcome import BEFORE, LAST, Outcome, describe_file
from reidkit.train.parallel import Team, assemble
from reidkit.train.quantization import Quantization, Rounding
from reidkit.train.quantized_start import check_quantized, weights_of_bundle
from reidkit.train.recipe import Recipe
from reidkit.train.rounded_network import RoundedNetwork, measure_ranges
from reidkit.train.run import Run
from reidkit.train.settings import at_least
from reidkit.train.state import STATE, RunState, check_origin, check_same, load_state
from reidkit.train.teacher import load_teacher
from reidkit.train.training_data import TrainingData
from reidkit.train.validation import divide
from reidkit.types import Split, Task


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What a run leaves behind.

    Attributes:
        checkpoint: what is worth most of the run: the best network where it was measured, else the last.
        identities: that were learned.
        crops: that were learned from.
        steps: that were done, of all stages; since the run was resumed, if it was.
        seconds: that they took, measuring included, decoding not.
        best: the measurement that chose the checkpoint; None without any, or if it was before the run was resumed.
    """

    checkpoint: Path
    identities: int
    crops: int
    steps: int
    seconds: float
    best: Measured | None = None


def train(
    split: Split,
    recipe: Recipe,
    out: Path | str,
    *,
    device: str = "cpu",
    devices: int = 1,
    task: Task = "person",
    init: Path | None = None,
    teacher: Path | None = None,
    rounding: Rounding | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    cache: Path | None = None,
    report_every: int = 10,
    save_every: float = 300.0,
    callbacks: Callbacks = SILENT,
) -> TrainedRun:
    """Trains a model on `split.train` and writes into the folder `out`.

    - `model.safetensors`: the network; with validation, the best one measured. `last.safetensors` is then the last.
    - `before.safetensors`: of a recipe with a stage before the main one, the network at its end.
    - `log.csv`: losses, learning rate and measurements, row by row, also of a run that breaks off.
    - `state.pt`: while the run goes on, everything needed to go on with it. An interrupt (Ctrl-C, or SIGTERM) ends the
      step, writes it and raises KeyboardInterrupt; a resumed run ends with the same weights, to the bit on a CPU.

    Crops are decoded once and kept as uint8, in memory or on the GPU where they fit.

    Args:
        split: a data set with training crops.
        recipe: what to learn and how.
        out: folder of the run; made if it is not there.
        device: "cpu", "cuda" or "cuda:N".
        devices: how many of them; each has batches of its own, and gradients are averaged. The learning rate is not
            changed by it. Several are several processes: the command is run once more for each, and all return.
        task: what the identities are.
        init: anyone's checkpoint, whose backbone the network starts from; None starts from random weights. For eight
            bits a bundle, of which all is taken.
        teacher: a trained network to copy from, as `recipe.loss.distillation` says. For eight bits None is `init`,
            where a loss copies.
        rounding: for eight bits, where the engine rounds the graph of `init`.
        resume: go on with the run in `out`, which must have the same recipe and data.
        overwrite: replace an earlier run in `out`: its checkpoints at the end, its log at once.
        tensorboard: write TensorBoard's events, too.
        cache: folder that keeps decoded crops; None keeps none.
        report_every: steps between two calls of `on_step`, and two rows of the log.
        save_every: seconds between two writings of the state, at least.
        callbacks: who is told what happens.

    Raises:
        ConfigError: the network cannot be built; mining that fits no batch; a teacher that has nothing to copy; a
            recipe for eight bits without its bundle or rounding, or the reverse.
        InputError: the network takes no crops of the recipe's size.
        DataError: nothing to train or to measure on.
        ImageError: a crop cannot be decoded.
        RuntimeMissing: the device is not there, or fewer of them.
        ModelError: `init` or `teacher` cannot be read, or its backbone is another.
        TrainingError: too few identities, losses or weights that are not finite, or a run that cannot be resumed.
        OutputError: the folder holds a run and `overwrite` is False, or it cannot be written to.
        KeyboardInterrupt: the run was interrupted, and can be resumed.
    """
    out = Path(out)
    at_least("report_every", report_every, 1)
    check_quantized(recipe, init, rounding)
    if recipe.quantization is not None and teacher is None and recipe.loss.distillation.relation_weight > 0:
        teacher = init
    team = assemble(device, devices)
    learned, examination = divide(split, recipe.validation, seed=recipe.seed)
    data = TrainingData(split, learned, recipe.input)
    notes = [*recipe_notes(recipe, init=init is not None, teacher=teacher is not None), *data.check(recipe)]
    state = _earlier_state(out, recipe, data, resume=resume, overwrite=overwrite)
    spec = with_size(recipe.model, data.size)
    model_cost(spec, data.size)  # a network that takes no such crops: said before the decoding
    tutor = None if teacher is None else load_teacher(teacher, identities=data.identities, device=team.device)
    model = _network(spec, recipe, len(data.names), init, rounding, team)
    files = describe_file(init), describe_file(teacher)
    outcome = Outcome(out, spec, recipe, task, data.words, data.identities, *files)
    if state is not None:
        check_origin(state, outcome.origin)
    outcome.check_room(model)
    if tutor is not None:
        copied, said = recipe.loss.distillation, tutor.note
        if copied.weight == 0:
            what = "only relations are" if copied.relation_weight else "nothing is"
            said = f"{what} copied, as loss.distillation.weight is 0"
        notes += [f"teacher: {said}", *tutor.assumptions]
    crops = [crop.path for crop in (*learned, *(() if examination is None else examination.crops))]
    with team.leader_first():  # the others find what the cache kept
        pixels = load_crops(crops, recipe.input, folder=cache, progress=callbacks.on_decode)
    source = place_crops(pixels, team.device)
    if team.leads:
        for note in [*notes, f"crops: {source.describe()}"]:
            callbacks.on_note(note)
    if isinstance(model, RoundedNetwork) and recipe.quantization is not None and state is None:
        callbacks.on_note(_measured(model, recipe, recipe.quantization, source, len(data.labels)))
        team.equalize(model)
    run = Run(recipe, team, model, source, data, examination, outcome, tutor, callbacks, report_every, save_every)
    started = time.perf_counter()
    steps = run.go(state, tensorboard=tensorboard)
    seconds = time.perf_counter() - started
    return TrainedRun(out / CHECKPOINT, len(data.names), len(data.labels), steps, seconds, run.best)


def _network(
    spec: ModelSpec, recipe: Recipe, identities: int, init: Path | None, rounding: Rounding | None, team: Team
) -> Network | RoundedNetwork:
    """The network as the run begins with it, the same in every process."""
    if recipe.quantization is None and init is not None and spec.branches == "mgn":
        raise ConfigError("MGN cannot start from a backbone, only from random weights", got=init, fix="leave out init")
    if init is None:
        weights = {}
    else:
        in_floats = rounding is None
        weights = starting_weights(init, spec.backbone) if in_floats else weights_of_bundle(init, spec, recipe.input)
    if recipe.sync_batchnorm and team.size > 1 and team.device.type != "cuda":
        raise ConfigError(
            "Batch normalisation over several processes needs GPUs",
            got=f"sync_batchnorm on {team.device.type}",
            fix="--set sync_batchnorm=false",
        )
    torch.manual_seed(recipe.seed)
    model = build_model(spec, identities=identities)
    model.load_state_dict(weights, strict=False)
    if rounding is not None and recipe.quantization is not None:
        size, learned = (recipe.input.height, recipe.input.width), recipe.quantization.ranges == "learned"
        model = RoundedNetwork(model, rounding, size, learned=learned)
    model = model.to(device=team.device)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.sync_batchnorm and team.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model  # pyright: ignore[reportReturnType]


def _measured(model: RoundedNetwork, recipe: Recipe, settings: Quantization, source: CropSource, crops: int) -> str:
    """Measures the first ranges that no table gives, on crops from all over the data; says so."""
    chosen = np.unique(np.linspace(0, crops - 1, min(crops, settings.images)).round().astype(np.int64))
    batches = np.array_split(chosen, -(-len(chosen) // recipe.batches.size))
    given = [name for name in model.grids if name in model.given]
    preprocess = Preprocess(recipe.input).to(model.rate.device)
    measure_ranges(model, preprocess, (source.batch(batch) for batch in batches), but=given)
    rest = len(model.grids) - len(given)
    sources = [f"{len(given)} values from the bundle's table"] if given else []
    sources += [f"{rest} values measured on {len(chosen)} training crops"] if rest else []
    return f"eight bits as {model.engine}: ranges of {' and '.join(sources)}"


def _earlier_state(out: Path, recipe: Recipe, data: TrainingData, *, resume: bool, overwrite: bool) -> RunState | None:
    """The state to go on from; or none, if the folder is free to begin in."""
    if resume:
        if (out / CHECKPOINT).exists() and not (out / STATE).exists():
            raise TrainingError(
                f"The run in {out} cannot be resumed: it has ended",
                got=f"{CHECKPOINT}, and no {STATE}",
                expected="a run that was interrupted",
                fix="take its checkpoint as --init of another run, or train anew with --overwrite",
            )
        state = load_state(out / STATE)
        check_same(state, recipe, data.digest)
        return state
    if (out / STATE).exists() and not overwrite:
        raise OutputError(
            f"{out} holds a run that was interrupted",
            got=STATE,
            fix="go on with it by --resume, choose another folder, or say --overwrite",
        )
    for name in (CHECKPOINT, LAST, BEFORE):
        check_free(out / name, overwrite=overwrite)
    return None
