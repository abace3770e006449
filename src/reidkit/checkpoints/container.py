"""Any file of weights, opened to named tensors: torch.save's (zip or legacy), safetensors, `.wts`; known by content.

Nothing in the file is ever run: torch's own restricted unpickler does the reading, and what is allowed beyond it are
numpy's arrays and numbers (`pickled_numpy`).
"""

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors import safe_open

from reidkit.checkpoints.pickled_numpy import PickledArray, allow_numpy
from reidkit.checkpoints.reading import some
from reidkit.errors import ModelError
from reidkit.wts import read_wts

Kind = Literal["torch", "safetensors", "wts"]

# Where the frameworks of the field put the weights among epoch, optimizer and the like.
WEIGHTS_KEYS = ("model", "state_dict", "state_dict_ema", "model_ema")

_PREFIX = "module."
_METADATA = "reidkit"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = (*_FLOATS, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool)
_COPY_AGAIN = "copy or download the file again, whole"
_LARGEST_HEADER = 100_000_000  # of safetensors, by its own rule


@dataclass(frozen=True, slots=True)
class Container:
    """What a file of weights holds.

    Attributes:
        tensors: by name, in the file's order; contiguous, each with memory of its own, in the dtypes of the file.
        kind: what the file is.
        shaped: False for a `.wts` without the JSON beside it: every tensor is flat.
        facts: what reidkit wrote about the weights; None where it wrote nothing.
        extras: the numbers and strings that stand beside the weights (epoch, metric, ...).
        notes: what was done to the names, one sentence each.
    """

    tensors: dict[str, torch.Tensor]
    kind: Kind
    shaped: bool
    facts: Mapping[str, Any] | None
    extras: Mapping[str, Any]
    notes: tuple[str, ...]


def read_container(path: Path | str, *, key: str | None = None) -> Container:
    """Opens any file of weights; its content says what it is, whatever its name.

    A prefix `module.`, which torch's DataParallel leaves, is taken off when every name has it, and noted.

    Args:
        path: of the file.
        key: where in a torch file the weights are, when `WEIGHTS_KEYS` do not say it or more than one of them is there.

    Raises:
        ModelError: no such file; truncated, or something else, and what; a pickle that names anything but plain
            tensors and numbers; no weights or more than one set of them; a value among the weights that is no dense
            tensor of real numbers; or a prefix that some names have and others do not.
    """
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else None
        raise ModelError(f"No such file: {path}", got=got, expected="a file of weights", fix="check the path")
    try:
        with path.open("rb") as stream:
            kind = _kind(path, stream.read(1024), path.stat().st_size)
            container = _read_torch(path, stream, key) if kind == "torch" else None
    except OSError as error:
        raise ModelError(f"{path} cannot be read", got=error, fix="check the file and who may read it") from error
    if container is None:
        if key is not None:
            raise ModelError(f"{path} has no keys to choose from", got=f"a {kind} file and key={key!r}")
        container = _read_safetensors(path) if kind == "safetensors" else _read_wts(path)
    return _without_prefix(path, container)


# What a file is


def _kind(path: Path, head: bytes, size: int) -> Kind:
    if not head:
        raise ModelError(f"{path} is empty", expected="a file of weights", fix=_COPY_AGAIN)
    # Before pickle: the length of the header that a safetensors file begins with may begin with pickle's first byte.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return "torch"
    if re.match(rb"\s*[0-9]+\s*(\n|$)", head):
        return "wts"
    what, fix = _foreign(path, head)
    raise ModelError(
        f"{path} holds no weights that reidkit can read",
        got=f"{what}, {size:,} bytes",
        expected="a file of torch.save, safetensors or .wts",
        fix=fix,
    )


