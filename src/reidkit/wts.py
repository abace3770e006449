"""`.wts`: weights as plain text, as tensorrtx and FastRT write and read them. numpy is all it takes.

    <number of tensors>
    <name> <number of values> <word> <word> ...      one line a tensor

A word is the big-endian IEEE-754 float32 as eight lower-case hex digits. The text knows no shapes, so beside
`NAME.wts` stands `NAME.wts.json`: shapes and dtypes, facts of the caller's, and the sha256 of the text they belong to.
Without it the text still reads, as flat arrays.

Source: https://github.com/wang-xinyu/tensorrtx and projects/FastRT of https://github.com/JDAI-CV/fast-reid. Our bytes
are theirs, with two differences of conduct: a value that float32 cannot hold is refused where they round it, and a
signalling NaN keeps its bits.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from reidkit.atomic import check_free, output_file
from reidkit.config import to_dict
from reidkit.errors import ConfigError, InputError, ModelError

SCHEMA = 1

_KINDS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
_DTYPES = {name: np.dtype(name) for name in _KINDS.split()}
_EXACT_INTEGER = 1 << 24  # float32 holds every integer up to here
_VALUES_AT_ONCE = 1 << 18
_BYTES_AT_ONCE = 1 << 20
_LARGEST_DESCRIPTION = 1 << 26
_WORD = re.compile(rb"[0-9a-fA-F]{1,8}")
_NUMBER = re.compile(rb"[0-9]{1,18}")
_COPY_AGAIN = "copy or download the file again, whole"


@dataclass(frozen=True, slots=True)
class WtsFile:
    """What a `.wts` file holds.

    Attributes:
        tensors: by name, in the file's order; flat float32 unless `shaped`.
        facts: what the writer said about the weights; None without the JSON beside the file, or when nothing was said.
        shaped: whether shapes and dtypes were restored from the JSON beside the file.
    """

    tensors: dict[str, np.ndarray]
    facts: Mapping[str, Any] | None
    shaped: bool


def description_path(path: Path | str) -> Path:
    """The JSON that belongs beside a `.wts` file: `NAME.wts.json`."""
    path = Path(path)
    return path.with_name(f"{path.name}.json")


def write_wts(
    path: Path | str,
    tensors: Mapping[str, np.ndarray],
    *,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes named tensors as tensorrtx would, and the JSON that restores their shapes beside them.

    Integers, such as the `num_batches_tracked` of a batch norm, become floats, and a scalar becomes one value.

    Args:
        path: of the `.wts` file; the JSON takes its name and `.json`.
        tensors: by name, in the order to be written; bool, integer and float arrays of any shape.
        facts: what else to say of the weights (architecture, input, provenance): plain values or dataclasses of them.
        overwrite: replace files that are already there.

    Raises:
        InputError: no tensors, a name with white space, an array that is not numeric, or values that float32 cannot
            hold exactly (float64 in general, integers beyond 2**24): converting them is for the caller to decide.
        ConfigError: facts that JSON cannot say.
        OutputError: a file cannot be written, or is already there.
    """
    path = Path(path)
    _check_tensors(tensors)
    shapes = {name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in tensors.items()}
    # Asked before the work, which takes a second.
    _description("", facts, shapes)
    check_free(path, overwrite=overwrite)
    check_free(description_path(path), overwrite=overwrite)
    with output_file(description_path(path)) as beside, output_file(path) as temporary:
        digest = hashlib.sha256()
        with temporary.open("wb") as stream:
            for piece in _text(tensors):
                digest.update(piece)
                stream.write(piece)
        beside.write_bytes(_description(digest.hexdigest(), facts, shapes))


