"""The strict fit: foreign weights go into a network whole and exactly, or not at all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from reidkit.architecture import CLASSIFIERS
from reidkit.checkpoints.reading import some
from reidkit.errors import ModelError
from reidkit.fitting import group_names, misfit

_COUNTER = "num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int32, torch.int64, torch.float32)


@dataclass(frozen=True, slots=True)
class Fitted:
    """What was done to the weights, in words.

    Attributes:
        findings: conversions, and what was left out.
        random: what was missing, as allowed, and has random values.
    """

    findings: tuple[str, ...]
    random: tuple[str, ...]


def fit(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    names: Mapping[str, str] | None = None,
    shaped: bool = True,
    expected: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Fitted:
    """Loads weights into a network: every one that it has, and no other.

    Args:
        model: to load into; changed only when everything fits.
        tensors: by canonical name.
        source: of the weights, for the messages.
        names: the file's own names, where they differ.
        shaped: whether the tensors have their shapes; without, as from a `.wts` file, the number of values decides.
        expected: names that the weights must have though the network does without them: classifiers.
        allow_missing: patterns (`heads.*`) of names that may keep their fresh initial values.
        allow_unexpected: patterns of names that are left out, as the file or reidkit calls them.

    Returns:
        What was done to the weights, in words.

    Raises:
        ModelError: lists what is missing, unexpected and of another shape or type, grouped and counted; or a pattern
            fits no name, or values are beyond float32.
    """
    wanted = model.state_dict()
    got, findings = _converted(tensors, wanted)
    if not shaped:
        got = {name: _shaped(tensor, wanted.get(name)) for name, tensor in got.items()}
    if counters := _fresh_counters(wanted, got):
        got |= counters
        findings.append(
            f"no {_COUNTER}, as before PyTorch 0.4.1: {len(counters)} counters, which training alone uses, start at 0"
        )
    faults = misfit(wanted, got)
    missing = [*faults.missing, *(name for name in expected if name not in got and name not in wanted)]
    kept = _allowed(missing, allow_missing, {}, "--allow-missing", "missing")
    left_out = _allowed(faults.unexpected, allow_unexpected, names or {}, "--allow-unexpected", "unexpected")
    faults = replace(
        faults,
        missing=tuple(name for name in missing if name not in kept),
        unexpected=tuple(name for name in faults.unexpected if name not in left_out),
    )
    if faults:
        raise ModelError(
            f"The weights of {source} do not fit the network",
            got=faults.describe(),
            expected="every tensor of the network, once",
            fix=_advice(faults.missing, bool(faults.unexpected or faults.shapes or faults.types)),
        )
    broken = [name for name, tensor in got.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"The weights of {source} hold values that are not finite",
            got=group_names(broken),
            expected="numbers",
            fix="the training that wrote it has diverged: take an earlier checkpoint",
        )
    negative = [name for name, tensor in got.items() if name.endswith("running_var") and bool((tensor < 0).any())]
    if negative:
        raise ModelError(
            f"The weights of {source} hold variances below 0", got=group_names(negative), expected="0 or above"
        )
    loaded = {name: tensor for name, tensor in got.items() if name in wanted}
    model.load_state_dict({name: loaded.get(name, tensor) for name, tensor in wanted.items()})
    fresh = sorted(kept & wanted.keys())
    kept_fresh = f"{len(fresh)} missing tensors keep fresh initial values, as allowed: {group_names(fresh)}"
    if absent := sorted(kept - wanted.keys()):
        findings.append(f"missing, as allowed, and not built: {group_names(absent)}")
    if left_out:
        findings.append(f"{len(left_out)} unexpected tensors were left out, as allowed: {group_names(left_out)}")
    return Fitted(tuple(findings), random=(kept_fresh,) if fresh else ())


def _converted(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Every other float to float32, and counters to int64: `.wts` writes these as floats."""
    got: dict[str, Tensor] = {}
    changed: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        target = wanted[name].dtype if name in wanted else tensor.dtype
        if target == torch.float32 and tensor.dtype in _FLOATS:
            changed.setdefault(str(tensor.dtype).removeprefix("torch."), []).append(name)
            got[name] = tensor.to(torch.float32)
            if not torch.isfinite(got[name]).all():
                raise ModelError(
                    f"{name} holds values that float32 cannot", got=f"{tensor.dtype}", expected="float32's range"
                )
        elif target == torch.int64 and tensor.dtype in _INTEGERS and bool((tensor == tensor.round()).all()):
            whole = tensor.to(torch.int64)
            got[name] = whole.reshape(()) if whole.numel() == 1 else whole
        else:
            got[name] = tensor
    findings = [
        f"{len(names)} tensors of {kind} were converted to float32: {some(names, 1)}" for kind, names in changed.items()
    ]
    return got, findings


def _shaped(tensor: Tensor, wanted: Tensor | None) -> Tensor:
    return tensor.reshape(wanted.shape) if wanted is not None and wanted.numel() == tensor.numel() else tensor


def _fresh_counters(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All counters at 0 where a file has none at all; a file that lacks only some is damaged."""
    if any(name.endswith(_COUNTER) for name in got):
        return {}
    present = {name.rpartition(".")[0] for name in got}
    # Not for layers that are missing altogether: those are faults of their own.
    return {
        name: torch.zeros_like(tensor)
        for name, tensor in wanted.items()
        if name.endswith(_COUNTER) and name.rpartition(".")[0] in present
    }


def _allowed(
    found: Iterable[str], patterns: Sequence[str], names: Mapping[str, str], option: str, what: str
) -> frozenset[str]:
    """Names that some pattern allows; a pattern that allows nothing is a slip of the pen."""
    found = list(found)
    allowed: set[str] = set()
    for pattern in patterns:
        hits = [n for n in found if fnmatchcase(n, pattern) or fnmatchcase(names.get(n, n), pattern)]
        if not hits:
            raise ModelError(
                f"{option} {pattern} fits nothing that is {what}",
                got=group_names(found) or f"nothing is {what}",
                fix="correct the pattern, or leave it out",
            )
        allowed.update(hits)
    return frozenset(allowed)


def _advice(missing: Sequence[str], others: bool) -> str:
    if missing and not others and set(missing) <= CLASSIFIERS:
        names = (
            " ".join(f"--allow-missing {name}" for name in missing)
            if len(missing) == 1
            else "--allow-missing '*_head.weight'"
        )
        return f"only training needs the classifier: {names} does without"
    return "find out which network these weights are of; what may differ, say --allow-missing and --allow-unexpected"
