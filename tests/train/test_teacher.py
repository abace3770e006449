"""A teacher: whose weights, at which size, and when it may score identities."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from foreign_checkpoints import make_torchreid_osnet, save_torchreid
from reidkit.architecture import HeadSpec, ModelSpec, ResNetSpec
from reidkit.bundle import Golden, write_bundle
from reidkit.config import to_dict
from reidkit.errors import BundleError, ModelError
from reidkit.manifest import Embedding, Manifest, Provenance
from reidkit.models.checkpoint import CheckpointFacts, deployed_weights, save_checkpoint
from reidkit.models.model import build_model
from reidkit.train.recipe import Recipe
from reidkit.train.settings import IdentityLoss, Loss
from reidkit.train.teacher import Teacher, identities_digest, load_teacher
from reidkit.types import InputSpec

pytestmark = pytest.mark.usefixtures("narrow_networks")

NAMES = ("0002", "0007", "0010", "0011", "0012")
DIGEST = identities_digest(NAMES)
INPUT = InputSpec(32, 16, color="bgr", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
SMALL = ModelSpec(ResNetSpec(), HeadSpec(pooling="average"))
MGN = ModelSpec(ResNetSpec(), HeadSpec(pooling="average", embedding_dim=3), branches="mgn")


def network_of(spec=SMALL, *, seed=0):
    torch.manual_seed(seed)
    network = build_model(spec, identities=len(NAMES))
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            tensor.normal_(0.0, 0.2)
    return network.eval()


def facts_of(spec=SMALL, *, identities=DIGEST, loss=IdentityLoss(), recipe=True):  # noqa: B008
    described = to_dict(Recipe(loss=Loss(identity=loss))) if recipe else None
    return CheckpointFacts(spec, INPUT, "person", Provenance(recipe=described), identities=identities)


def saved(folder, network, facts):
    folder.mkdir(exist_ok=True)
    save_checkpoint(folder / "model.safetensors", network, facts)
    return folder


def crops_of(count=3, size=(32, 16), seed=1):
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (count, 3, *size)).astype(np.float32))


def normalised(pixels):
    """By hand: the network's channels are blue, green, red, each with the mean and std of its place."""
    red, green, blue = pixels.numpy().transpose(1, 0, 2, 3) / 255
    planes = [(blue - 0.4) / 0.2, (green - 0.5) / 0.25, (red - 0.6) / 0.3]
    return torch.from_numpy(np.stack(planes, axis=1).astype(np.float32))


def close(got, wanted):
    np.testing.assert_allclose(got.numpy(), wanted.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_a_run_teaches_embeddings_and_scores(tmp_path, file):
    network = network_of()
    teacher = load_teacher(saved(tmp_path / "run", network, facts_of()) / file, identities=DIGEST, device="cpu")
    assert teacher.has_logits
    assert "same identities" in teacher.note
    assert teacher.input == INPUT
    pixels = crops_of()
    outputs = teacher(pixels)
    with torch.no_grad():
        embedding = network(normalised(pixels))
    close(outputs.embedding, embedding)
    close(outputs.logits, embedding @ network.heads.weight.detach().T)


def test_what_was_trained_by_cosines_is_scored_by_cosines(tmp_path):
    network = network_of()
    facts = facts_of(loss=IdentityLoss(kind="arcface", scale=16.0, margin=0.5))
    outputs = load_teacher(saved(tmp_path / "run", network, facts), identities=DIGEST, device="cpu")(crops_of())
    embedding, weight = outputs.embedding.double().numpy(), network.heads.weight.detach().double().numpy()
    for i, row in enumerate(embedding):
        for j, own in enumerate(weight):
            cosine = row @ own / np.sqrt((row @ row) * (own @ own))
            assert float(outputs.logits[i, j]) == pytest.approx(16 * cosine, abs=1e-4)


def test_an_mgn_teaches_all_heads_side_by_side_and_the_mean_of_their_scores(tmp_path):
    network = network_of(MGN)
    folder = saved(tmp_path / "mgn", network, facts_of(MGN))
    pixels = crops_of(size=(96, 32))
    facts = replace(facts_of(MGN), input=InputSpec(96, 32, color="bgr", mean=INPUT.mean, std=INPUT.std))
    outputs = load_teacher(saved(folder, network, facts), identities=DIGEST, device="cpu")(pixels)
    with torch.no_grad():
        embedding = network(normalised(pixels))
        parts = ("b1", "b2", "b3", "b21", "b22", "b31", "b32", "b33")
        scores = [
            embedding[:, 3 * i : 3 * i + 3] @ network.get_parameter(f"{part}_head.weight").T
            for i, part in enumerate(parts)
        ]
    assert outputs.embedding.shape == (3, 24)
    close(outputs.embedding, embedding)
    close(outputs.logits, sum(scores) / 8)


def resized_by_hand(row, length):
    """One line of pixels: a triangle of weights around each new centre, widened when there are fewer new pixels."""
    step = len(row) / length
    width = max(step, 1.0)
    new = []
    for i in range(length):
        center = (i + 0.5) * step
        weights = np.maximum(0, 1 - np.abs(np.arange(len(row)) + 0.5 - center) / width)
        new.append(weights @ row / weights.sum())
    return np.array(new)


@pytest.mark.parametrize("size", [(20, 9), (64, 32), (48, 40), (32, 24)])
def test_crops_of_another_size_become_the_teachers_own(tmp_path, size):
    teacher = load_teacher(saved(tmp_path / "run", network_of(), facts_of()), identities=DIGEST, device="cpu")
    pixels = crops_of(2, size)
    by_hand = np.apply_along_axis(resized_by_hand, 2, pixels.double().numpy(), 32)
    by_hand = np.apply_along_axis(resized_by_hand, 3, by_hand, 16)
    got, wanted = teacher(pixels), teacher(torch.from_numpy(by_hand.astype(np.float32)))
    close(got.embedding, wanted.embedding)
    close(got.logits, wanted.logits)


def test_it_never_learns(tmp_path):
    teacher = load_teacher(saved(tmp_path / "run", network_of(), facts_of()), identities=DIGEST, device="cpu")
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    pixels = crops_of().requires_grad_()
    outputs = teacher(pixels)
    assert not outputs.embedding.requires_grad
    assert not outputs.logits.requires_grad
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    after = teacher.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    # What it says may be part of a loss.
    student = torch.zeros_like(outputs.logits, requires_grad=True)
    (student * outputs.logits).sum().backward()
    close(student.grad, outputs.logits)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (
            facts_of(identities=identities_digest(NAMES[::-1])),
            "trained on other identities, or in another order, so only",
        ),
        (facts_of(identities=""), "does not say which identities it was trained on, so only relations"),
        (facts_of(loss=IdentityLoss(weight=0.0)), "classifier was not trained (its loss.identity.weight is 0)"),
        (facts_of(recipe=False), "does not say by which loss its classifier was trained"),
        (
            replace(facts_of(), provenance=Provenance(recipe={"loss": {"identity": {"softness": 1}}})),
            "does not say by which loss its classifier was trained",
        ),
    ],
)
def test_without_the_same_identities_there_are_no_scores(tmp_path, facts, says):
    network = network_of()
    teacher = load_teacher(saved(tmp_path / "run", network, facts), identities=DIGEST, device="cpu")
    assert not teacher.has_logits
    assert says in teacher.note
    outputs = teacher(crops_of())
    assert outputs.logits is None
    with torch.no_grad():
        close(outputs.embedding, network(normalised(crops_of())))


