"""The sum of a recipe's losses: what is on, what each takes from which head, and that a CUDA graph could hold it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy_losses import (
    arcface,
    center,
    circle_classes,
    circle_pairs,
    contrastive,
    cosface,
    cosine_table,
    js_scores,
    kl_scores,
    relations,
    smoothed_cross_entropy,
    triplet_hard,
    triplet_weighted,
)
from torch.utils._python_dispatch import TorchDispatchMode

from conditions import as_installed
from reidkit.architecture import HeadSpec, ModelSpec
from reidkit.errors import ConfigError
from reidkit.models.head import HeadOutputs
from reidkit.models.model import build_model
from reidkit.train.losses.criterion import Criterion, TeacherOutputs
from reidkit.train.settings import (
    CenterLoss,
    CircleLoss,
    ContrastiveLoss,
    DistillationLoss,
    IdentityLoss,
    Loss,
    TripletLoss,
)

LABELS = [0, 0, 1, 1, 4, 4]
IDENTITIES = 5
EVERYTHING = Loss(
    IdentityLoss(weight=0.5),
    TripletLoss(weight=2.0),
    CircleLoss(weight=0.25, scale=8.0),
    ContrastiveLoss(weight=3.0),
    CenterLoss(weight=0.125),
    DistillationLoss(weight=1.5, relation_weight=0.75),
)
OFF = Loss(
    IdentityLoss(weight=0.0), TripletLoss(weight=0.0), CircleLoss(weight=1.0), distillation=DistillationLoss(weight=0.0)
)
ALL_NAMES = ("identity", "triplet", "circle", "contrastive", "center", "scores", "relations")


def outputs(*, whole=(True,), pooled=7, dim=6, seed=0):
    """Of heads as a network has them: features before the neck not below 0, and small rows in the classifier."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        HeadOutputs(
            torch.randn(len(LABELS), pooled, generator=generator).relu().requires_grad_(),
            torch.randn(len(LABELS), dim, generator=generator).requires_grad_(),
            torch.randn(IDENTITIES, dim, generator=generator).requires_grad_(),
            one,
        )
        for one in whole
    )


def teacher_outputs(*, scores=True):
    generator = torch.Generator().manual_seed(9)
    embedding = torch.randn(len(LABELS), 11, generator=generator)
    logits = 3 * torch.randn(len(LABELS), IDENTITIES, generator=generator)
    return TeacherOutputs(embedding, logits if scores else None)


def plain(tensor):
    return tensor.detach().double().numpy()


def losses_of(settings, heads, *, teacher=None, centers=None):
    distils = {} if teacher is None else {"distils": True, "teacher_scores": teacher.logits is not None}
    criterion = Criterion(settings, heads, **distils)
    if centers is not None:
        for table, values in zip(criterion.centers, centers, strict=True):
            table.data.copy_(values)
    values = criterion(heads, torch.tensor(LABELS), teacher)
    return values[0].item(), dict(zip(criterion.names, values[1:].tolist(), strict=True))


def test_each_loss_by_hand_and_their_sum():
    (head,), teacher = outputs(), teacher_outputs()
    pooled, embedding, rows = plain(head.pooled), plain(head.embedding), plain(head.classifier)
    centers = torch.randn(IDENTITIES, 7, generator=torch.Generator().manual_seed(3))
    total, got = losses_of(EVERYTHING, (head,), teacher=teacher, centers=[centers])
    expected = {
        "identity": smoothed_cross_entropy(embedding @ rows.T, LABELS, 0.1),
        "triplet": triplet_hard(pooled, LABELS, 0.3),
        "circle": circle_pairs(embedding, LABELS, 8.0, 0.35),
        "contrastive": contrastive(embedding, LABELS, 0.1),
        "center": center(pooled, LABELS, plain(centers)),
        "scores": kl_scores(embedding @ rows.T, plain(teacher.logits), 4.0),
        "relations": relations(embedding, plain(teacher.embedding), 0.1),
    }
    assert tuple(got) == ALL_NAMES
    assert got == pytest.approx(expected, rel=1e-4)
    weights = {
        "identity": 0.5,
        "triplet": 2.0,
        "circle": 0.25,
        "contrastive": 3.0,
        "center": 0.125,
        "scores": 1.5,
        "relations": 0.75,
    }
    assert total == pytest.approx(sum(weights[name] * expected[name] for name in weights), rel=1e-4)


