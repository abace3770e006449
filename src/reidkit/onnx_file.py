"""Anyone's ONNX file, read and checked."""

import re
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx.external_data_helper import load_external_data_for_model

from reidkit.errors import ModelError

OLDEST_OPSET = 7
"""Of the standard operators: older ones broadcast and cast in ways that ONNX Runtime does not run either."""

_STANDARD_DOMAINS = ("", "ai.onnx")
_SIGNATURES = {
    b"version https://git-lfs": ("a Git LFS pointer, not the file it stands for", "fetch it with `git lfs pull`"),
    b"PK\x03\x04": ("a zip archive, as PyTorch checkpoints are", "export the network to ONNX first"),
    b"<": ("a web page or XML", "download the file again; for OpenVINO IR, take the ONNX file it was made from"),
}


def read_model(file: Path, *, with_weights: bool = True) -> onnx.ModelProto:
    """Reads and checks an ONNX file, with the weights that lie in files beside it.

    Raises:
        ModelError: no such file, not ONNX, truncated, invalid, too old, or weights missing or outside its folder.
    """
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise ModelError(f"{file} {what}", expected="an ONNX file", fix="check the path")
    if file.stat().st_size == 0:
        raise ModelError(f"{file} is empty", expected="an ONNX file", fix="download or export it again")
    try:
        model = onnx.load(str(file), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise _not_onnx(file, error) from None
    if not model.HasField("graph") or not model.graph.node:
        raise _not_onnx(file, "no graph inside")
    if with_weights:
        _load_weights(model, file)
        _check(model, file)
    if (opset := standard_opset(model)) < OLDEST_OPSET:
        raise ModelError(
            f"{file} uses operators that are too old",
            got=f"opset {opset}",
            expected=f"opset {OLDEST_OPSET} or newer",
            fix="export it again, or convert it with onnx.version_converter",
        )
    return model


def standard_opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators that the graph is written in; 0 where it does not say."""
    return next((entry.version for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS), 0)


def is_standard(node: onnx.NodeProto, operator: str) -> bool:
    """Whether a node is that operator of the standard domain, and not another domain's of the same name."""
    return node.op_type == operator and node.domain in _STANDARD_DOMAINS


def _load_weights(model: onnx.ModelProto, file: Path) -> None:
    try:
        load_external_data_for_model(model, str(file.parent))
    except Exception as error:  # a checker error, an OSError or a ValueError, by version of onnx
        raise ModelError(
            f"The weights that {file} keeps in other files cannot be read",
            got=first_line(error),
            expected="files beside it, inside its own folder",
            fix="put the .onnx and its data files, unchanged, in one folder",
        ) from error


def _check(model: onnx.ModelProto, file: Path) -> None:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"{file} is not a valid ONNX graph", got=first_line(error), fix="export it again") from error
    except (ValueError, EncodeError) as error:
        raise too_large(file) from error


def too_large(file: Path) -> ModelError:
    """The error for a network that does not fit in one ONNX file."""
    return ModelError(f"{file} is too large", got="over 2 GB with its weights", expected="a graph below 2 GB")


def first_line(error: BaseException | str) -> str:
    """The part of another library's message that people can use."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return text if len(text) <= 300 else text[:299] + "…"


def _not_onnx(file: Path, detail: object) -> ModelError:
    with file.open("rb") as stream:
        head = stream.read(64).lstrip()
    for signature, (got, fix) in _SIGNATURES.items():
        if head.startswith(signature):
            return ModelError(f"{file} is not an ONNX file", got=got, fix=fix)
    return ModelError(
        f"{file} is not an ONNX file, or is truncated",
        got=f"{file.stat().st_size:,} bytes: {detail}",
        fix="download or export it again",
    )
