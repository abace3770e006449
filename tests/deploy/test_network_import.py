"""From named weights to a bundle without torch, held against what PyTorch makes of the same weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from known_networks import distance, draw_model
from reidkit import load
from reidkit.architecture import HeadSpec, ModelSpec, OSNetSpec, TimmSpec
from reidkit.bundle import file_sha256, open_bundle
from reidkit.checkpoints.loading import load_foreign
from reidkit.cli import main
from reidkit.deploy import network_import
from reidkit.deploy.network_import import import_network
from reidkit.errors import BundleError, ConfigError, ModelError, OutputError
from reidkit.export.weights_file import export_weights
from reidkit.manifest import Provenance
from reidkit.models.checkpoint import CheckpointFacts, load_checkpoint, save_checkpoint
from reidkit.models.cost import model_cost
from reidkit.models.model import DeployedModel
from reidkit.types import InputSpec
from reidkit.wts import read_wts, write_wts
from test_light import run_without

SPEC = ModelSpec(
    OSNetSpec(width=0.25, variant="ibn"), HeadSpec(pooling="gem", gem_learned=True, embedding_dim=24, relu=True)
)
INPUT = InputSpec(64, 32, color="bgr")
FACTS = CheckpointFacts(SPEC, INPUT, "vehicle", Provenance(dataset="cars", framework="torch 2.9"))
SIZE = ("input.height=64", "input.width=32")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of `reid train`, with its classifier, as safetensors and as `.wts`."""
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder / "model.safetensors", draw_model(SPEC, identities=3), FACTS)
    export_weights(folder, folder / "net.wts")
    return folder


@pytest.fixture
def bare(run_folder, tmp_path):
    """The same `.wts` with nothing beside it: flat values, as of another project."""
    file = tmp_path / "bare.wts"
    file.write_bytes((run_folder / "net.wts").read_bytes())
    return file


def pytorch(file, crops, input_=INPUT):
    model, _ = load_checkpoint(file)
    with torch.inference_mode():
        return DeployedModel(model, input_).eval()(torch.from_numpy(crops)).numpy()


