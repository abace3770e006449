"""One step: the losses and weights of a loop written by hand with PyTorch's own parts."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_runs import TINY
from torch.nn import functional as F

from conditions import as_installed
from reidkit.models.model import Preprocess, build_model
from reidkit.train.augment import Augmenter
from reidkit.train.ema import Average
from reidkit.train.learner import Learner
from reidkit.train.losses.criterion import Criterion
from reidkit.train.optimizer import freeze, make_optimizer, set_learning_rate
from reidkit.train.parallel import Team
from reidkit.train.settings import Augment, DistillationLoss, Loss, Optim
from reidkit.train.step import Step
from reidkit.train.teacher import Teacher
from reidkit.types import InputSpec

pytestmark = pytest.mark.usefixtures("narrow_networks")

CPU = torch.device("cpu")
PLAIN = Optim(kind="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


def crops_of(count=6, seed=0):
    return torch.randint(0, 256, (count, 32, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def learner_of(optim=PLAIN, *, spec=InputSpec(32, 16), loss=Loss(), seed=0, **others):  # noqa: B008
    torch.manual_seed(seed)
    network = build_model(TINY, identities=4)
    with torch.no_grad():
        heads = network.eval().training_outputs(torch.zeros(2, 3, 32, 16))
    teacher = others.get("teacher")
    criterion = Criterion(
        loss, heads, distils=teacher is not None, teacher_scores=teacher is not None and teacher.has_logits
    )
    network.train()
    return Learner(
        model=network,
        criterion=criterion,
        optimizer=make_optimizer(network, criterion, optim, capturable=False),
        augmenter=Augmenter(
            Augment(pad=3, erase=0.5, color=0.5), height=32, width=16, fill=torch.full((3,), 100.0), device=CPU
        ),
        preprocess=Preprocess(spec),
        generator=torch.Generator().manual_seed(7),
        optim=optim,
        team=Team(CPU),
        **others,
    )


def step_of(learner, *, batch=6, history=8, compiled=False):
    return Step(learner, batch=batch, history=history, compiled=compiled)


def by_hand(network, pixels, labels, *, margin=0.3):
    """Cross-entropy with smoothing and the batch-hard triplet loss, pair by pair."""
    (head,) = network.training_outputs((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD))
    targets = torch.full((6, 4), 0.1 / 3).scatter(1, labels[:, None], 0.9)
    identity = -(targets * (head.embedding @ head.classifier.T).log_softmax(dim=1)).sum(dim=1).mean()
    triplets = []
    for anchor in range(len(labels)):
        far = max(
            (head.pooled[anchor] - head.pooled[i]).norm()
            for i in range(6)
            if labels[i] == labels[anchor] and i != anchor
        )
        near = min((head.pooled[anchor] - head.pooled[i]).norm() for i in range(6) if labels[i] != labels[anchor])
        triplets.append((far - near + margin).clamp(min=0))
    triplet = torch.stack(triplets).mean()
    return torch.stack([identity + triplet, identity, triplet])


MEAN = [[[0.485]], [[0.456]], [[0.406]]]
STD = [[[0.229]], [[0.224]], [[0.225]]]


def gradients_by_hand(learner, crops, labels, generator, arithmetic=None):
    network = copy.deepcopy(learner.model)
    pixels = learner.augmenter(crops, generator)
    with torch.autocast("cpu", dtype=arithmetic, enabled=arithmetic is not None):
        losses = by_hand(network, pixels, labels)
    losses[0].backward()
    return losses.detach(), {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def weights(module):
    return {name: tensor.clone() for name, tensor in module.named_parameters()}


def close(got, expected, **tolerance):
    torch.testing.assert_close(got, expected, **({"rtol": 1e-3, "atol": 1e-5} | tolerance))


def moved_along(learner, before, gradients, *, lr=0.1):
    """Every weight was moved against its gradient. Normalising six crops magnifies rounding in the first layers."""
    for name, gradient in gradients.items():
        moved = before[name] - learner.model.get_parameter(name).detach()
        assert (moved - lr * gradient).norm() <= 0.02 * lr * gradient.norm() + 1e-7, name


def test_a_step_by_hand():
    learner = learner_of()
    before, crops = weights(learner.model), crops_of()
    losses, gradients = gradients_by_hand(learner, crops, LABELS, torch.Generator().manual_seed(7))
    step = step_of(learner)
    step(crops, LABELS)
    close(step.read_losses(), losses[None])
    assert len(gradients) > 30
    assert set(before) - set(gradients) == {"heads.bottleneck.0.bias"}
    moved_along(learner, before, gradients)


def test_the_generator_goes_on_and_its_state_decides():
    first, again = learner_of(), learner_of()
    for learner in (first, again):
        step = step_of(learner)
        for seed in range(3):
            step(crops_of(seed=seed), LABELS)
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in first.model.state_dict().items())
    assert torch.equal(first.generator.get_state(), again.generator.get_state())
    other = learner_of()
    other.generator.manual_seed(8)
    step_of(other)(crops_of(), LABELS)
    assert not torch.equal(other.generator.get_state(), first.generator.get_state())


def test_accumulation_takes_the_mean_of_gradients():
    learner = learner_of(replace(PLAIN, accumulate=2))
    before, generator = weights(learner.model), torch.Generator().manual_seed(7)
    parts = [crops_of(seed=1), crops_of(seed=2)]
    (first, ones), (second, others) = (gradients_by_hand(learner, part, LABELS, generator) for part in parts)
    step = step_of(learner)
    step(torch.cat(parts), torch.cat([LABELS, LABELS]))
    close(step.read_losses(), (first + second)[None] / 2)
    moved_along(learner, before, {name: (ones[name] + others[name]) / 2 for name in ones})


@pytest.mark.parametrize("clip", [0.05, 1e6])
def test_clipping_shortens_the_gradient_of_all_weights_together(clip):
    learner = learner_of(replace(PLAIN, lr=1.0, clip=clip))
    before = weights(learner.model)
    _, gradients = gradients_by_hand(learner, crops_of(), LABELS, torch.Generator().manual_seed(7))
    length = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert length > 0.05
    step_of(learner)(crops_of(), LABELS)
    moved = torch.stack([(p.detach() - before[name]).norm() for name, p in learner.model.named_parameters()]).norm()
    close(moved, length.clamp(max=clip))


def test_what_is_clipped_is_the_gradient_and_not_the_scales_multiple_of_it():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    learner = learner_of(replace(PLAIN, lr=1.0, clip=0.05), arithmetic=torch.float16, scaler=scaler)
    before = weights(learner.model)
    step_of(learner)(crops_of(), LABELS)
    moved = torch.stack([(p.detach() - before[name]).norm() for name, p in learner.model.named_parameters()]).norm()
    close(moved, torch.tensor(0.05))


def test_the_average_follows_the_weights():
    learner = learner_of()
    learner = replace(learner, average=Average(learner.model, 0.5))
    step, expected = step_of(learner), learner.model.get_parameter("heads.weight").detach().clone()
    for updates in range(3):
        step(crops_of(seed=updates), LABELS)
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * learner.model.get_parameter("heads.weight").detach()
    close(learner.average.module.get_parameter("heads.weight"), expected)


def test_losses_are_kept_until_they_are_read():
    learner = learner_of()
    step = step_of(learner, history=3)
    assert step.read_losses().shape == (0, 3)
    for seed in range(3):
        step(crops_of(seed=seed), LABELS)
    first = step.read_losses()
    step(crops_of(seed=3), LABELS)
    second = step.read_losses()
    assert first.shape == (3, 3)
    assert second.shape == (1, 3)
    again = learner_of()
    for seed, expected in enumerate([*first, *second]):
        one = step_of(again, history=1)
        one(crops_of(seed=seed), LABELS)
        assert torch.equal(one.read_losses()[0], expected)


def test_a_rate_that_changes_counts_from_the_next_step():
    learner = learner_of()
    step = step_of(learner)
    set_learning_rate(learner.optimizer, 0.0)
    before = weights(learner.model)
    step(crops_of(), LABELS)
    assert all(torch.equal(p, before[name]) for name, p in learner.model.named_parameters())
    set_learning_rate(learner.optimizer, 0.1)
    step(crops_of(), LABELS)
    assert not torch.equal(learner.model.get_parameter("heads.weight"), before["heads.weight"])


def test_a_frozen_backbone_stands_still_with_its_statistics():
    learner = learner_of(replace(PLAIN, momentum=0.9, weight_decay=0.1))
    freeze(learner.model, frozen=True)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    step = step_of(learner)
    for seed in range(2):
        step(crops_of(seed=seed), LABELS)
    changed = {name for name, tensor in learner.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("heads.") for name in changed)
    freeze(learner.model, frozen=False)
    step_of(learner)(crops_of(), LABELS)
    assert not torch.equal(learner.model.state_dict()["backbone.conv1.weight"], before["backbone.conv1.weight"])


def conv_types(learner):
    """The types that convolutions give in a step."""
    seen = set()
    hooks = [
        module.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
        for module in learner.model.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    return seen, hooks


@pytest.mark.parametrize("arithmetic", [None, torch.bfloat16, torch.float16])
def test_convolutions_in_less_arithmetic_and_weights_in_float32(arithmetic):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if arithmetic == torch.float16 else None
    learner = learner_of(arithmetic=arithmetic, scaler=scaler)
    losses, gradients = gradients_by_hand(learner, crops_of(), LABELS, torch.Generator().manual_seed(7), arithmetic)
    before = weights(learner.model)
    seen, hooks = conv_types(learner)
    step = step_of(learner)
    step(crops_of(), LABELS)
    assert seen == {arithmetic or torch.float32}
    assert len(hooks) > 10
    got = step.read_losses()
    assert got.dtype == torch.float32
    close(got, losses[None], rtol=0.01, atol=0.02)
    assert all(p.dtype == torch.float32 for p in learner.model.parameters())
    moved = before["heads.weight"] - learner.model.get_parameter("heads.weight").detach()
    assert F.cosine_similarity(moved.flatten(), gradients["heads.weight"].flatten(), dim=0) > 0.99
    close(moved.norm(), 0.1 * gradients["heads.weight"].norm(), rtol=0.05)  # not the scale's multiple of it


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_overflows_is_skipped_and_the_scale_falls(clip):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    learner = learner_of(replace(PLAIN, clip=clip), arithmetic=torch.float16, scaler=scaler)
    before = weights(learner.model)
    step = step_of(learner)
    step(crops_of(), LABELS)
    assert all(torch.equal(p, before[name]) for name, p in learner.model.named_parameters())
    assert scaler.get_scale() == 2.0**125
    assert torch.isfinite(step.read_losses()).all()


def test_a_teacher_sees_the_students_augmented_crops():
    torch.manual_seed(3)
    seen = []

    class Watched(Teacher):
        def __call__(self, pixels):
            seen.append(pixels.clone())
            return super().__call__(pixels)

    network = build_model(TINY, identities=4)
    teacher = Watched(network, InputSpec(32, 16), scores=Loss().identity, note="")
    loss = Loss(distillation=DistillationLoss(weight=0.5, relation_weight=2.0))
    learner = learner_of(teacher=teacher, loss=loss)
    assert learner.criterion.names == ("identity", "triplet", "scores", "relations")
    step = step_of(learner)
    step(crops_of(), LABELS)
    (total, identity, triplet, scores, relations) = step.read_losses()[0]
    close(total, identity + triplet + 0.5 * scores + 2.0 * relations)
    assert torch.equal(seen[0], learner.augmenter(crops_of(), torch.Generator().manual_seed(7)))
    assert all(p.grad is None for p in network.parameters())


@pytest.fixture
def eager_compiler(monkeypatch):
    """Dynamo traces as always; what it traced then runs as it is, so that no compiler is needed."""
    compile_, compiled = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or compile_(f, backend="eager"))
    yield compiled
    torch.compiler.reset()


def test_a_compiled_step_is_the_same_step(eager_compiler):
    plain, compiled = learner_of(), learner_of()
    with as_installed():
        for learner, step in ((plain, step_of(plain)), (compiled, step_of(compiled, compiled=True))):
            for seed in range(2):
                step(crops_of(seed=seed), LABELS)
            assert learner.generator.get_state().any()
    assert len(eager_compiler) == 2
    for name, tensor in plain.model.state_dict().items():
        close(compiled.model.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)
