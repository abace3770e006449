"""The state of a run: a resumed run is the same run, and whatever happens to the file is seen or does no harm."""

import errno
import hashlib
import logging
import os
import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from reidkit.config import to_dict
from reidkit.errors import OutputError, TrainingError
from reidkit.train import state as state_module
from reidkit.train.quantization import Quantization
from reidkit.train.recipe import Recipe
from reidkit.train.settings import Optim
from reidkit.train.state import RunState, check_same, data_digest, load_state, random_states, restore_random, save_state
from reidkit.types import Crop

RECIPE = Recipe(optim=Optim(epochs=2.0))
DATA = "0" * 64
OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, weight_decay=1e-3, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True),
}


class Run:
    """A small training run with all that has a state; random numbers come from both generators."""

    def __init__(self, kind, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
        self.criterion = nn.Linear(3, 2, bias=False)
        self.ema = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        self.optimizer = OPTIMIZERS[kind]([*self.model.parameters(), *self.criterion.parameters()])
        self.generator = torch.Generator().manual_seed(seed + 1)

    def learn(self, steps):
        for _ in range(steps):
            x = torch.randn(16, 4, generator=self.generator)
            loss = self.criterion(self.model(x)).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.ema.update_parameters(self.model)
        return self

    def state(self, **others):
        return RunState(
            recipe=to_dict(RECIPE),
            data=DATA,
            stage=0,
            step=5,
            model=self.model.state_dict(),
            criterion=self.criterion.state_dict(),
            optimizer=self.optimizer.state_dict(),
            random=[random_states(self.generator)],
            ema=self.ema.state_dict(),
            **others,
        )

    def restore(self, state):
        self.model.load_state_dict(state.model)
        self.criterion.load_state_dict(state.criterion)
        self.ema.load_state_dict(state.ema)
        self.optimizer.load_state_dict(state.optimizer)
        restore_random(state, self.generator)
        return self

    def tensors(self):
        parts = (self.model, self.criterion, self.ema)
        moments = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        return [t.clone() for part in parts for t in part.state_dict().values()] + [t.clone() for t in moments]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "state.pt"


@pytest.fixture
def state():
    return Run("sgd").learn(2).state()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_resumed_run_is_the_same_run_to_the_bit(kind, path):
    whole = Run(kind).learn(9)
    save_state(path, Run(kind).learn(5).state())
    resumed = Run(kind, seed=77).restore(load_state(path)).learn(4)
    assert len(whole.tensors()) == len(resumed.tensors()) > 20
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors(), resumed.tensors(), strict=True))
    # It is the state that makes it so.
    assert not torch.equal(whole.tensors()[0], Run(kind).learn(5).learn(3).tensors()[0])


def test_without_the_random_numbers_it_would_be_another_run(path):
    whole = Run("adam").learn(9)
    save_state(path, Run("adam").learn(5).state())
    other = Run("adam", seed=77)
    generator, other.generator = other.generator, torch.Generator().manual_seed(1)
    other.restore(load_state(path))
    other.generator = generator
    assert not torch.equal(whole.tensors()[0], other.learn(4).tensors()[0])


def test_everything_comes_back(path):
    scaler = {
        "scale": 1024.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 7,
    }
    mined = [np.array([3, 1, 2]), np.array([5, 5, 0])]
    saved = Run("sgd").state(scaler=scaler, best=np.float64(0.625), without_best=3, mining_round=2, mined=mined)
    mined[0].flags.writeable = False
    save_state(path, saved)
    loaded = load_state(path)
    assert [batch.tolist() for batch in loaded.mined] == [[3, 1, 2], [5, 5, 0]]
    assert all(isinstance(batch, np.ndarray) and batch.dtype == np.int64 for batch in loaded.mined)
    assert (type(loaded.best), loaded.best) == (float, 0.625)
    for name in ("recipe", "data", "stage", "step", "scaler", "without_best", "mining_round", "versions"):
        assert getattr(loaded, name) == getattr(saved, name), name
    assert loaded.versions["torch"] == str(torch.__version__)
    bare = Run("sgd").state()
    save_state(path, bare)  # in place of the other
    assert [getattr(load_state(path), name) for name in ("best", "scaler", "mined", "mining_round")] == [None] * 4


# -- files -------------------------------------------------------------------------------------------------------------


def test_no_such_file(path):
    with pytest.raises(TrainingError, match=r"No such state of a run: .*state\.pt\n  expected: state\.pt"):
        load_state(path)


def test_a_truncated_file(state, path):
    save_state(path, state)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            TrainingError, match=r"state\.pt cannot be read as the state of a run\n  got: it is truncated"
        ):
            load_state(path)