@pytest.mark.parametrize("name", ["net.wts", "model.safetensors"])
def test_a_file_that_says_what_it_is_becomes_a_bundle_for_every_engine(run_folder, tmp_path, name):
    steps = []
    bundle = import_network(
        run_folder / name, tmp_path / "x.reid", licence="permissive", progress=lambda *step: steps.append(step)
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    manifest, golden = bundle.manifest, bundle.golden()
    assert (manifest.architecture, manifest.input, manifest.task) == (SPEC, INPUT, "vehicle")
    assert (manifest.name, manifest.licence, manifest.batch) == ("x", "permissive", None)
    assert manifest.cost == model_cost(SPEC, (64, 32))
    assert manifest.provenance.framework == f"numpy {np.__version__}, float64"
    assert manifest.provenance.dataset == "cars"
    assert manifest.provenance.source_sha256 == file_sha256(run_folder / name)
    assert manifest.provenance.assumptions == ()
    truth = pytorch(run_folder / "model.safetensors", golden.crops)
    assert distance(golden.embeddings, truth) < 5e-6
    for engine in ("onnxruntime", "pytorch"):
        assert distance(load(bundle, engine).embed(golden.crops), golden.embeddings) < 2e-5
    weights = load_file(bundle.path / "weights.safetensors")
    theirs = load_file(run_folder / "model.safetensors")
    assert set(weights) == set(theirs) - {"heads.weight"}
    for tensor, values in weights.items():
        assert values.dtype == theirs[tensor].dtype
        np.testing.assert_array_equal(values, theirs[tensor])
    # The bundle's weights are themselves a checkpoint, as those of `reid export` are.
    assert load_checkpoint(bundle.path / "weights.safetensors")[1] == replace(FACTS, provenance=manifest.provenance)


def test_flat_values_with_an_architecture_become_the_same_bundle(run_folder, bare, tmp_path):
    changes = (*SIZE, "input.color=bgr", "head.pooling=gem")
    bundle = import_network(bare, tmp_path / "x.reid", spec=SPEC, overrides=changes)
    golden = bundle.golden()
    assert distance(golden.embeddings, pytorch(run_folder / "model.safetensors", golden.crops)) < 5e-6
    assert load(bundle, "pytorch").embed(golden.crops[:1]).shape == (1, 24)
    provenance = bundle.manifest.provenance
    assert provenance.dialect == "canonical names"
    assert provenance.assumptions[0].startswith("named by hand: OSNet-IBN x0.25; learned GeM")
    assert provenance.assumptions[1] == f"set by hand: {', '.join(changes)}"
    assert any("bicubic filter, as in fast-reid (otherwise: --resize" in text for text in provenance.assumptions)
    assert any("ImageNet's mean" in text for text in provenance.assumptions)
    assert not any("order RGB" in text for text in provenance.assumptions)  # since it was stated
    assert provenance.assumptions[-1] == "it tells persons apart (otherwise: --task vehicle)"


def test_the_files_own_normalisation_is_taken(run_folder, tmp_path):
    tensors = read_wts(run_folder / "net.wts").tensors
    tensors |= {
        "pixel_mean": np.array([123.675, 116.28, 103.53], np.float32),
        "pixel_std": np.array([58.395, 57.12, 57.375], np.float32),
    }
    write_wts(tmp_path / "old.wts", tensors)
    bundle = import_network(tmp_path / "old.wts", tmp_path / "x.reid", spec=SPEC, overrides=SIZE)
    assert bundle.manifest.input == InputSpec(
        64, 32, scale=1.0, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    )
    assert not any("ImageNet" in text for text in bundle.manifest.provenance.assumptions)


@pytest.mark.parametrize(
    ("changes", "spec", "error", "message"),
    [
        (SIZE, None, ModelError, r"bare\.wts does not say which network it holds\n.*\n  to do: .*--architecture"),
        (
            (),
            SPEC,
            ConfigError,
            r"bare\.wts does not say how large its crops are\n  got: no input\.height, input\.width",
        ),
        (("input.height=64",), SPEC, ConfigError, r"got: no input\.width\n  to do: say --size"),
        (SIZE, ModelSpec(), ModelError, r"do not fit the architecture\n  got: .* missing: (?s:.*)'reidkit\[train\]'"),
        ((*SIZE, "backbone.width=0.5"), SPEC, ModelError, r"do not fit the architecture\n  got: \d+ of another shape"),
        ((*SIZE, "backbone.depht=5"), SPEC, ConfigError, "Unknown key 'backbone.depht'"),
        ((*SIZE, "input=3"), SPEC, ConfigError, "input is a value, not a table|input is a table"),
        (
            (*SIZE, "input.mean=[127, 127, 127]"),
            SPEC,
            ConfigError,
            r"The mean are of pixels from 0 to 255, and the scale",
        ),
        (
            SIZE,
            ModelSpec(TimmSpec(name="convnext_tiny"), HeadSpec(pooling="own")),
            ModelError,
            "There is no description of timm's convnext_tiny",
        ),
    ],
)
def test_what_a_user_may_get_wrong(bare, changes, spec, error, message):
    with pytest.raises(error, match=message):
        import_network(bare, bare.parent / "x.reid", spec=spec, overrides=changes)
    assert not (bare.parent / "x.reid").exists()


def test_places_and_files_that_cannot_be(run_folder, bare, tmp_path):
    with pytest.raises(BundleError, match=r"must end in \.reid"):
        import_network(bare, tmp_path / "x", spec=SPEC)
    (tmp_path / "x.reid").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        import_network(bare, tmp_path / "x.reid", spec=SPEC)
    with pytest.raises(ModelError, match=r"x\.pth cannot be read without torch\n  got: \.pth"):
        import_network(tmp_path / "x.pth", tmp_path / "y.reid", spec=SPEC)
    with pytest.raises(ConfigError, match=r"tells apart another thing\n  got: person\n  expected: vehicle"):
        import_network(run_folder / "net.wts", tmp_path / "y.reid", task="person")
    tensors = load_file(run_folder / "model.safetensors")
    for metadata, message in (({"reidkit": "{"}, "describes itself in no JSON"), ({"reidkit": "{}"}, "does not know")):
        save_file(tensors, tmp_path / "odd.safetensors", metadata)
        with pytest.raises(ModelError, match=rf"odd\.safetensors .*{message}"):
            import_network(tmp_path / "odd.safetensors", tmp_path / "y.reid")


def test_nothing_is_written_where_the_graph_disagrees(run_folder, tmp_path, monkeypatch):
    def another(spec, input_, tensors, **rest):
        name = "heads.bottleneck.1.running_mean"
        return graph(spec, input_, tensors | {name: tensors[name] + 0.01}, **rest)

    graph = network_import.onnx_network
    monkeypatch.setattr(network_import, "onnx_network", another)
    with pytest.raises(ModelError, match=r"The graph of .*net\.wts does not give what its weights give in float64"):
        import_network(run_folder / "net.wts", tmp_path / "x.reid")
    assert not (tmp_path / "x.reid").exists()


def test_values_that_leave_float32_are_refused(run_folder, tmp_path):
    tensors = load_file(run_folder / "model.safetensors")
    for name in ("heads.bottleneck.0.weight", "heads.bottleneck.1.weight"):
        tensors[name] = np.full_like(tensors[name], 1e38)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"x\.safetensors gives NaN or infinite embeddings"):
        import_network(tmp_path / "x.safetensors", tmp_path / "x.reid", spec=SPEC, input_=INPUT)