def test_identities_are_learnt_by_all_heads_and_distances_by_those_that_saw_the_whole():
    heads, teacher = outputs(whole=(True, False, True, False)), teacher_outputs()
    whole = heads[0], heads[2]
    centers = [torch.randn(IDENTITIES, 7, generator=torch.Generator().manual_seed(s)) for s in (3, 4)]
    _, got = losses_of(EVERYTHING, heads, teacher=teacher, centers=centers)
    scores = [plain(head.embedding) @ plain(head.classifier).T for head in heads]
    joined = np.concatenate([plain(head.embedding) for head in heads], axis=1)
    expected = {
        "identity": np.mean([smoothed_cross_entropy(table, LABELS, 0.1) for table in scores]),
        "triplet": np.mean([triplet_hard(plain(head.pooled), LABELS, 0.3) for head in whole]),
        "circle": np.mean([circle_pairs(plain(head.embedding), LABELS, 8.0, 0.35) for head in whole]),
        "contrastive": np.mean([contrastive(plain(head.embedding), LABELS, 0.1) for head in whole]),
        "center": np.mean([center(plain(h.pooled), LABELS, plain(c)) for h, c in zip(whole, centers, strict=True)]),
        "scores": kl_scores(np.mean(scores, axis=0), plain(teacher.logits), 4.0),
        "relations": relations(joined, plain(teacher.embedding), 0.1),
    }
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["cosface", "am-softmax", "arcface", "circle"])
def test_kinds_of_identity_loss(kind):
    (head,), teacher = outputs(), teacher_outputs()
    settings = replace(EVERYTHING, identity=IdentityLoss(kind=kind, smoothing=0.0, scale=10.0, margin=0.3))
    _, got = losses_of(settings, (head,), teacher=teacher)
    cosines = cosine_table(plain(head.embedding), plain(head.classifier))
    if kind == "circle":
        expected = circle_classes(cosines, LABELS, 10.0, 0.3)
    else:
        logits = arcface(cosines, LABELS, 10.0, 0.3) if kind == "arcface" else cosface(cosines, LABELS, 10.0, 0.3)
        expected = smoothed_cross_entropy(logits, LABELS, 0.0)
    assert got["identity"] == pytest.approx(expected, rel=1e-5)
    # What is compared with the teacher's scores has no margin.
    assert got["scores"] == pytest.approx(kl_scores(10 * cosines, plain(teacher.logits), 4.0), rel=1e-4)


def test_kinds_of_triplet_loss():
    (head,) = outputs()
    pooled = plain(head.pooled)
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    for settings, expected in (
        (TripletLoss(margin=1.5), triplet_hard(pooled, LABELS, 1.5)),
        (TripletLoss(margin="soft"), triplet_hard(pooled, LABELS, "soft")),
        (TripletLoss(normalize=True), triplet_hard(unit, LABELS, 0.3)),
        (TripletLoss(kind="weighted", margin="soft"), triplet_weighted(pooled, LABELS)),
        (TripletLoss(kind="weighted", margin="soft", normalize=True), triplet_weighted(unit, LABELS)),
    ):
        _, got = losses_of(Loss(triplet=settings), (head,))
        assert got["triplet"] == pytest.approx(expected, rel=1e-4)


def test_kinds_of_distillation():
    (head,), teacher = outputs(), teacher_outputs()
    settings = DistillationLoss(kind="js", temperature=2.0, relation_temperature=0.5)
    _, got = losses_of(Loss(distillation=settings), (head,), teacher=teacher)
    scores = plain(head.embedding) @ plain(head.classifier).T
    assert got["scores"] == pytest.approx(js_scores(scores, plain(teacher.logits), 2.0), rel=1e-4)
    assert got["relations"] == pytest.approx(relations(plain(head.embedding), plain(teacher.embedding), 0.5), rel=1e-4)


