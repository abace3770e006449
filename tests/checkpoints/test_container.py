"""Every file of weights opens to the same tensors; everything else is refused by its name, and nothing is ever run."""

import argparse
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from reidkit.checkpoints.container import read_container
from reidkit.errors import ModelError
from reidkit.wts import description_path, write_wts


def state_dict(prefix=""):
    generator = torch.Generator().manual_seed(0)
    return OrderedDict(
        {
            f"{prefix}backbone.conv1.weight": torch.randn(4, 3, 2, 2, generator=generator),
            f"{prefix}backbone.bn1.num_batches_tracked": torch.tensor(17),
            f"{prefix}heads.weight": torch.randn(5, 4, generator=generator),
        }
    )


def saved(path, content, *, legacy=False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def refusal(path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        read_container(path, **options)
    assert str(path) in str(caught.value)
    assert "weights_only=True" not in str(caught.value)  # torch's advice is not ours
    assert "\x1b" not in str(caught.value)
    return str(caught.value)


def assert_equal(tensors, expected):
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].is_contiguous()
        assert not tensors[name].requires_grad


# Every kind of file


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("fastreid.pth", lambda weights: {"model": weights, "optimizer": {"state": {}}, "epoch": 3, "metric": 0.5}),
        ("torchreid.pth.tar-60", lambda weights: {"state_dict": weights, "epoch": 3, "metric": 0.5, "scheduler": None}),
        ("timm.bin", lambda weights: {"state_dict_ema": weights, "state_dict": None, "epoch": 3, "metric": 0.5}),
        (
            "imagenet.ckpt",
            lambda weights: {"state_dict": weights, "best": torch.tensor(9.0), "epoch": 3, "metric": 0.5},
        ),
        ("numbers", lambda w: {"model": w, "epoch": np.int64(3), "metric": np.float64(0.5), "names": np.array(["a"])}),
    ],
)
def test_the_shapes_that_checkpoints_have(legacy, name, wrap, tmp_path):
    container = read_container(saved(tmp_path / name, wrap(state_dict()), legacy=legacy))
    assert_equal(container.tensors, state_dict())
    assert (container.kind, container.shaped, container.facts, container.notes) == ("torch", True, None, ())
    assert container.extras == {"epoch": 3, "metric": 0.5}


def test_a_flat_state_dict_of_parameters(tmp_path):
    weights = {"weight": torch.nn.Parameter(torch.ones(2, 3)), "bias": torch.zeros(2, dtype=torch.bfloat16)}
    container = read_container(saved(tmp_path / "flat.pth", weights))
    assert_equal(container.tensors, {"weight": torch.ones(2, 3), "bias": torch.zeros(2, dtype=torch.bfloat16)})
    assert container.extras == {}


def test_safetensors_and_what_reidkit_says_in_them(tmp_path):
    facts = {"architecture": {"family": "resnet"}, "task": "person"}
    save_file(state_dict(), tmp_path / "model.pth", {"reidkit": json.dumps(facts), "format": "pt"})
    container = read_container(tmp_path / "model.pth")
    assert {name: tensor.tolist() for name, tensor in container.tensors.items()} == {
        name: tensor.tolist() for name, tensor in state_dict().items()
    }
    assert (container.kind, container.shaped, container.facts) == ("safetensors", True, facts)
    assert container.extras == {"format": "pt"}


def test_wts_with_and_without_its_description(tmp_path):
    path = tmp_path / "model.bin"
    write_wts(path, {name: tensor.numpy() for name, tensor in state_dict().items()}, facts={"task": "person"})
    container = read_container(path)
    assert_equal(container.tensors, state_dict())
    assert (container.kind, container.shaped, container.facts) == ("wts", True, {"task": "person"})
    description_path(path).unlink()
    container = read_container(path)
    assert_equal(container.tensors, {name: t.reshape(-1).float() for name, t in state_dict().items()})
    assert (container.kind, container.shaped, container.facts) == ("wts", False, None)


# numpy in pickles


