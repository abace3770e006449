"""Divergences from a teacher against loops in float64; gradients against differences."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from numpy_losses import difference_gradient, js_scores, kl_scores, relations

from reidkit.train.losses.distillation import relation_divergence, score_divergence

SCORES = {
    "kl": (partial(score_divergence, kind="kl"), kl_scores),
    "js": (partial(score_divergence, kind="js"), js_scores),
}
LOSSES = {**SCORES, "relations": (relation_divergence, relations)}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)


@EVERY_LOSS
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_against_a_loop(name, temperature):
    loss, loop = LOSSES[name]
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(0, 2, (6, 9)), rng.normal(0, 3, (6, 9))
    x = torch.from_numpy(student).float().requires_grad_()
    got = loss(x, torch.from_numpy(teacher).float(), temperature=temperature)
    assert got.item() == pytest.approx(loop(student, teacher, temperature), rel=1e-4)
    got.backward()
    expected = difference_gradient(lambda z: loop(z, teacher, temperature), student)
    np.testing.assert_allclose(x.grad, expected, rtol=1e-3, atol=1e-5)


@EVERY_LOSS
def test_a_perfect_copy_has_nothing_to_learn(name):
    x = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = LOSSES[name][0](x, x.detach().clone(), temperature=2.0)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(x.grad, np.zeros((6, 9)), atol=1e-6)


@EVERY_LOSS
def test_the_teacher_does_not_learn(name):
    student, teacher = (torch.randn(6, 9, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    LOSSES[name][0](student.requires_grad_(), teacher.requires_grad_(), temperature=2.0).backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_js_is_symmetric_and_bounded():
    one, other = (3 * torch.randn(6, 9, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    js = partial(score_divergence, kind="js")
    torch.testing.assert_close(js(one, other, temperature=3.0), js(other, one, temperature=3.0))
    apart = js(100 * torch.eye(4), 100 * torch.eye(4).roll(1, 0), temperature=2.0)
    assert apart.item() == pytest.approx(4 * math.log(2), rel=1e-6)


def test_the_factor_keeps_gradients_of_hot_scores():
    # Far above the logits, the gradient of a softmax falls with the square of the temperature.
    student, teacher = (torch.randn(6, 9, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    for loss, _ in SCORES.values():
        sizes = []
        for temperature in (50.0, 100.0):
            x = student.clone().requires_grad_()
            loss(x, teacher, temperature=temperature).backward()
            sizes.append(x.grad.norm().item())
        assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_relations_need_no_common_width_or_length():
    rng = np.random.default_rng(2)
    student, teacher = rng.normal(0, 1, (5, 4)), rng.normal(0, 1, (5, 11))
    tensors = [torch.from_numpy(table).float() for table in (student, teacher)]
    got = relation_divergence(*tensors, temperature=0.1)
    assert got.item() == pytest.approx(relations(student, teacher, 0.1), rel=1e-4)
    torch.testing.assert_close(relation_divergence(9 * tensors[0], tensors[1] / 9, temperature=0.1), got)


@pytest.mark.parametrize("crops", [1, 2])
def test_relations_between_fewer_than_three_crops_say_nothing(crops):
    x = torch.randn(crops, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = relation_divergence(x, x.detach().flip(1), temperature=0.1)
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()


@EVERY_LOSS
@pytest.mark.parametrize("size", [0.0, 1.0, 1e15])
@pytest.mark.parametrize("teacher", ["the same", "another", "far off"])
def test_the_gradient_is_finite(name, size, teacher):
    x = (size * torch.eye(6, 8)).requires_grad_()
    teachers = {"the same": x.detach(), "another": size * torch.eye(6, 8).flip(0), "far off": torch.full((6, 8), -1e15)}
    loss = LOSSES[name][0](x, teachers[teacher], temperature=0.1)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


@EVERY_LOSS
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_all_is_float32_under_autocast(name, kind):
    loss, loop = LOSSES[name]
    student, teacher = (torch.randn(6, 9, generator=torch.Generator().manual_seed(s)).to(kind) for s in (0, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loss(student, teacher, temperature=0.5)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(loop(student.double().numpy(), teacher.double().numpy(), 0.5), rel=1e-4)