def test_only_what_has_a_weight_is_on():
    heads = outputs()
    assert Criterion(Loss(), heads).names == ("identity", "triplet")
    assert Criterion(OFF, heads).names == ("circle",)
    assert Criterion(EVERYTHING, heads).names == ALL_NAMES[:5]
    assert Criterion(Loss(), heads, distils=True, teacher_scores=True).names == (*ALL_NAMES[:2], "scores", "relations")
    assert Criterion(Loss(), heads, distils=True).names == ("identity", "triplet", "relations")
    only_scores = Loss(distillation=DistillationLoss(relation_weight=0.0))
    assert Criterion(only_scores, heads, distils=True, teacher_scores=True).names == ("identity", "triplet", "scores")
    total, got = losses_of(OFF, heads)
    assert total == got["circle"]


@pytest.mark.parametrize(
    ("settings", "teacher_scores", "got"),
    [
        (DistillationLoss(0.0, relation_weight=0.0), True, r"weight 0 and relation_weight 0\n"),
        (
            DistillationLoss(0.0, relation_weight=0.0),
            False,
            r"weight 0 and relation_weight 0, from a teacher that does",
        ),
        (
            DistillationLoss(2.5, relation_weight=0.0),
            False,
            r"weight 2\.5 and relation_weight 0, from a teacher that d",
        ),
    ],
)
def test_a_teacher_that_nothing_is_copied_from(settings, teacher_scores, got):
    with pytest.raises(ConfigError, match=rf"nothing to copy from it\n  got: loss\.distillation\.{got}"):
        Criterion(Loss(distillation=settings), outputs(), distils=True, teacher_scores=teacher_scores)


def test_only_the_sum_has_a_gradient():
    heads, teacher = outputs(whole=(True, False)), teacher_outputs()
    criterion = Criterion(Loss(center=CenterLoss(0.5)), heads, distils=True, teacher_scores=True)
    values = criterion(heads, torch.tensor(LABELS), teacher)
    values.sum().backward()
    summed = [head.embedding.grad.clone() for head in heads]
    for head in heads:
        head.embedding.grad = None
    criterion(heads, torch.tensor(LABELS), teacher)[0].backward()
    for head, gradient in zip(heads, summed, strict=True):
        assert torch.equal(head.embedding.grad, gradient)
        assert gradient.any()
        assert head.classifier.grad.any()
    assert heads[0].pooled.grad.any()
    assert heads[1].pooled.grad is None  # a stripe has no metric loss
    assert criterion.centers[0].grad.any()


def gradients(settings):
    (head,) = outputs()
    Criterion(settings, (head,))((head,), torch.tensor(LABELS))[0].backward()
    return head.pooled.grad, head.embedding.grad


@pytest.mark.parametrize(
    ("loss", "before"),
    [
        ({"triplet": TripletLoss()}, True),
        ({"center": CenterLoss(0.5)}, True),
        ({"circle": CircleLoss(1.0)}, False),
        ({"contrastive": ContrastiveLoss(1.0)}, False),
    ],
    ids=["triplet", "center", "circle", "contrastive"],
)
def test_the_side_of_the_neck(loss, before):
    identity_only = Loss(triplet=TripletLoss(0.0))
    _, after_identity = gradients(identity_only)
    pooled, embedding = gradients(replace(identity_only, **loss))
    assert (pooled is not None) is before
    assert torch.equal(embedding, after_identity) is before