ARRAYS = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "big-endian": np.arange(6, dtype=">f4").reshape(3, 2),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "tracked": np.array(17),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float32),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("numpy_module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_arrays_of_numpy_of_either_version(numpy_module, legacy, tmp_path):
    path = saved(tmp_path / "x.pth", {"model": ARRAYS, "epoch": np.float32(2)}, legacy=legacy)
    rewrite(path, lambda data: data.replace(b"numpy._core.multiarray", numpy_module))
    container = read_container(path)
    assert container.extras == {"epoch": 2.0}
    assert list(container.tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(container.tensors[name].numpy(), array)
        assert container.tensors[name].numpy().dtype == array.dtype.newbyteorder("=")


def rewrite(path, change):
    """Changes the pickle in a file of torch.save, legacy or zip."""
    content = path.read_bytes()
    if not content.startswith(b"PK"):
        path.write_bytes(change(content))
        return
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)


class Raw:
    """Pickles as a call of `function`, which the unpickler looks up by name, and a state."""

    def __init__(self, function, arguments, state=None):
        self.function, self.arguments, self.state = function, arguments, state

    def __reduce__(self):
        return (self.function, self.arguments, self.state)


def array_of(state):
    return Raw(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state)


F4 = Raw(np.dtype, ("f4", False, True), (3, "<", None, None, None, -1, -1, 0))
OBJECTS_WITHOUT_FLAGS = Raw(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))
RECORDS = Raw(np.dtype, ("f4", False, True), (3, "<", None, ("a",), {"a": (np.dtype("f4"), 999)}, -1, -1, 0))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ((1, (2,), OBJECTS_WITHOUT_FLAGS, False, b"A" * 16), "a numpy array of dtype 'O8'"),
        ((1, (1,), RECORDS, False, b"A" * 4), "a numpy array of records"),
        ((1, (2**40,), F4, False, b"A" * 4), "a numpy array with other data than its shape asks for"),
        ((1, (10**400, 0), F4, False, b""), "a numpy array with other data than its shape asks for"),
        ((1, (-1, -1), F4, False, b"A" * 4), "a numpy array with other data than its shape asks for"),
        ((1, (1,), F4, False, [1.0]), "a numpy array with other data than its shape asks for"),
        ((1, (1,), "f4", False, b"A" * 4), "a numpy array without dtype"),
        ((1, (1,)), "a numpy array without content"),
        (None, "a numpy array without content"),
    ],
)
def test_arrays_that_lie_about_themselves(state, message, tmp_path):
    path = saved(tmp_path / "x.pth", {"model": {"good": torch.ones(1), "bad": array_of(state)}})
    assert f"x.pth: bad is no array of numbers\n  got: {message}" in refusal(path)


def test_arrays_of_strings_and_objects_are_no_weights(tmp_path):
    for array in (np.array(["a"]), np.array([None]), np.zeros(1, [("a", "f4")])):
        assert "bad is no array of numbers" in refusal(saved(tmp_path / "x.pth", {"bad": array}))


# Pickles that run code


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def plain_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))


WRITERS = {
    "zip": saved,
    "legacy": lambda path, content: saved(path, content, legacy=True),
    "plain pickle": plain_pickle,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", ["top", "in the weights", "beside the weights", "in a state", "as a key"])
@pytest.mark.parametrize(
    ("call", "name"),
    [(os.system, f"{os.system.__module__}.system"), (eval, "eval"), (exec, "exec")],
)
def test_a_pickle_that_would_run_code_is_refused_and_does_not(writer, place, call, name, tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "x.pth"
    trap = Trap(call, f"touch '{sprung}'" if call is os.system else f"open({str(sprung)!r}, 'w')")
    content = {
        "top": trap,
        "in the weights": {"model": {"x": trap, **state_dict()}},
        "beside the weights": {"x": trap, "model": state_dict()},
        "in a state": {"model": {"x": array_of((1, (1,), F4, False, trap)), **state_dict()}},
        "as a key": {"model": {("x", trap): 1, **state_dict()}},
    }[place]
    WRITERS[writer](path, content)
    message = refusal(path)
    assert f"x.pth holds more than weights; nothing in it was run\n  got: a pickle that calls for {name}" in message
    assert 'torch.save(checkpoint["model"], "weights.pth")' in message
    assert not sprung.exists()


@pytest.mark.parametrize("writer", WRITERS)
def test_the_trap_works_when_unpickled_without_care(writer, tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "x.pth"
    WRITERS[writer](path, {"model": Trap(os.system, f"touch '{sprung}'")})
    if writer == "plain pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert sprung.exists()


def test_pickles_of_other_protocols_run_nothing(tmp_path):
    sprung, path = tmp_path / "sprung", tmp_path / "x.pth"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"model": Trap(os.system, f"touch '{sprung}'")}, protocol))
        message = refusal(path)
        assert "nothing in it was run" in message or "holds no weights that reidkit can read" in message
    assert not sprung.exists()


