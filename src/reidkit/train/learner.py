"""What a stage learns with: the network, its losses, its optimiser, and all that stands around them."""

from dataclasses import dataclass

import numpy as np
import torch

from reidkit.models.model import Network, Preprocess
from reidkit.train.arithmetic import autocast_type
from reidkit.train.augment import Augmenter
from reidkit.train.ema import Average
from reidkit.train.losses.criterion import Criterion
from reidkit.train.optimizer import make_optimizer
from reidkit.train.parallel import Team
from reidkit.train.recipe import Recipe, Stage
from reidkit.train.rounded_network import RoundedNetwork
from reidkit.train.settings import Optim
from reidkit.train.teacher import Teacher


@dataclass(frozen=True, slots=True)
class Learner:
    """All that a stage learns with.

    Attributes:
        model: the network that learns.
        criterion: its losses.
        optimizer: of both.
        augmenter: of crops.
        preprocess: from pixels to what the network sees.
        generator: of the augmentation's random numbers, on the device.
        optim: settings of the optimiser.
        team: the processes of the run.
        arithmetic: of convolutions and matrix products; None leaves them in float32.
        average: moving average of the weights.
        scaler: of float16's gradients.
        teacher: to copy from.
    """

    model: Network | RoundedNetwork
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    augmenter: Augmenter
    preprocess: Preprocess
    generator: torch.Generator
    optim: Optim
    team: Team
    arithmetic: torch.dtype | None = None
    average: Average | None = None
    scaler: torch.amp.GradScaler | None = None
    teacher: Teacher | None = None


def make_learner(
    model: Network | RoundedNetwork,
    criterion: Criterion,
    stage: Stage,
    recipe: Recipe,
    team: Team,
    *,
    number: int = 0,
    teacher: Teacher | None = None,
) -> Learner:
    """What a stage learns with, as it is before the first step.

    Args:
        model: the network, on the team's device.
        criterion: its losses, likewise.
        stage: of the recipe.
        recipe: for what its stages share.
        team: the processes of the run.
        number: of the stage, from 0: each draws its own random numbers.
        teacher: to copy from.
    """
    device, spec = team.device, recipe.input
    generator = torch.Generator(device)
    generator.manual_seed(int(np.random.SeedSequence([recipe.seed, number, team.rank]).generate_state(1)[0]))
    amp = "off" if recipe.quantization is not None else recipe.amp
    arithmetic = autocast_type(device, amp, width=spec.width)
    # float16 asks in every step whether its gradients overflowed, so its optimiser is in no graph.
    capturable = device.type == "cuda" and arithmetic != torch.float16
    fill = torch.tensor(spec.mean) * spec.scale
    return Learner(
        model=model,
        criterion=criterion,
        optimizer=make_optimizer(model, criterion, stage.optim, capturable=capturable),
        augmenter=Augmenter(
            stage.augment,
            height=spec.height,
            width=spec.width,
            fill=fill.flip(0) if spec.color == "bgr" else fill,
            device=device,
        ),
        preprocess=Preprocess(spec).to(device),
        generator=generator,
        optim=stage.optim,
        team=team,
        arithmetic=arithmetic,
        average=Average(model, stage.optim.ema) if stage.optim.ema > 0 else None,
        scaler=torch.amp.GradScaler(device.type) if arithmetic == torch.float16 else None,
        teacher=teacher,
    )