def test_centers_are_trained_and_kept():
    heads = outputs(whole=(True, False, True))
    criterion = Criterion(Loss(center=CenterLoss(0.5)), heads)
    assert [tuple(table.shape) for table in criterion.parameters()] == [(IDENTITIES, 7)] * 2
    assert not any(table.any() for table in criterion.parameters())
    assert set(criterion.state_dict()) == {"centers.0", "centers.1"}
    assert not list(Criterion(Loss(), heads).parameters())
    assert not Criterion(Loss(), heads).state_dict()


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        (ModelSpec(head=HeadSpec(embedding_dim=64)), [(IDENTITIES, 512)]),
        (ModelSpec(head=HeadSpec(embedding_dim=64), branches="mgn"), [(IDENTITIES, 512)] * 3),
    ],
    ids=["one head", "MGN"],
)
def test_the_heads_of_real_networks_tell_what_is_needed(spec, shapes):
    with torch.device("meta"):
        heads = build_model(spec, identities=IDENTITIES).training_outputs(torch.empty(2, 3, 96, 32))
    criterion = Criterion(Loss(center=CenterLoss(0.5)), heads)
    assert [tuple(table.shape) for table in criterion.centers] == shapes
    assert all(table.device.type == "cpu" for table in criterion.centers)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(kind):
    heads = tuple(
        HeadOutputs(head.pooled.to(kind), head.embedding.to(kind), head.classifier, head.whole)
        for head in outputs(whole=(True, False))
    )
    teacher = teacher_outputs()
    criterion = Criterion(EVERYTHING, heads, distils=True, teacher_scores=True)
    plain = criterion(heads, torch.tensor(LABELS), teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = criterion(heads, torch.tensor(LABELS), teacher)
    assert values.dtype == torch.float32
    assert torch.equal(values, plain)


VARIANTS = {
    "softmax": EVERYTHING,
    "cosface": replace(EVERYTHING, identity=IdentityLoss(kind="cosface"), triplet=TripletLoss(margin="soft")),
    "arcface": replace(
        EVERYTHING, identity=IdentityLoss(kind="arcface"), triplet=TripletLoss(kind="weighted", margin="soft")
    ),
    "circle": replace(EVERYTHING, identity=IdentityLoss(kind="circle"), distillation=DistillationLoss(kind="js")),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_compiles_whole(variant):
    heads, teacher = outputs(whole=(True, False)), teacher_outputs()
    criterion = Criterion(VARIANTS[variant], heads, distils=True, teacher_scores=True)
    with as_installed(), torch.autocast("cpu", dtype=torch.bfloat16):
        compiled = torch.compile(criterion, fullgraph=True, backend="eager")
        values = compiled(heads, torch.tensor(LABELS), teacher)
        assert torch.equal(values, criterion(heads, torch.tensor(LABELS), teacher))
    values[0].backward()
    assert all(head.embedding.grad.isfinite().all() for head in heads)


class Operators(TorchDispatchMode):
    """Writes down the operators of the block."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(str(function).removeprefix("aten."))
        return function(*args, **(kwargs or {}))


# Of these a CUDA graph holds none: they read a value on the host, choose by a mask, or copy something to the device.
NOT_CAPTURABLE = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "index.",
    "lift_fresh",
    "_to_copy",
    "rand",
    "normal",
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_waits_for_the_host(variant):
    heads, teacher, labels = outputs(whole=(True, False, True)), teacher_outputs(), torch.tensor(LABELS)
    criterion = Criterion(VARIANTS[variant], heads, distils=True, teacher_scores=True)
    with Operators() as forward:
        values = criterion(heads, labels, teacher)
    with Operators() as backward:
        values[0].backward()
    assert "scalar_tensor.default" not in forward.names  # backward makes its own on the device of the gradient
    assert "mm.default" in forward.names & backward.names
    assert not [name for name in forward.names | backward.names if name.startswith(NOT_CAPTURABLE)]


def test_the_watch_on_operators_sees_what_it_is_for():
    x = torch.ones(3)
    with Operators() as seen:
        x[x > 0].sum().item()
        torch.where(x > 0, x, 0.0)
        torch.tensor([1.0])
    assert {"_local_scalar_dense.default", "index.Tensor", "lift_fresh.default", "scalar_tensor.default"} <= seen.names


def test_the_same_batch_gives_the_same_bits():
    runs = []
    for _ in range(2):
        heads = outputs(whole=(True, False))
        criterion = Criterion(EVERYTHING, heads, distils=True, teacher_scores=True)
        values = criterion(heads, torch.tensor(LABELS), teacher_outputs())
        values[0].backward()
        runs.append((values, *(head.embedding.grad for head in heads), *(head.classifier.grad for head in heads)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
