"""Shape and type checks on every annotated function of reidkit, and what several rooms need to test with."""

import os
import random
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from jaxtyping import install_import_hook

# Before the first import of reidkit: from here on a wrong shape or type in any call is an error.
install_import_hook("reidkit", "beartype.beartype")

# A failure comes again when the tests are run again. HYPOTHESIS_PROFILE=default looks for cases not tried before.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def _draw_anew(name: str, node: pytest.Item | pytest.Collector) -> None:
    """All that draws begins where `name` says: also the generators which the node's module holds, each elsewhere."""

    def seed_of(name: str) -> int:
        return zlib.crc32(name.encode())

    seed = seed_of(name)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for the libraries that draw from it
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
    module = node.getparent(pytest.Module)
    for key, value in vars(module.module).items() if module else ():
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = type(value.bit_generator)(seed_of(f"{name} {key}")).state


# What a fixture or a test draws does not depend on what ran before it in this process. Generators of helpers would not
# begin anew: let tests hold them.
@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> None:
    _draw_anew(fixturedef.argname, request.node)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _draw_anew(item.nodeid, item)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_works():
    """Whoever starts the tests in the background may have Ctrl-C ignored, which a run and its children respect."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in, or taken from, the folder of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REIDKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def plain_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's processor computes in float32 and integers alone, as many do; newer ones know 16 bits too."""
    from played_processor import PlayedProcessor

    monkeypatch.setattr("reidkit.runtime.openvino.CORE", PlayedProcessor("FP32", "INT8"))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 IBN-a with random weights and statistics, 32 x 16 input, exported: `tiny.reid`. Do not change it."""
    import torch

    from reidkit.architecture import ModelSpec
    from reidkit.export.torch_export import export_model
    from reidkit.manifest import Provenance
    from reidkit.models.checkpoint import CheckpointFacts
    from reidkit.models.model import EmbeddingModel
    from reidkit.types import InputSpec

    torch.manual_seed(0)
    model = EmbeddingModel(ModelSpec()).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    facts = CheckpointFacts(model.spec, InputSpec(32, 16), "person", Provenance())
    out = tmp_path_factory.mktemp("bundles") / "tiny.reid"
    return export_model(model, facts, out, name="tiny").path


@pytest.fixture
def graphs_by_layers() -> Iterator[None]:
    """For tests of what stands around an export: it takes no time. Both writers of graphs have tests of their own."""
    from quick_networks import graphs_by_layers

    with graphs_by_layers():
        yield