def bundle_of(folder: Path, spec: ModelSpec | None, weights: bytes | None) -> Path:
    golden = Golden(np.zeros((1, 32, 16, 3), dtype=np.uint8), np.zeros((1, 128), dtype=np.float32))
    manifest = Manifest(
        name="teacher",
        task="person",
        input=INPUT,
        embedding=Embedding(128),
        batch=None,
        architecture=spec,
        licence="unknown",
        provenance=Provenance(),
    )
    return write_bundle(folder, manifest, model=b"graph", golden=golden, weights=weights).path


def test_a_bundle_teaches_embeddings(tmp_path):
    network = network_of()
    bundle = bundle_of(tmp_path / "teacher.reid", SMALL, deployed_weights(network, facts_of()))
    for path in (bundle, bundle / "weights.safetensors"):  # by itself, the file names the identities all the same
        teacher = load_teacher(path, identities=DIGEST, device="cpu")
        assert not teacher.has_logits
        assert "no classifier, so only relations can be copied" in teacher.note
        outputs = teacher(crops_of())
        assert outputs.logits is None
        with torch.no_grad():
            close(outputs.embedding, network(normalised(crops_of())))


def test_anyones_checkpoint_teaches_embeddings(tmp_path):
    save_torchreid(tmp_path / "osnet.pth", make_torchreid_osnet(np.random.default_rng(0), width=0.25))
    teacher = load_teacher(tmp_path / "osnet.pth", identities=DIGEST, device="cpu")
    assert not teacher.has_logits
    assert "somebody else does not say which identities" in teacher.note
    assert any("otherwise" in assumption for assumption in teacher.assumptions)
    assert teacher(crops_of(2, (64, 32))).embedding.shape == (2, 512)


def test_a_graph_cannot_teach(tmp_path):
    bundle = bundle_of(tmp_path / "foreign.reid", None, None)
    for path in (bundle, bundle / "model.onnx"):
        with pytest.raises(ModelError, match=r"is a graph, which cannot teach\n.*\n.*\n  to do: take the checkpoint"):
            load_teacher(path, identities=DIGEST, device="cpu")


def test_nothing_there(tmp_path):
    with pytest.raises(ModelError, match=r"No teacher at .*none\.pth\n  expected: a run.*\n  to do: check the path"):
        load_teacher(tmp_path / "none.pth", identities=DIGEST, device="cpu")
    (tmp_path / "run").mkdir()
    with pytest.raises(ModelError, match=r"run holds no teacher: model\.safetensors is missing\n.*\n.* at the end"):
        load_teacher(tmp_path / "run", identities=DIGEST, device="cpu")


def test_what_is_damaged_is_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="Cannot tell what network"):
        load_teacher(tmp_path / "other.safetensors", identities=DIGEST, device="cpu")
    bundle = bundle_of(tmp_path / "t.reid", SMALL, deployed_weights(network_of(), facts_of()))
    (bundle / "weights.safetensors").write_bytes(b"half")
    with pytest.raises(BundleError, match="is not the file that the manifest was written for"):
        load_teacher(bundle, identities=DIGEST, device="cpu")


def test_a_digest_is_of_names_and_their_order():
    assert identities_digest(["a", "b"]) == identities_digest(("a", "b"))
    others = [["b", "a"], ["ab"], ["a", "b", ""], ['a","b'], ["a"], [], ["größe"]]
    assert len({identities_digest(names) for names in [["a", "b"], *others]}) == 8
    # sha256 of the nine bytes ["a","b"], as sha256sum gives it.
    assert identities_digest(["a", "b"]) == "0473ef2dc0d324ab659d3580c1134e9d812035905c4781fdd6d529b0c6860e13"


def test_a_teacher_of_ones_own(tmp_path):
    network = network_of()
    teacher = Teacher(network.train(), INPUT, scores=None, note="by hand")
    assert not network.training
    assert teacher(crops_of()).logits is None