def _foreign(path: Path, head: bytes) -> tuple[str, str]:
    """What else a file may be, and what to do about it."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file it points to", "run `git lfs pull` where it came from"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script")):
        return (
            "an HTML page, perhaps of a login or a warning",
            "open the link in a browser and download the file itself",
        )
    # A protobuf whose first field is a small number (ir_version), followed by another field of ModelProto.
    if head[0] == 0x08 and len(head) > 2 and head[1] < 0x40 and head[2] in b"\x12\x1a\x22\x28\x32\x3a\x42":
        return "an ONNX graph", f"rename it to {path.stem}.onnx: then `reid import` takes it as a graph"
    known = {
        b"\x1f\x8b": "a gzip archive",
        b"BZh": "a bzip2 archive",
        b"\xfd7zXZ": "an xz archive",
        b"7z\xbc\xaf": "a 7-Zip archive",
        b"Rar!": "a RAR archive",
        b"\x89HDF": "an HDF5 file, perhaps of Keras",
        b"\x93NUMPY": "a numpy array",
        b"<?xml": "an XML document, perhaps of OpenVINO or an error page",
        b"{": "a JSON document",
    }
    for magic, what in known.items():
        if head.startswith(magic):
            return what, "unpack it first" if what.endswith("archive") else _COPY_AGAIN
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it; one that torch before 0.1.10 wrote has to be saved again with a newer torch"
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in head):
        return f"a text that starts {head[:40]!r}", _COPY_AGAIN
    return f"a file that starts {head[:8]!r}", _COPY_AGAIN


# torch.save's files


def _read_torch(path: Path, stream: BinaryIO, key: str | None) -> Container:
    stream.seek(0)
    if stream.read(4) == b"PK\x03\x04":
        _check_zip(path, stream)
    stream.seek(0)
    try:
        with allow_numpy(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on protocols and storage classes: nothing a user could act on
            whole = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle makes torch raise almost anything
        raise _refusal(path, error, ended=not stream.read(1)) from error
    weights, extras = _weights(path, whole, key)
    return Container(_tensors(path, weights), "torch", True, None, extras, ())


def _check_zip(path: Path, stream: BinaryIO) -> None:
    """Refuses a zip that is cut short or damaged, is of another program, or unpacks to more than the file has."""
    try:
        with zipfile.ZipFile(stream) as archive:
            _check_entries(path, archive.infolist())
            for entry in archive.infolist():
                # torch itself does not compare checksums when it reads; told to write none, it writes 0.
                if entry.CRC:
                    with archive.open(entry) as content:
                        while content.read(1 << 20):
                            pass
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        got = f"a zip: {error}"
        raise ModelError(
            f"{path} is truncated or damaged", got=got, expected="a file of torch.save", fix=_COPY_AGAIN
        ) from error


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise ModelError(
            f"{path} is a TorchScript archive",
            expected="a state dict",
            fix="if you trust who made it: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
        )
    if "data.pkl" not in names:
        got = f"a zip of {some((entry.filename for entry in entries), 4) or 'nothing'}"
        raise ModelError(f"{path} is a zip that torch.save did not write", got=got, expected="data.pkl")
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ModelError(
            f"{path} unpacks to more than it holds",
            got=f"a zip with {some(packed, 4)} compressed" if packed else "a zip whose entries overlap",
            expected="entries that are stored as they are, which is how torch.save writes them",
            fix="get the file from where it was first published",
        )


def _refusal(path: Path, error: Exception, *, ended: bool) -> ModelError:
    """The error for what torch could not read; `ended` when the file ended there, maybe within a name."""
    text = str(error)
    if not ended and (found := re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", text)):
        return ModelError(
            f"{path} holds more than weights; nothing in it was run",
            got=f"a pickle that calls for {found[1]}",
            expected="tensors, numbers, strings, lists and dicts",
            fix="if you trust who made it, save its weights alone, with the code installed that it came from:\n"
            f'    checkpoint = torch.load("{path.name}", map_location="cpu", weights_only=False)  # runs that code\n'
            '    torch.save(checkpoint["model"], "weights.pth")  # or ["state_dict"]; or .state_dict() of a module',
        )
    if "Invalid magic number" in text or "Unsupported operand" in text:
        return ModelError(
            f"{path} is a pickle that torch.save did not write; nothing in it was run",
            expected="a file of torch.save in its usual protocol",
            fix="if you trust who made it, read it in Python and write the weights with torch.save(weights, FILE)",
        )
    # torch wraps the cause into advice to run the file.
    cause = text.rpartition("WeightsUnpickler error: ")[2].partition("\n\nCheck the documentation")[0].strip()
    got = f"{type(error).__name__}: {cause.splitlines()[0]}" if cause else type(error).__name__
    return ModelError(f"{path} is truncated or damaged", got=got, expected="a file of torch.save", fix=_COPY_AGAIN)


def _weights(path: Path, whole: Any, key: str | None) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The one dict of weights in a checkpoint, and the plain values beside it."""
    if not isinstance(whole, dict):
        raise ModelError(f"{path} holds no dict of weights", got=type(whole).__name__, expected="a state dict")
    entries = dict(dict.items(whole))  # whatever the pickle hung on an OrderedDict
    keys = some([_shown(name) for name in entries], 12) or "none"
    if key is not None:
        if not isinstance(entries.get(key), dict):
            raise ModelError(
                f"{path} has no weights under {key!r}", got=f"the keys {keys}", expected="a dict of tensors"
            )
        found = [key]
    else:
        found = [name for name in WEIGHTS_KEYS if isinstance(entries.get(name), dict)]
    if len(found) > 1:
        raise ModelError(
            f"{path} holds {len(found)} sets of weights: {', '.join(found)}",
            got=f"the keys {keys}",
            expected="one set",
            fix=f"say which one: --key {found[0]}",
        )
    if not found and any(isinstance(value, (torch.Tensor, PickledArray)) for value in entries.values()):
        return entries, {}
    if not found:
        expected = f"a state dict, or one under {', '.join(WEIGHTS_KEYS)}"
        nested = any(isinstance(value, dict) for value in entries.values())
        fix = "where they are under another name, say --key NAME" if nested else None
        raise ModelError(f"{path} holds no weights", got=f"the keys {keys}", expected=expected, fix=fix)
    weights = entries.pop(found[0])
    extras = {name: value for name, value in entries.items() if isinstance(name, str) and _is_short(value)}
    return dict(dict.items(weights)), extras