def test_no_damaged_byte_of_a_weight_is_believed(state, path):
    """`torch.load` itself would give the changed weight."""
    save_state(path, state)
    whole = path.read_bytes()
    weight = state.model["0.weight"].numpy().tobytes()
    place = whole.index(weight) + len(weight) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    torch.load(path, weights_only=True)
    with pytest.raises(TrainingError, match=r"got: .*/data/\d+ is damaged"):
        load_state(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_is_never_run(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.pt"
    write({"format": "reidkit run state 1", "model": Trap()}, path)
    with pytest.raises(TrainingError, match="cannot be read as the state of a run") as caught:
        load_state(path)
    assert "weights_only" not in str(caught.value)  # torch's advice is to run it
    assert not (tmp_path / "trapped").exists()


def test_a_file_of_somebody_else(path):
    path.parent.mkdir()
    for value in ({"state_dict": {}}, [1, 2], torch.zeros(3)):
        torch.save(value, path)
        with pytest.raises(
            TrainingError, match="is no state of a run that this reidkit can go on with\n  got: format None"
        ):
            load_state(path)
    torch.save({"format": "reidkit run state 2"}, path)
    with pytest.raises(TrainingError, match=r"got: format 'reidkit run state 2'\n  expected: 'reidkit run state 1'"):
        load_state(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recipe", [1]),
        ("data", "abc"),
        ("stage", -1),
        ("step", 1.5),
        ("step", True),
        ("model", {"a": 1}),
        ("criterion", None),
        ("optimizer", {"state": {}}),
        ("optimizer", {"state": {}, "param_groups": [1]}),
        ("random", []),
        ("random", [{"cpu": torch.zeros(3)}]),
        ("ema", torch.zeros(3)),
        ("scaler", 1.0),
        ("best", float("nan")),
        ("without_best", None),
        ("mining_round", "one"),
        ("mined", [torch.zeros(3)]),
        ("versions", {"torch": 2}),
        ("surplus", 1),
    ],
)
def test_a_value_of_another_type(state, path, name, value):
    save_state(path, state)
    values = torch.load(path, weights_only=True)
    torch.save({**values, name: value}, path)
    with pytest.raises(TrainingError, match=f"got: missing, unknown or of a wrong type: {name}\n"):
        load_state(path)


def test_a_value_that_is_missing(state, path):
    save_state(path, state)
    values = torch.load(path, weights_only=True)
    assert values.keys() == {"format", *(item.name for item in fields(RunState))}
    del values["optimizer"], values["step"]
    torch.save(values, path)
    with pytest.raises(TrainingError, match="got: missing, unknown or of a wrong type: optimizer, step\n"):
        load_state(path)


def test_a_full_disk_leaves_the_last_good_state(state, path, monkeypatch):
    save_state(path, state)
    before = path.read_bytes()
    write = Path.write_bytes

    def full(self, data):
        write(self, bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        OutputError, match=r"Cannot write .*state\.pt\n  got: No space left(.|\n)*to do: free some space"
    ):
        save_state(path, replace(state, step=9))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert load_state(path).step == 5
    assert list(path.parent.iterdir()) == [path]


def test_what_could_not_be_read_again_replaces_nothing(state, path):
    save_state(path, state)
    groups = [{**group, "lr": np.float64(1e-3)} for group in state.optimizer["param_groups"]]
    with pytest.raises(TrainingError, match="got: it holds something else than tensors and plain values"):
        save_state(path, replace(state, optimizer={**state.optimizer, "param_groups": groups}))
    assert load_state(path).optimizer["param_groups"][0]["lr"] == 1e-2
    assert list(path.parent.iterdir()) == [path]


# -- another run -------------------------------------------------------------------------------------------------------


def test_the_same_run(state):
    check_same(state, RECIPE, DATA)


def test_another_recipe(state):
    other = replace(RECIPE, seed=3, optim=replace(RECIPE.optim, epochs=4.0, steps=(1.0,)))
    with pytest.raises(TrainingError) as caught:
        check_same(state, other, DATA)
    assert caught.value.problem == "A run cannot be resumed with another recipe"
    assert caught.value.got == (
        "optim.epochs = 4.0 (the run: 2.0); optim.steps = [1.0] (the run: [40.0, 90.0]); seed = 3 (the run: 0)"
    )


def test_another_recipe_of_another_reidkit(state):
    was = {key: value for key, value in state.recipe.items() if key != "amp"} | {"old": {"key": 1}}
    with pytest.raises(
        TrainingError, match=r"got: old = absent \(the run: \{'key': 1\}\); amp = 'auto' \(the run: absent\)"
    ):
        check_same(replace(state, recipe=was), RECIPE, DATA)


def test_a_key_that_an_older_reidkit_did_not_know_is_none(state):
    was = {key: value for key, value in state.recipe.items() if key != "quantization"}
    assert was.keys() < state.recipe.keys()
    check_same(replace(state, recipe=was), RECIPE, DATA)
    with pytest.raises(TrainingError, match=r"got: quantization = \{.*\} \(the run: absent\)"):
        check_same(replace(state, recipe=was), replace(RECIPE, quantization=Quantization()), DATA)


def test_a_recipe_with_nothing_in_common_is_not_listed_whole(state):
    was = {f"key{i}": i for i in range(30)}
    with pytest.raises(TrainingError) as caught:
        check_same(replace(state, recipe=was), RECIPE, DATA)
    said = [key for key, value in state.recipe.items() if value is not None]
    assert caught.value.got.endswith(f"; and {30 + len(said) - 12} more")
    assert caught.value.got.count("; ") == 12


def test_other_data(state):
    with pytest.raises(TrainingError, match=r"other training data\n  got: other files(.|\n)*sha256 000000000000\.\.\."):
        check_same(state, RECIPE, "1" * 64)


def test_another_torch_is_said(state, caplog):
    with caplog.at_level(logging.WARNING):
        check_same(replace(state, versions={"reidkit": "0", "torch": "1.0"}), RECIPE, DATA)
    assert f"begun with reidkit 0, torch 1.0 and goes on with reidkit {state.versions['reidkit']}" in caplog.text


def test_the_digest_of_data_by_hand(tmp_path):
    crops = [Crop(tmp_path / "a" / "1.jpg", 7, 2), Crop(tmp_path / "b.jpg", 8, -1)]
    lines = b'["a/1.jpg", 7, 2]\n["b.jpg", 8, -1]\n'
    assert data_digest(crops, tmp_path) == hashlib.sha256(lines).hexdigest()


def test_the_digest_of_data(tmp_path):
    def crops(root):
        return [Crop(root / name, pid, 0) for name, pid in (("1.jpg", 0), ("2.jpg", 1))]

    here = data_digest(crops(tmp_path), tmp_path)
    assert here == data_digest(crops(Path("elsewhere")), Path("elsewhere"))  # moved
    listing = tmp_path / "list.csv"
    listing.touch()
    assert here == data_digest(crops(tmp_path), listing)
    first, second = crops(tmp_path)
    for other in ([second, first], [first], [replace(first, pid=1), second], [replace(first, camid=1), second]):
        assert data_digest(other, tmp_path) != here
    assert data_digest([Crop(Path("/x/1.jpg"), 0, 0)], tmp_path) != data_digest(
        [Crop(Path("/y/1.jpg"), 0, 0)], tmp_path
    )


# -- random numbers ----------------------------------------------------------------------------------------------------


def test_each_process_has_its_own_random_numbers(state):
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = replace(state, random=[random_states(generator) for generator in generators])
    expected = [torch.rand(3, generator=generator) for generator in generators]
    for rank in range(2):
        generator = torch.Generator()
        restore_random(both, generator, rank=rank, processes=2)
        assert torch.equal(torch.rand(3, generator=generator), expected[rank])


def test_another_number_of_devices(state):
    message = r"another number of devices\n  got: 2\n  expected: 1\n  to do: say --devices 1"
    with pytest.raises(TrainingError, match=message):
        restore_random(state, torch.Generator(), rank=0, processes=2)


def test_another_kind_of_device(state, monkeypatch):
    on_gpu = {"cpu": torch.get_rng_state(), "augmentation on cuda": torch.zeros(16, dtype=torch.uint8)}
    on_gpu["cuda"] = on_gpu["augmentation on cuda"]
    monkeypatch.setattr(state_module.torch, "set_rng_state", lambda _: pytest.fail("half restored"))
    with pytest.raises(
        TrainingError, match=r"another kind of device(.|\n)*got: cpu\n  expected: .*augmentation on cuda"
    ):
        restore_random(replace(state, random=[on_gpu]), torch.Generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_random_numbers_on_a_gpu(state):
    generator = torch.Generator("cuda").manual_seed(3)
    torch.rand(5, generator=generator, device="cuda")
    there = replace(state, random=[random_states(generator)])
    expected = torch.rand(4, generator=generator, device="cuda"), torch.rand(4, device="cuda"), torch.rand(4)
    fresh = torch.Generator("cuda")
    restore_random(there, fresh)
    again = torch.rand(4, generator=fresh, device="cuda"), torch.rand(4, device="cuda"), torch.rand(4)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
