import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conditions import as_installed
from reidkit.errors import InputError
from reidkit.manifest import Embedding, Manifest
from reidkit.runtime.contract import check_crops, engine_words, run_in_batches, spec_of
from reidkit.types import EmbedderSpec, InputSpec

SIZE = InputSpec(4, 2)


def spec(batch: int | None) -> EmbedderSpec:
    return EmbedderSpec(SIZE, 3, False, batch, "test", "float32", "cpu")


def numbered(n: int) -> np.ndarray:
    """Crops that are flat and tell their number."""
    return np.repeat(np.arange(n, dtype=np.uint8), 24).reshape(n, 4, 2, 3)


class Recorder:
    """Stands in for an engine: the mean colour; remembers which crops came together."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        self.calls.append(crops[:, 0, 0, 0].tolist())
        return crops.mean(axis=(1, 2)).astype(np.float32)


def test_the_spec_says_what_the_manifest_and_the_engine_say():
    manifest = Manifest("m", "person", SIZE, Embedding(3, normalized=True), batch=8, precision="float16")
    made = spec_of(manifest, runtime="openvino", device="gpu")
    assert made == EmbedderSpec(SIZE, 3, True, 8, "openvino", "float16", "gpu")


@pytest.mark.parametrize("n", [0, 1, 5])
def test_crops_that_fit(n):
    check_crops(numbered(n), spec(None))


@pytest.mark.parametrize(
    ("crops", "got"),
    [
        (numbered(2).astype(np.float32), "float32 (2, 4, 2, 3)"),
        (numbered(2).astype(np.int8), "int8 (2, 4, 2, 3)"),
        (numbered(2)[0], "uint8 (4, 2, 3)"),
        (numbered(2)[None], "uint8 (1, 2, 4, 2, 3)"),
        (numbered(2).transpose(0, 2, 1, 3), "uint8 (2, 2, 4, 3)"),
        (numbered(2).transpose(0, 3, 1, 2), "uint8 (2, 3, 4, 2)"),
        (numbered(2)[..., :1], "uint8 (2, 4, 2, 1)"),
        (np.zeros((2, 4, 2, 4), np.uint8), "uint8 (2, 4, 2, 4)"),
        (np.zeros((), np.uint8), "uint8 ()"),
    ],
)
def test_crops_that_do_not_fit(crops, got):
    text = (
        f"The crops do not fit the model\n  got: {got}\n  expected: uint8 (n, 4, 2, 3), RGB\n"
        "  to do: make crops with reidkit.imaging.load_crop"
    )
    with pytest.raises(InputError) as caught:
        check_crops(crops, spec(None))
    assert str(caught.value) == text
    run = Recorder()
    with as_installed(), pytest.raises(InputError) as caught:
        run_in_batches(crops, spec(4), run)
    assert str(caught.value) == text
    assert run.calls == []


def test_where_any_batch_will_do_all_go_at_once():
    run = Recorder()
    embeddings = run_in_batches(numbered(7), spec(None), run)
    assert run.calls == [[0, 1, 2, 3, 4, 5, 6]]
    assert embeddings[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_a_fixed_batch_is_filled_with_the_last_crop_and_cut_again():
    run = Recorder()
    embeddings = run_in_batches(numbered(10), spec(4), run)
    assert run.calls == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert embeddings.tolist() == [[i, i, i] for i in range(10)]
    assert embeddings.dtype == np.float32


@pytest.mark.parametrize("batch", [None, 4])
def test_no_crops_give_no_embeddings_and_no_call(batch):
    run = Recorder()
    embeddings = run_in_batches(numbered(0), spec(batch), run)
    assert (embeddings.shape, embeddings.dtype, run.calls) == ((0, 3), np.float32, [])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 20), batch=st.integers(1, 9))
def test_a_fixed_batch_changes_nothing(n, batch):
    run = Recorder()
    assert run_in_batches(numbered(n), spec(batch), run)[:, 0].tolist() == list(range(n))
    assert {len(call) for call in run.calls} == {batch}
    assert len(run.calls) == -(-n // batch)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            "Exception from src/core.cpp:84:\nCheck 'x' failed at src/y.cpp:2:\nIncorrect weights!\n\n",
            "Incorrect weights!",
        ),
        (
            "Exception from src/core.cpp:84:\nLoading input model\nCan not open it.",
            "Loading input model Can not open it.",
        ),
        ("[ONNXRuntimeError] : 7 : INVALID\nand a stack", "[ONNXRuntimeError] : 7 : INVALID"),
        ("\n", "RuntimeError"),
        ("Exception from src/core.cpp:84:", "RuntimeError"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_an_engines_own_message_is_cut_down_to_what_it_says(message, told):
    assert engine_words(RuntimeError(message)) == told