def _is_short(value: Any) -> bool:
    return _is_plain(value) and not (isinstance(value, str) and len(value) > 80)


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _tensors(path: Path, weights: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Contiguous copies of the weights; refused where one is no dense tensor of real numbers on the processor."""
    if not weights:
        raise ModelError(f"{path} holds no weights", got="an empty dict", expected="named tensors")
    # Views may repeat a few bytes into any size; weights that are shared among a few names are honest.
    left = 8 * max(path.stat().st_size, 1 << 20)
    tensors: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ModelError(f"{path}: a name among the weights is no string", got=_shown(name))
        tensor = _plain_tensor(path, name, value)
        left -= torch.numel(tensor) * tensor.element_size()
        if left < 0:
            raise ModelError(f"{path}: {name} unpacks to far more than the file holds", got=tuple(tensor.shape))
        tensors[name] = torch.clone(tensor, memory_format=torch.contiguous_format)
    return tensors


def _plain_tensor(path: Path, name: str, value: Any) -> torch.Tensor:
    if isinstance(value, PickledArray):
        try:
            value = torch.from_numpy(value.array())
        except (ValueError, TypeError) as error:
            raise ModelError(f"{path}: {name} is no array of numbers", got=error, expected="a tensor") from error
    if type(value) not in {torch.Tensor, torch.nn.Parameter}:
        raise ModelError(f"{path}: {name}, among the weights, is no tensor", got=_shown(value), expected="tensors only")
    # Through torch's functions: a pickle may hang attributes on a tensor that hide its methods.
    tensor = torch.detach(value)
    odd = _oddity(tensor)
    if odd:
        raise ModelError(
            f"{path}: {name} is a tensor that weights cannot be",
            got=odd,
            expected="dense real numbers",
            fix="convert it to float32 and save the weights again",
        )
    return tensor


def _oddity(tensor: torch.Tensor) -> str | None:
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.device.type != "cpu":
        return "without data"
    return None if tensor.dtype in _DTYPES else str(tensor.dtype)


# The other files


def _read_safetensors(path: Path) -> Container:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        facts: Any = json.loads(metadata.pop(_METADATA, "null"))
    except Exception as error:  # Rust's errors, and those of dtypes that torch does not have
        raise ModelError(
            f"{path} is truncated or damaged", got=error, expected="a safetensors file", fix=_COPY_AGAIN
        ) from error
    if not isinstance(facts, (dict, type(None))):
        raise ModelError(f"{path}: its metadata are not reidkit's", got=type(facts).__name__, expected="an object")
    return Container(_tensors(path, weights), "safetensors", True, facts, metadata, ())


def _read_wts(path: Path) -> Container:
    file = read_wts(path)
    weights = {name: torch.from_numpy(array) for name, array in file.tensors.items()}
    return Container(_tensors(path, weights), "wts", file.shaped, file.facts, {}, ())


# What holds for all


def _without_prefix(path: Path, container: Container) -> Container:
    prefixed = [name for name in container.tensors if name.startswith(_PREFIX)]
    if not prefixed:
        return container
    if len(prefixed) < len(container.tensors):
        raise ModelError(
            f"{path}: {len(prefixed)} of {len(container.tensors)} names begin with {_PREFIX}",
            got=f"without it: {some((name for name in container.tensors if not name.startswith(_PREFIX)), 4)}",
            expected="all of them or none: a part of it may be of another network",
            fix="save the weights again under names of one kind",
        )
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in container.tensors.items()}
    note = f"the prefix {_PREFIX!r} was taken off all {len(tensors)} names"
    return replace(container, tensors=tensors, notes=(*container.notes, note))


def _shown(value: Any) -> str:
    """A value of a pickle for a message; of one that may be endlessly deep, its type."""
    kind = type(value).__name__
    return value[:80] if isinstance(value, str) else f"{kind} {value!r}"[:80] if _is_plain(value) else f"a {kind}"