def test_a_class_is_named_and_what_to_do(tmp_path):
    path = saved(tmp_path / "x.pth", {"model": state_dict(), "args": argparse.Namespace(lr=1)})
    message = refusal(path)
    assert "got: a pickle that calls for argparse.Namespace\n  expected: tensors, numbers, strings, lists" in message
    assert 'torch.load("x.pth", map_location="cpu", weights_only=False)  # runs that code' in message


def test_a_whole_module_is_refused(tmp_path):
    path = saved(tmp_path / "x.pth", torch.nn.Linear(2, 2))
    assert "got: a pickle that calls for torch.nn.modules.linear.Linear" in refusal(path)
    assert "or .state_dict() of a module" in refusal(path)


def test_what_the_process_allows_elsewhere_is_not_allowed_here_and_is_kept(tmp_path):
    path = saved(tmp_path / "x.pth", {"model": state_dict(), "args": argparse.Namespace(lr=1)})
    with torch.serialization.safe_globals([argparse.Namespace]):
        before = set(torch.serialization.get_safe_globals())
        assert "calls for argparse.Namespace" in refusal(path)
        assert set(torch.serialization.get_safe_globals()) == before
        assert torch.load(path, weights_only=True)["args"].lr == 1


# What is not a set of weights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "x.pth holds no weights\n  got: the keys none\n  expected: a state dict, or one under model, state_dict,"),
        ({"model": {}}, "x.pth holds no weights\n  got: an empty dict"),
        ({"epoch": 3, "net": {"a": torch.ones(1)}}, "x.pth holds no weights\n  got: the keys epoch, net\n"),
        ({"model": None, "lr": 1}, "x.pth holds no weights\n  got: the keys model, lr\n"),
        ([torch.ones(1)], "x.pth holds no dict of weights\n  got: list\n  expected: a state dict"),
        (torch.ones(1), "x.pth holds no dict of weights\n  got: Tensor"),
        (
            {"state_dict": state_dict(), "state_dict_ema": state_dict(), "epoch": 1},
            "x.pth holds 2 sets of weights: state_dict, state_dict_ema\n"
            "  got: the keys state_dict, state_dict_ema, epoch\n  expected: one set\n"
            "  to do: say which one: --key state_dict",
        ),
        ({"a": torch.ones(1), "epoch": 3}, "x.pth: epoch, among the weights, is no tensor\n  got: int 3"),
        ({"model": {"a": None}}, "x.pth: a, among the weights, is no tensor\n  got: a NoneType"),
        ({"model": {"a": [torch.ones(1)]}}, "x.pth: a, among the weights, is no tensor\n  got: a list"),
        (
            {"model": {"state_dict": state_dict()}},
            "x.pth: state_dict, among the weights, is no tensor\n  got: a OrderedDict",
        ),
        ({"model": {3: torch.ones(1)}}, "x.pth: a name among the weights is no string\n  got: int 3"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a is a tensor that weights cannot be\n  got: torch.complex64\n"),
        (
            {"a": torch.ones(2).to(torch.float8_e4m3fn)},
            "a is a tensor that weights cannot be\n  got: torch.float8_e4m3fn",
        ),
        (
            {"a": torch.eye(2).to_sparse()},
            "a is a tensor that weights cannot be\n  got: sparse\n  expected: dense real",
        ),
        ({"a": torch.ones(2, device="meta")}, "a is a tensor that weights cannot be\n  got: without data"),
        (
            {"a": torch.ones(1).expand(10**6, 10**6)},
            "x.pth: a unpacks to far more than the file holds\n  got: (1000000, 10",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_set_of_weights_is_refused(content, message, tmp_path):
    assert message in refusal(saved(tmp_path / "x.pth", content))


@pytest.mark.filterwarnings("ignore")  # torch is about to drop them
def test_a_quantised_tensor_is_refused(tmp_path):
    weights = {"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}
    assert "a is a tensor that weights cannot be\n  got: quantised" in refusal(saved(tmp_path / "x.pth", weights))


def test_a_deeply_nested_value_is_refused_by_its_type(tmp_path):
    depth = 200_000
    opening = b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00a"
    payload = opening + b"]" * depth + b"a" * (depth - 1) + b"ss."
    path = saved(tmp_path / "x.pth", {})
    rewrite(path, lambda _: payload)
    assert "a, among the weights, is no tensor\n  got: a list" in refusal(path)


def test_one_of_two_sets_is_chosen_by_its_key(tmp_path):
    path = saved(tmp_path / "x.pth", {"state_dict": {"a": torch.ones(1)}, "net": {"b": torch.ones(2)}, "epoch": 1})
    assert list(read_container(path).tensors) == ["a"]
    container = read_container(path, key="net")
    assert list(container.tensors) == ["b"]
    assert container.extras == {"epoch": 1}
    assert "x.pth has no weights under 'nets'\n  got: the keys state_dict, net, epoch" in refusal(path, key="nets")
    save_file(state_dict(), tmp_path / "y")
    assert "y has no keys to choose from\n  got: a safetensors file and key='model'" in refusal(
        tmp_path / "y", key="model"
    )


def test_views_get_memory_of_their_own(tmp_path):
    whole = torch.arange(1000.0)
    path = saved(tmp_path / "x.pth", {"a": whole[:4], "b": whole[:4].reshape(2, 2).T, "tied": whole})
    tensors = read_container(path).tensors
    assert [tensors[name].untyped_storage().nbytes() for name in "ab"] == [16, 16]
    tensors["a"].zero_()
    assert tensors["b"].tolist() == [[0, 2], [1, 3]]
    assert torch.equal(tensors["tied"], whole)


def test_the_prefix_goes_when_every_name_has_it_and_only_once(tmp_path):
    container = read_container(saved(tmp_path / "x.pth", {"model": state_dict("module.module.")}))
    assert_equal(container.tensors, state_dict("module."))
    assert container.notes == ("the prefix 'module.' was taken off all 3 names",)
    mixed = {**state_dict("module."), "extra": torch.ones(1)}
    assert "y.pth: 3 of 4 names begin with module.\n  got: without it: extra\n" in refusal(
        saved(tmp_path / "y.pth", mixed)
    )


# What is not a file of weights


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_anywhere_it_is_refused(legacy, tmp_path):
    whole = saved(tmp_path / "whole.pth", {"model": state_dict()}, legacy=legacy).read_bytes()
    for length in range(4, len(whole) - 1, max(1, len(whole) // 97)):
        (tmp_path / "x.pth").write_bytes(whole[:length])
        assert "x.pth is truncated or damaged" in refusal(tmp_path / "x.pth")


def test_a_truncated_safetensors_file(tmp_path):
    save_file(state_dict(), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for length in range(9, len(whole), 7):
        (tmp_path / "x").write_bytes(whole[:length])
        assert "x is truncated or damaged" in refusal(tmp_path / "x")


def test_a_flipped_bit_in_the_weights(tmp_path):
    path = saved(tmp_path / "x.pth", {"model": {"a": torch.full((64,), 1.5)}})
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<f", 1.5) * 8)] ^= 1
    path.write_bytes(content)
    assert "x.pth is truncated or damaged" in refusal(path)


def test_weights_saved_without_checksums_are_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "x.pth", {"model": state_dict()})
    finally:
        torch.serialization.set_crc32_options(before)
    assert_equal(read_container(path).tensors, state_dict())


def tar_of_nothing() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.pth is empty\n  expected: a file of weights\n  to do: copy or download the file again, whole"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
            "x.pth holds no weights that reidkit can read\n"
            "  got: a git-lfs pointer, not the file it points to, 63 bytes\n"
            "  expected: a file of torch.save, safetensors or .wts\n  to do: run `git lfs pull` where it came from",
        ),
        (b"\n<!DOCTYPE html><html>", "got: an HTML page, perhaps of a login or a warning"),
        (b"\xef\xbb\xbf<HTML><body>", "got: an HTML page"),
        (b'{"error": "not found"}', "got: a JSON document"),
        (b"<?xml version='1.0'?>", "got: an XML document"),
        (
            b"\x1f\x8b\x08\x00",
            "got: a gzip archive, 4 bytes\n  expected: a file of torch.save, safetensors or .wts\n  to do: unpack",
        ),
        (tar_of_nothing(), "got: a tar archive"),
        (b"\x93NUMPY\x01\x00", "got: a numpy array"),
        (b"\x89HDF\r\n\x1a\n", "got: an HDF5 file"),
        (
            b"\x08\x0a\x12\x07pytorch\x1a\x052.0.0",
            "got: an ONNX graph, 18 bytes\n  expected: a file of torch.save, safetensors or .wts",
        ),
        (b"MODEL:\n  WEIGHTS: x\n", "got: a text that starts b'MODEL:\\n  WEIGHTS: x\\n'"),
        (b"cos\nsystem\n(S'touch x'\ntR.", 'got: a text that starts b"cos\\nsystem'),
        (b"\x00\x01\x02", "got: a file that starts b'\\x00\\x01\\x02'"),
        (b"\x80\x02}.", "x.pth is a pickle that torch.save did not write; nothing in it was run"),
        (b"1\nbackbone.conv1.weight 4 0000", "x.pth, line 2: (backbone.conv1.weight) says 4 values"),
    ],
    ids=lambda value: repr(value[:16]),
)
def test_other_files_are_refused_by_what_they_are(content, message, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    assert message in refusal(path)


def test_an_onnx_graph_is_sent_to_import(tmp_path):
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
    onnx.save(model, tmp_path / "x.onnx")
    assert "got: an ONNX graph" in refusal(tmp_path / "x.onnx")
    assert "to do: rename it to x.onnx: then `reid import` takes it as a graph" in refusal(tmp_path / "x.onnx")


def test_a_missing_file_and_a_folder(tmp_path):
    assert "No such file: " in refusal(tmp_path / "none.pth")
    assert "  got: a folder" in refusal(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt")
    assert (
        "x.pt is a TorchScript archive\n  expected: a state dict\n  to do: if you trust who made it: torch.sa"
        in message
    )


def test_a_zip_of_something_else(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(1), b=np.ones(1))
    message = refusal(tmp_path / "x.npz")
    assert "x.npz is a zip that torch.save did not write\n  got: a zip of a.npy, b.npy\n  expected: data.pkl" in message


def test_a_zip_bomb_is_refused_before_it_is_opened(tmp_path):
    path = saved(tmp_path / "x.pth", {"model": {"a": torch.zeros(1_000_000)}})
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            kind = zipfile.ZIP_DEFLATED if entry.filename.endswith("/0") else zipfile.ZIP_STORED
            new.writestr(entry.filename, old.read(entry), kind)
    assert path.stat().st_size < 10_000
    assert len(torch.load(path, weights_only=True)["model"]["a"]) == 1_000_000  # torch itself unpacks it
    assert "x.pth unpacks to more than it holds\n  got: a zip with " in refusal(path)
    assert "/data/0 compressed\n  expected: entries that are stored as they are" in refusal(path)


def test_a_zip_whose_entries_overlap_is_refused(tmp_path):
    path = saved(tmp_path / "x.pth", {"model": {"a": torch.zeros(1000), "b": torch.zeros(1000)}})
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first, second = (archive.getinfo(f"x/data/{index}") for index in range(2))
    directory = content.index(b"PK\x01\x02")
    tail = bytearray(content[directory:])
    at = tail.index(b"x/data/1") - 46
    assert struct.unpack_from("<I", tail, at + 42)[0] == second.header_offset
    for field in (20, 24):  # both sizes: it now claims what follows, too
        struct.pack_into("<I", tail, at + field, first.file_size + 5000)
    path.write_bytes(content[:directory] + tail)
    assert "x.pth unpacks to more than it holds\n  got: a zip whose entries overlap" in refusal(path)


def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path):
    path = saved(tmp_path / "x.pth", {"model": {"a": torch.arange(8.0)}})
    rewrite(path, lambda data: data.replace(b"K\x08", b"M\xd0\x07"))
    assert "x.pth is truncated or damaged\n  got: RuntimeError" in refusal(path)


def test_a_view_beyond_its_storage_is_refused(tmp_path):
    path = saved(tmp_path / "x.pth", {"model": {"a": torch.arange(8.0)}})
    rewrite(path, lambda data: data.replace(b"K\x00K\x08", b"K\x07K\x08"))
    assert "x.pth is truncated or damaged\n  got: RuntimeError" in refusal(path)


def test_metadata_that_are_not_reidkits(tmp_path):
    save_file(state_dict(), tmp_path / "x", {"reidkit": "[1]"})
    assert "x: its metadata are not reidkit's\n  got: list\n  expected: an object" in refusal(tmp_path / "x")
    save_file(state_dict(), tmp_path / "x", {"reidkit": "{"})
    assert "x is truncated or damaged" in refusal(tmp_path / "x")


def test_reading_prints_nothing(tmp_path, capfd):
    read_container(saved(tmp_path / "x.pth", {"model": state_dict()}, legacy=True))
    assert capfd.readouterr() == ("", "")


def test_a_safetensors_file_whose_length_begins_as_a_pickle_does(tmp_path):
    path, name = tmp_path / "model.safetensors", "w"
    while not path.exists() or path.read_bytes()[:1] != b"\x80":
        name += "w" * 8
        save_file({name: torch.zeros(2)}, path)
    assert read_container(path).kind == "safetensors"
