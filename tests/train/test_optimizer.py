"""The optimiser against its formulas in float64, what stands still, and what a captured graph needs."""

import copy

import numpy as np
import pytest
import torch
from capture_rules import Captured
from torch import nn

from reidkit.architecture import HeadSpec, ModelSpec
from reidkit.errors import TrainingError
from reidkit.models.model import build_model
from reidkit.train.optimizer import clip_gradients, freeze, make_optimizer, set_learning_rate
from reidkit.train.settings import Optim

KINDS = ("adam", "adamw", "sgd")


class Centers(nn.Module):
    def __init__(self):
        super().__init__()
        self.centers = nn.Parameter(torch.full((3, 2), 2.0))


def network():
    """A table, a bias, a scale of normalisation with its bias, and the head's."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def give_gradients(modules, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in (p for module in modules for p in module.parameters()):
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def by_hand(kind, weight, gradients, rates, decay, momentum=0.9):
    """Kingma and Ba (2015), Loshchilov and Hutter (2019), Sutskever et al. (2013) as torch writes it."""
    weight = weight.astype(np.float64)
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step, (raw, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        gradient = raw if kind == "adamw" else raw + decay * weight
        if kind == "adamw":
            weight = weight - rate * decay * weight
        if kind == "sgd":
            first = momentum * first + gradient
            weight = weight - rate * (gradient + momentum * first)
        else:
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            root = np.sqrt(second / (1 - 0.999**step)) + 1e-8
            weight = weight - rate * first / (1 - 0.9**step) / root
    return weight


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_follow_the_formula_and_the_rate(kind, capturable):
    model, criterion = network(), Centers()
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, criterion, Optim(kind=kind, weight_decay=0.3), capturable=capturable)
    rates, gradients = (0.1, 0.05, 0.2), []
    for seed, rate in enumerate(rates):
        give_gradients((model, criterion), seed)
        gradients.append({name: p.grad.double().numpy() for name, p in model.named_parameters()})
        gradients[-1]["centers"] = criterion.centers.grad.double().numpy()
        set_learning_rate(optimizer, rate)
        optimizer.step()
    before["centers"] = np.full((3, 2), 2.0)
    for name, parameter in [*model.named_parameters(), *criterion.named_parameters()]:
        decay = 0.3 if name == "0.weight" else 0.0
        expected = by_hand(kind, before[name], [g[name] for g in gradients], rates, decay)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-5, atol=1e-6)


def test_tables_decay_and_the_bias_of_the_neck_takes_no_part():
    model = build_model(ModelSpec(head=HeadSpec(gem_learned=True)), identities=3)
    criterion = Centers()
    decayed, kept = make_optimizer(model, criterion, Optim(weight_decay=0.1), capturable=False).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in [*model.named_parameters(), *criterion.named_parameters()]}
    tables = {names[id(p)] for p in decayed["params"]}
    assert tables == {name for name in names.values() if "conv" in name or "downsample.0" in name} | {"heads.weight"}
    assert {names[id(p)] for p in kept["params"]} == set(names.values()) - tables - {"heads.bottleneck.0.bias"}
    assert "centers" in {names[id(p)] for p in kept["params"]}


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_there_from_the_start_and_is_the_one_torch_makes(kind):
    model = network()
    mine = make_optimizer(model, nn.Identity(), Optim(kind=kind), capturable=False)
    made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[kind]
    theirs = made(model.parameters(), lr=0.0, fused=True, **({"momentum": 0.9} if kind == "sgd" else {}))
    give_gradients((model,), 0)
    theirs.step()
    for parameter in model.parameters():
        found, expected = mine.state[parameter], theirs.state[parameter]
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            assert (tensor.shape, tensor.dtype) == (expected[name].shape, expected[name].dtype)
            assert not tensor.any()


def test_sgd_without_momentum():
    model = network()
    before = model[0].weight.detach().clone()
    optimizer = make_optimizer(
        model, nn.Identity(), Optim(kind="sgd", momentum=0.0, lr=0.5, weight_decay=0.0), capturable=False
    )
    give_gradients((model,), 0)
    optimizer.step()
    assert torch.equal(model[0].weight, before - 0.5 * model[0].weight.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_can_be_captured(kind):
    model = network()
    optimizer = make_optimizer(model, Centers(), Optim(kind=kind), capturable=True)
    give_gradients((model,), 0)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert all(rate.shape == () and rate.dtype == torch.float32 for rate in rates)
    with Captured():
        set_learning_rate(optimizer, 0.5)
        clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    # The same tensors: a graph would go on reading them.
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
    assert all(rate == 0.5 for rate in rates)


def test_sgd_that_is_not_fused_could_not_be_captured():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1), momentum=0.9, foreach=True)
    give_gradients((model,), 0)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Captured():
        optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.filterwarnings("ignore:This instance was constructed with capturable=True")
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_step_does_what_an_eager_one_does(kind):
    """The first step is the one captured, and the learning rate changes between replays."""
    weights = []
    for captured in (False, True):
        model = network().cuda()
        optimizer = make_optimizer(model, nn.Identity(), Optim(kind=kind), capturable=True)
        for parameter in model.parameters():
            parameter.grad = torch.linspace(-1, 1, parameter.numel(), device="cuda").view(parameter.shape)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                optimizer.step()
        for rate in (0.1, 0.2, 0.05):
            set_learning_rate(optimizer, rate)
            graph.replay() if captured else optimizer.step()
        weights.append([p.detach().cpu() for p in model.parameters()])
    for eager, replayed in zip(*weights, strict=True):
        assert torch.equal(eager, replayed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_and_keeps_the_options_of_its_new_place(kind):
    def run(model, optimizer, seeds):
        for seed in seeds:
            give_gradients((model,), seed)
            optimizer.step()

    whole, first = network(), network()
    run(whole, make_optimizer(whole, nn.Identity(), Optim(kind=kind, lr=0.1), capturable=False), range(4))
    saved = make_optimizer(first, nn.Identity(), Optim(kind=kind, lr=0.1), capturable=False)
    run(first, saved, range(2))
    second = copy.deepcopy(first)
    resumed = make_optimizer(second, nn.Identity(), Optim(kind=kind, lr=0.1), capturable=True)
    set_learning_rate(saved, 7.0)
    resumed.load_state_dict(saved.state_dict())
    for group in resumed.param_groups:
        assert isinstance(group["lr"], torch.Tensor)
        assert group["lr"] == pytest.approx(0.1)
        assert group.get("capturable", True)
    run(second, resumed, range(2, 4))
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def _of_another_kind(state):
    state["state"] = make_optimizer(network(), nn.Identity(), Optim(kind="sgd"), capturable=False).state_dict()["state"]


def _too_short(state):  # the fused kernels would write beyond its end
    state["state"][0]["exp_avg"] = torch.zeros(1)


def _no_tensor(state):
    state["state"][0]["exp_avg"] = 1.0


def _one_is_missing(state):
    del state["state"][1]["exp_avg_sq"]


def _of_fewer_weights(state):
    del state["state"][2]


def _no_moments(state):
    state["state"][0] = None


@pytest.mark.parametrize(
    "damage", [_of_another_kind, _too_short, _no_tensor, _one_is_missing, _of_fewer_weights, _no_moments]
)
def test_a_state_that_does_not_fit_is_refused(damage):
    state = make_optimizer(network(), nn.Identity(), Optim(), capturable=False).state_dict()
    damage(state)
    optimizer = make_optimizer(network(), nn.Identity(), Optim(), capturable=False)
    text = r"state of the optimiser does not fit\n  got: moments of other .*\n  expected: those of 4 weights"
    with pytest.raises(TrainingError, match=text):
        optimizer.load_state_dict(state)


def test_what_is_loaded_is_laid_out_as_the_optimiser_wants_it():
    """A tensor of one number, spread over a shape, has the shape and not the memory."""
    model = network()
    optimizer = make_optimizer(model, nn.Identity(), Optim(), capturable=False)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg"] = torch.tensor(3.0).expand(3, 2)
    optimizer.load_state_dict(state)
    moments = optimizer.state[model[0].weight]["exp_avg"]
    assert moments.stride() == model[0].weight.stride()
    assert moments.tolist() == [[3.0, 3.0]] * 3


def test_clipping_by_hand():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))

    def clipped(limit):
        a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        clip_gradients(iter((a, b)), limit)
        return [*a.grad.tolist(), *b.grad.tolist()]

    assert clipped(2.5) == pytest.approx([1.5, 0.0, 2.0], rel=1e-5)
    assert clipped(6.0) == [3.0, 0.0, 4.0]
    assert clipped(0.0) == [3.0, 0.0, 4.0]


class TestFreeze:
    @pytest.mark.parametrize("branches", [None, "mgn"])
    def test_all_but_the_heads_stands_still_and_learns_again(self, branches):
        model = build_model(ModelSpec() if branches is None else ModelSpec(branches=branches), identities=3).train()
        learned = {name for name, p in model.named_parameters() if p.requires_grad}
        heads = {name for name in learned if "head" in name.split(".")[0]}
        assert heads
        freeze(model, frozen=True)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == heads
        norms = {name: part.training for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}
        assert all(training == ("head" in name.split(".")[0]) for name, training in norms.items())
        assert model.training
        freeze(model, frozen=False)
        assert {name for name, p in model.named_parameters() if p.requires_grad} == learned
        assert all(part.training for part in model.modules())

    @pytest.mark.parametrize("kind", KINDS)
    def test_frozen_weights_do_not_move_and_begin_afresh_when_they_learn(self, kind):
        """Through the boundary both ways; what is unfrozen steps as if the run began there."""
        backbone, head = network(), nn.Linear(3, 2)
        optimizer = make_optimizer(
            nn.ModuleList([backbone, head]), nn.Identity(), Optim(kind=kind, lr=0.1, weight_decay=0.1), capturable=False
        )

        def step(seed):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            head(backbone(torch.randn(8, 2))).square().mean().backward()
            optimizer.step()

        def state():
            return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}

        give_gradients((backbone,), 0)  # left over from before
        freeze(backbone, frozen=True)
        start, moved = state(), head.weight.detach().clone()
        step(1)
        step(2)
        assert all(torch.equal(start[name], tensor) for name, tensor in state().items())
        assert not torch.equal(head.weight, moved)
        freeze(backbone, frozen=False)
        step(3)
        gradient = backbone[0].weight.grad.double().numpy()
        decayed = by_hand(kind, start["0.weight"].numpy(), [gradient], [0.1], 0.1)
        np.testing.assert_allclose(backbone[0].weight.detach().numpy(), decayed, rtol=1e-5, atol=1e-6)
        assert backbone[1].num_batches_tracked == start["1.num_batches_tracked"] + 1