def read_wts(path: Path | str) -> WtsFile:
    """Reads a `.wts` file of ours, of tensorrtx's or of FastRT's, every value with its exact bits.

    Upper-case words, words without their leading zeros, more than one space between words, CRLF, and a last line
    without its end are read too. Needs the memory of the result and of about one tensor more.

    Raises:
        ModelError: no such file, not `.wts`, truncated or otherwise wrong, with the line and the tensor's name; or the
            JSON beside it is damaged or belongs to another file.
    """
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else None
        raise ModelError(f"No such file: {path}", got=got, expected="a .wts file", fix="check the path")
    description = _read_description(description_path(path))
    try:
        with path.open("rb") as stream:
            reader = _Reader(path, stream)
            tensors = reader.tensors()
    except OSError as error:
        raise ModelError(f"{path} cannot be read", got=error, fix="check the file and who may read it") from error
    if description is None:
        return WtsFile(tensors, None, shaped=False)
    if reader.digest.hexdigest() != description["sha256"]:
        raise ModelError(
            f"{path} is not the file that {description_path(path).name} was written for",
            got=f"sha256 {reader.digest.hexdigest()[:16]}…",
            expected=f"sha256 {description['sha256'][:16]}…",
            fix="copy both files again; or take the JSON away to read flat arrays without shapes",
        )
    return WtsFile(
        _restored(description_path(path), description["tensors"], tensors), description["facts"], shaped=True
    )


def _check_tensors(tensors: Mapping[str, np.ndarray]) -> None:
    if not tensors:
        raise InputError("There are no tensors to write", expected="at least one")
    for name, array in tensors.items():
        if not _is_name(name):
            raise InputError(
                f"The tensor name {name!r} cannot stand in a .wts file", expected="printable, without white space"
            )
        if array.dtype.name not in _DTYPES:
            raise InputError(
                f"{name} cannot be written as .wts",
                got=f"dtype {array.dtype}",
                expected="bool, integers or floats of at most 64 bits",
                fix="leave it out, or convert it to float32",
            )


def _is_name(name: str) -> bool:
    return bool(name) and name.isprintable() and " " not in name