def test_a_process_without_torch_makes_the_bundle(run_folder, tmp_path):
    code = (
        "import sys\nfrom reidkit.cli import main\n"
        f"print(main(['import', {str(run_folder / 'net.wts')!r}, '--out', {str(tmp_path / 'x.reid')!r}]))\n"
        "print('torch' in sys.modules)"
    )
    result = run_without({"torch"}, code)
    assert result.stdout.splitlines()[-2:] == ["0", "False"], result.stderr
    assert "torch is not installed: weights are taken under fast-reid's names" in result.stderr
    golden = open_bundle(tmp_path / "x.reid").golden()
    assert distance(golden.embeddings, pytorch(run_folder / "model.safetensors", golden.crops)) < 5e-6


def test_without_torch_another_format_names_the_extra(tmp_path):
    code = f"from reidkit.cli import main\nprint(main(['import', 'x.pth', '--out', {str(tmp_path / 'x.reid')!r}]))"
    result = run_without({"torch"}, code)
    assert result.stdout == "2\n"
    assert "error: torch is not installed\n  to do: pip install 'reidkit[train]'\n" in result.stderr


def test_the_command_takes_weights_as_they_are(run_folder, bare, tmp_path, capsys):
    out = str(tmp_path / "x.reid")
    sets = [
        word
        for name in ("pooling=gem", "gem_learned=true", "embedding_dim=24", "embedding_bias=false")
        for word in ("--set", f"head.{name}")
    ]
    words = ["import", str(bare), "--no-torch", "--out", out, "--architecture", "osnet-ibn-x0.25", "--size", "64x32"]
    assert main([*words, *sets, "--color", "bgr"]) == 0
    printed = capsys.readouterr().out
    assert "note: named by hand: OSNet-IBN x0.25; learned GeM (from 3), 24-d layer, BNneck, ReLU" in printed
    assert f"wrote {out}" in printed.replace("\n", "")
    golden, manifest = open_bundle(out).golden(), open_bundle(out).manifest
    assert distance(golden.embeddings, pytorch(run_folder / "model.safetensors", golden.crops)) < 5e-6
    overrides = ["input.height=64", "input.width=32", "input.color=bgr", *sets[1::2]]
    loaded = load_foreign(bare, architecture="osnet-ibn-x0.25", overrides=overrides, allow_unexpected=["heads.weight"])
    assert manifest.input == loaded.input  # with torch it sees the same: nobody would notice another filter
    assert manifest.input.resize == "bicubic"
    assert manifest.architecture == loaded.spec


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("bare.wts", ["--dialect", "fastreid"], "--dialect says nothing about weights that are taken as they are"),
        ("bare.wts", ["--allow-missing", "x"], "--allow-missing says nothing about weights that are taken as they are"),
        ("bare.wts", ["--architecture", "osnet-ibm-x0.25"], "Unknown model 'osnet-ibm-x0.25'"),
        ("bare.wts", [], "does not say which network it holds"),
        ("bare.pth", [], "bare.pth cannot be read without torch"),
        ("bare.onnx", [], "--no-torch says nothing about an ONNX graph"),
    ],
)
def test_what_the_command_refuses(bare, capsys, file, options, message):
    words = ["import", str(bare.with_name(file)), "--no-torch", "--out", str(bare.with_name("x.reid")), *options]
    assert main(words) == 2
    assert message in capsys.readouterr().err
