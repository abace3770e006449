"""The moving average against its formula in float64, and what a captured graph needs."""

import copy

import numpy as np
import pytest
import torch
from capture_rules import Captured
from torch import nn
from torch.optim.swa_utils import AveragedModel

from reidkit.train.ema import Average


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last).train()


def learn(model, seed):
    """Weights and statistics as if a step had been made."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
        model(torch.randn((5, 2, 6, 6), generator=generator))


def run(decay, steps):
    """An average, and every state of the network that it saw, the first before any update."""
    model = network()
    average, seen = Average(model, decay), [copy.deepcopy(model.state_dict())]
    for step in range(steps):
        learn(model, step)
        average.update()
        seen.append(copy.deepcopy(model.state_dict()))
    return average, seen


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9999])
def test_weights_and_statistics_follow_the_formula(decay):
    average, seen = run(decay, 6)
    found = average.module.state_dict()
    for name, first in seen[0].items():
        expected = first.double().numpy()
        for step, state in enumerate(seen[1:]):
            kept = min(decay, (1 + step) / (10 + step))
            expected = kept * expected + (1 - kept) * state[name].double().numpy()
        if name == "1.num_batches_tracked":
            expected = np.asarray(6)
        np.testing.assert_allclose(found[name].double().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert average.updates == 6


def test_the_average_is_apart_from_the_network():
    model = network()
    average = Average(model, 0.9)
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert not any(part.training for part in average.module.modules())
    assert all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert average.module[0].weight.is_contiguous(memory_format=torch.channels_last)
    before = copy.deepcopy(average.module.state_dict())
    learn(model, 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in average.module.state_dict().items())


def test_what_does_not_change_stays_to_the_bit():
    model = network()
    model[0].requires_grad_(False)
    average = Average(model, 0.999)
    for _ in range(20):
        average.update()
    assert torch.equal(average.module[0].weight, model[0].weight)


def test_an_update_can_be_captured():
    model = network()
    average = Average(model, 0.9)
    places = [tensor.data_ptr() for tensor in average.state_dict().values()]
    with Captured():
        average.update()
        average.update()
    assert average.updates == 2
    assert [tensor.data_ptr() for tensor in average.state_dict().values()] == places


def test_the_average_of_torch_could_not_be_captured():
    model = network()
    average = AveragedModel(model)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Captured():
        average.update_parameters(model)


def test_a_saved_average_goes_on_to_the_bit(tmp_path):
    whole, _ = run(0.9, 5)
    model = network()
    average = Average(model, 0.9)
    for step in range(3):
        learn(model, step)
        average.update()
    torch.save((average.state_dict(), model.state_dict()), tmp_path / "state.pt")
    saved, weights = torch.load(tmp_path / "state.pt")
    model = network()
    model.load_state_dict(weights)
    resumed = Average(model, 0.9)
    places = [tensor.data_ptr() for tensor in resumed.state_dict().values()]
    resumed.load_state_dict(saved)
    assert [tensor.data_ptr() for tensor in resumed.state_dict().values()] == places
    for step in range(3, 5):
        learn(model, step)
        resumed.update()
    assert resumed.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in resumed.state_dict().items())


def test_a_network_that_moved_is_still_followed():
    model = network()
    average = Average(model, 0.0)
    model.double().float()  # as a move to a device does, this replaces the tensors
    learn(model, 0)
    average.update()
    torch.testing.assert_close(average.module[1].running_mean, model[1].running_mean)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_captured_update_does_what_an_eager_one_does():
    states = []
    for captured in (False, True):
        model = network().cuda()
        average, graph = Average(model, 0.3), torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                average.update()
        for step in range(8):
            with torch.no_grad():
                model[0].weight.fill_(step)
                model[1].num_batches_tracked.fill_(step)
            graph.replay() if captured else average.update()
        states.append({name: tensor.cpu() for name, tensor in average.state_dict().items()})
    assert states[1]["updates"] == 8
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