def _text(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    yield b"%d\n" % len(tensors)
    for name, array in tensors.items():
        values = _as_float32(name, array)
        yield f"{name} {len(values)}".encode()
        for start in range(0, len(values), _VALUES_AT_ONCE):
            words = values[start : start + _VALUES_AT_ONCE].view(np.uint32).astype(">u4")
            yield b" " + words.tobytes().hex(" ", 4).encode()
        yield b"\n"


def _as_float32(name: str, array: np.ndarray) -> Float32[np.ndarray, " n"]:
    """The values in row-major order, refused where one of them would change."""
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(-1)
    if flat.dtype == np.float32:
        return flat
    with np.errstate(all="ignore"):
        narrow = flat.astype(np.float32)
        if flat.dtype.kind == "f":  # by their bits: NaN equals itself, and -0.0 is not 0.0
            bits = f"u{flat.dtype.itemsize}"
            changed = narrow.astype(flat.dtype).view(bits) != flat.view(bits)
        else:
            changed = (flat < -_EXACT_INTEGER) | (flat > _EXACT_INTEGER)
    if changed.any():
        raise InputError(
            f"{name} has values that float32, all that .wts knows, cannot hold",
            got=f"{flat.dtype}, {changed.sum():,} of {len(flat):,} values would change, the first {flat[changed][0]}",
            expected="values that stay what they are",
            fix="convert it to float32 first, knowing that this rounds",
        )
    return narrow


def _description(sha256: str, facts: Mapping[str, Any] | None, tensors: Mapping[str, Any]) -> bytes:
    whole = {"schema": SCHEMA, "sha256": sha256, "facts": to_dict(facts), "tensors": tensors}
    try:
        return json.dumps(whole, indent=2, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError("The facts hold what JSON cannot say", got=error, expected="plain, finite values") from error


class _Reader:
    """Reads a `.wts` file front to back, a piece at a time; no number in it makes us reserve more than it has."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.digest = hashlib.sha256()
        self._stream = stream
        self._left = path.stat().st_size
        self._line = 0

    def tensors(self) -> dict[str, np.ndarray]:
        count = self._count()
        tensors: dict[str, np.ndarray] = {}
        for _ in range(count):
            self._line += 1
            piece = self._piece()
            if not piece:
                raise self._error(
                    "the file ends here", f"{len(tensors):,} tensors", f"{count:,}, as line 1 says", _COPY_AGAIN
                )
            name, values = self._tensor(piece)
            if name in tensors:
                raise self._error(f"{name} is there already", None, "every name once", None)
            tensors[name] = values
        self._line += 1
        while piece := self._piece():
            if piece.strip():
                raise self._error("more follows", repr(piece[:40]), f"{count:,} tensors, as line 1 says", None)
        return tensors

    def _count(self) -> int:
        self._line = 1
        piece = self._piece()
        if not piece:
            raise ModelError(f"{self.path} is empty", expected="a .wts file", fix=_COPY_AGAIN)
        word = piece.strip()
        if not _NUMBER.fullmatch(word) or int(word) == 0:
            raise ModelError(
                f"{self.path} is not a .wts file", got=repr(piece[:40]), expected="line 1 to be the number of tensors"
            )
        if 4 * int(word) - 1 > self._left:  # the shortest line is `a 0` and its end
            raise self._error(
                f"says {int(word):,} tensors", f"{self._left:,} bytes after it", "more for so many", _COPY_AGAIN
            )
        return int(word)

    def _tensor(self, piece: bytes) -> tuple[str, np.ndarray]:
        head = piece.split(maxsplit=2)
        try:
            name = head[0].decode() if head else ""
        except UnicodeDecodeError:
            name = ""
        if not _is_name(name) or len(head) < 2 or not _NUMBER.fullmatch(head[1]):
            raise self._error("no tensor stands here", repr(piece[:40]), "NAME COUNT WORD WORD ...", _COPY_AGAIN)
        count, text = int(head[1]), head[2] if len(head) == 3 else b""
        if 2 * count - 1 > len(text) + self._left:  # the shortest word is one digit and a space
            got = f"{len(text) + self._left:,} bytes left in the file"
            raise self._error(f"({name}) says {count:,} values", got, "more for so many", _COPY_AGAIN)
        bits, found = np.empty(count, np.uint32), 0
        ended = _ends_line(piece)
        while True:
            cut = len(text) if ended else text.rfind(b" ") + 1
            words = self._words(name, found, text[:cut])
            if found + len(words) <= count:
                bits[found : found + len(words)] = words
            found += len(words)
            if ended:
                break
            rest = text[cut:]
            if len(rest) > _BYTES_AT_ONCE:
                raise self._not_hex(name, found + 1, rest)
            piece = self._piece()
            ended, text = _ends_line(piece), rest + piece
        self._check_end(name, count, found, text)
        return name, bits.view(np.float32)

    def _check_end(self, name: str, count: int, found: int, text: bytes) -> None:
        if found != count:
            cut = " and the file ends" if self._left == 0 else ""
            raise self._error(
                f"({name}) says {count:,} values", f"{found:,}{cut}", f"{count:,} words after it", _COPY_AGAIN
            )
        if text and not text[-1:].isspace() and len(last := text.split()[-1]) < 8:
            # Leading zeros may be left out, but a file cut within its last word looks just so.
            got = f"{last.decode()!r} and no end of the line"
            raise self._error(f"({name}) may be cut in its last word", got, "eight digits, or a line end", _COPY_AGAIN)

    def _words(self, name: str, before: int, text: bytes) -> np.ndarray:
        """The values of some text between two words, as the bits of big-endian float32."""
        text = text.strip()
        if (len(text) + 1) % 9 == 0 and (np.frombuffer(text, np.uint8)[8::9] == ord(" ")).all():
            try:
                raw = bytes.fromhex(text.decode("ascii"))
            except ValueError:
                raw = b""
            if len(raw) * 9 == (len(text) + 1) * 4:  # else there were more spaces
                return np.frombuffer(raw, ">u4")
        words = text.split()
        try:
            if max(map(len, words), default=0) <= 8:
                return np.frombuffer(bytes.fromhex(b"".join(word.rjust(8, b"0") for word in words).decode()), ">u4")
        except ValueError:
            pass
        index = next(index for index, word in enumerate(words) if not _WORD.fullmatch(word))
        raise self._not_hex(name, before + index + 1, words[index])

    def _not_hex(self, name: str, number: int, word: bytes) -> ModelError:
        what = f"({name}): value {number:,} is no word of a .wts file"
        return self._error(what, repr(word[:40]), "at most eight hex digits", _COPY_AGAIN)

    def _piece(self) -> bytes:
        """The rest of a line, or as much of it as is read at once."""
        piece = self._stream.readline(_BYTES_AT_ONCE)
        self.digest.update(piece)
        self._left = max(0, self._left - len(piece))
        return piece

    def _error(self, what: str, got: str | None, expected: str | None, fix: str | None) -> ModelError:
        return ModelError(f"{self.path}, line {self._line:,}: {what}", got=got, expected=expected, fix=fix)


def _ends_line(piece: bytes) -> bool:
    return piece.endswith(b"\n") or len(piece) < _BYTES_AT_ONCE


def _read_description(file: Path) -> dict[str, Any] | None:
    """The JSON beside a `.wts` file, checked as far as it goes without the tensors; None where there is none."""
    if not file.exists():
        return None
    fix = "copy both files again; or take the JSON away to read flat arrays without shapes"
    try:
        if file.stat().st_size > _LARGEST_DESCRIPTION:
            raise ModelError(f"{file} is too large", got=f"{file.stat().st_size:,} bytes", expected="a description")
        whole: Any = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read", got=error, expected="JSON", fix=fix) from error
    if not isinstance(whole, dict) or type(whole.get("schema")) is not int:
        raise ModelError(f"{file} does not describe weights", expected='an object with a number "schema"', fix=fix)
    if whole["schema"] != SCHEMA:
        newer = "update reidkit (pip install -U reidkit)" if whole["schema"] > SCHEMA else fix
        raise ModelError(
            f"{file} has a schema this reidkit cannot read", got=whole["schema"], expected=SCHEMA, fix=newer
        )
    for key, kinds in {"sha256": str, "facts": (dict, type(None)), "tensors": dict}.items():
        if key not in whole or not isinstance(whole[key], kinds):
            got = type(whole[key]).__name__ if key in whole else "nothing"
            raise ModelError(f"{file} does not describe weights", got=f"{key}: {got}", fix=fix)
    return whole


def _restored(file: Path, entries: Mapping[str, Any], flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors in their recorded shapes and dtypes."""
    if entries.keys() != flat.keys():
        other = sorted(entries.keys() ^ flat.keys())
        raise ModelError(f"{file} describes other tensors than the weights have", got=", ".join(map(repr, other[:4])))
    return {name: _reshaped(file, name, entries[name], values) for name, values in flat.items()}


def _reshaped(file: Path, name: str, entry: Any, values: np.ndarray) -> np.ndarray:
    shape, dtype = (entry.get("shape"), entry.get("dtype")) if isinstance(entry, dict) else (None, None)
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ModelError(f"{file}: {name} has no dtype that .wts can hold", got=repr(dtype), expected=_KINDS)
    try:
        shaped = values.reshape(_checked_shape(shape, len(values)))
    except ValueError as error:  # numpy's own: no values, and sizes that overflow all the same
        raise ModelError(f"{file}: the shape of {name} does not fit", got=error) from error
    if dtype == "float32":
        return shaped
    with np.errstate(all="ignore"):
        converted = shaped.astype(_DTYPES[dtype])
        back = converted.astype(np.float32)
        integral = _DTYPES[dtype].kind != "f"
        if not np.array_equal(back.view(np.uint32), shaped.view(np.uint32)) or (
            integral and (np.abs(shaped) > _EXACT_INTEGER).any()
        ):
            raise ModelError(
                f"{file}: the values of {name} are not {dtype}", expected="the dtype they were written from"
            )
    return converted


def _checked_shape(shape: Any, count: int) -> list[int]:
    fits = (
        isinstance(shape, list)
        and len(shape) <= 32
        and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)  # JSON's integers have no bound
        and math.prod(shape) == count
    )
    if not fits:
        raise ValueError(f"{repr(shape)[:80]} for {count:,} values")
    return shape
