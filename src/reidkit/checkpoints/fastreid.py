"""fast-reid's checkpoints, of every time: which network one holds, under the names of today's fast-reid.

Source: JDAI-CV/fast-reid, its code and its history.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from reidkit.architecture import CLASSIFIERS, HeadSpec, MaxPool, ModelSpec, OSNetSpec, ResNetSpec
from reidkit.checkpoints.fastreid_config import POOLINGS, FastReidConfig, read_config
from reidkit.checkpoints.fastreid_eras import ERAS
from reidkit.checkpoints.fastreid_file import ANY, BUFFERS, DISTILLED, MGN, FastReidFile, inspect
from reidkit.checkpoints.fastreid_head import MGN_PREFIXES, PLAIN, head_names
from reidkit.checkpoints.fastreid_input import UNSAID, read_input
from reidkit.checkpoints.reading import Assumption, Notes, Reading, Sizes, renamed, sizes_of, some
from reidkit.types import Task

DIALECTS = (ANY, DISTILLED, MGN, *ERAS)
"""Names for `--dialect`: a Baseline, a distilled network, an MGN, or the time that a Baseline or an MGN is from."""

_NON_LOCAL = tuple(f"backbone.NL_{stage}." for stage in range(1, 5))

_POOLS: Mapping[MaxPool, str] = {
    "ceil": "max-pooling without padding, its size rounded up (ceil)",
    "pad": "max-pooling padded by 1 (pad)",
}


def detect(sizes: Sizes, *, dialect: str | None = None) -> str | None:
    """Why these names are fast-reid's; None where they are not."""
    backbone = next((name for name in sizes if name.startswith("backbone.")), None)
    head = next((name for name in sizes if name.startswith((PLAIN, *MGN_PREFIXES))), None)
    if backbone and head:
        return f"{backbone} and {head}"
    return backbone


def read(
    tensors: Mapping[str, Tensor], *, config: Path | None = None, dialect: str | None = None, task: Task = "person"
) -> Reading:
    """Understands a checkpoint of fast-reid.

    Args:
        tensors: by the names of the file.
        config: its `config.yaml`; what that says and no tensor shows is inferred from the recipes without it.
        dialect: one of `DIALECTS` that the caller holds the file to.
        task: what the network tells apart: the recipes for vehicles differ.

    Raises:
        ModelError: a network that reidkit does not have, a damaged one, or one that is not what the config or the
            caller says.
        ConfigError: the config cannot be read, or names what reidkit does not have.
    """
    settings = None if config is None else read_config(config)
    file = inspect(sizes_of(tensors), settings, dialect)
    input_, notes = read_input(tensors, file, settings, task)
    head, said_of_head = _head_spec(file, settings, task)
    backbone, said_of_backbone = _backbone_spec(file, settings)
    notes = said_of_head + notes + said_of_backbone
    idle = [name for name in tensors if name.startswith(_NON_LOCAL)] if file.distilled else []
    left_out = {*BUFFERS, *file.distiller, *idle}
    changed = head_names(file.head, file.prefixes)
    names = renamed((name for name in tensors if name not in left_out), lambda name: _canonical(name, changed))
    settled = {}
    if file.distiller and isinstance(backbone, ResNetSpec):
        settled["backbone.preactivation"] = (True, f"{some(file.distiller)}: the network is distilled")
    return Reading(
        dialect=file.dialect,
        spec=ModelSpec(backbone, head, "mgn" if file.mgn else "one"),
        input=input_,
        identities=file.head.identities,
        tensors={canonical: tensors[name] for canonical, name in names.items()},
        names={canonical: name for canonical, name in names.items() if canonical != name},
        findings=(*_findings(file, changed, idle), *notes.findings),
        assumptions=notes.assumptions,
        expected=tuple(sorted(CLASSIFIERS & {f"{prefix}weight" for prefix in file.prefixes})),
        settled=settled,
        undecided=notes.undecided,
    )


def _head_spec(file: FastReidFile, config: FastReidConfig | None, task: Task) -> tuple[HeadSpec, Notes]:
    head, notes = file.head, Notes()
    if head.neck is None and not (config and config.neck is False):
        neck = f"{file.prefixes[0]}bottleneck.{1 if head.embedding_dim else 0}.*"
        why = f"the file has no BNneck ({neck}), and every recipe has one"
        notes += Notes(undecided={"head.neck": f"{why}; say --set head.neck=false, or give the config"})
    spec, said_of_pooling = _pooling(file, config, task)
    return replace(spec, embedding_dim=head.embedding_dim, neck=head.neck is not None), notes + said_of_pooling


def _pooling(file: FastReidFile, config: FastReidConfig | None, task: Task) -> tuple[HeadSpec, Notes]:
    """A head with nothing but its pooling: the file's, or the config's, or a recipe's."""
    head, key = file.head, f"{file.prefixes[0]}pool_layer.p"
    said = config.pooling if config else None
    if head.learned:
        findings = [f"GeM with a learned exponent, from {key}"]
        if said and POOLINGS[said] != "gem":
            findings.append(f"the config's {said} is not what the file holds: the file is believed")
        return HeadSpec(pooling="gem", gem_learned=True), Notes(tuple(findings))
    if config and said:
        # Without the exponent that the config asks for, the strict fit says what is missing.
        learned = config.learned or (said == "gempool" and head.neck == "bnneck")
        return HeadSpec(pooling=POOLINGS[said], gem_learned=learned), Notes()
    if file.mgn or (file.non_local and head.neck == "bnneck"):
        what = "an MGN" if file.mgn else "a network with non-local blocks from before September 2020"
        why = f"no recipe of fast-reid gives {what} a pooling without {key}"
        fix = "say --set head.pooling=gem, average, max or average+max"
        return HeadSpec(pooling="average"), Notes(undecided={"head.pooling": f"{why}; {fix}"})
    if config:
        text = f"average pooling, {UNSAID}"
    elif file.non_local:
        text = "generalised-mean pooling with exponent 3, as in AGW: non-local blocks, and no learned exponent"
        return HeadSpec(pooling="gem"), Notes(assumptions=(Assumption(text, "head.pooling=average"),))
    elif task == "vehicle" and head.neck != "bnneck":
        text = "generalised-mean pooling with exponent 3, as in VehicleID and VERI-Wild: no learned exponent"
        return HeadSpec(pooling="gem"), Notes(assumptions=(Assumption(text, "head.pooling=average"),))
    else:
        text = "average pooling, as in the bag of tricks: neither non-local blocks nor a learned exponent"
    return HeadSpec(pooling="average"), Notes(assumptions=(Assumption(text, "head.pooling=gem"),))


def _backbone_spec(file: FastReidFile, config: FastReidConfig | None) -> tuple[ResNetSpec | OSNetSpec, Notes]:
    """The backbone with what no tensor shows of a ResNet: its last stride, its max-pooling, where its ReLUs stand."""
    backbone = file.backbone
    if not isinstance(backbone, ResNetSpec):
        return backbone, Notes()
    pool, notes = _max_pool(file)
    stride = config.last_stride if config else None
    if stride is None:
        why = UNSAID if config else "as in every recipe"
        notes += Notes(assumptions=(Assumption(f"last stride 1, {why}", "backbone.last_stride=2"),))
    if file.distilled:  # which runs no non-local block that it may have
        backbone = replace(backbone, preactivation=True, non_local="none")
    return replace(backbone, max_pool=pool, last_stride=1 if stride is None else stride), notes


def _max_pool(file: FastReidFile) -> tuple[MaxPool, Notes]:
    """The max-pooling of the stem: that of the time."""
    eras = file.dating.eras
    if not eras:
        why = (
            "the keys are of different times, so the max-pooling of the stem is unknown "
            f"({'; '.join(file.dating.per_key)}); say --set backbone.max_pool=ceil (as since November 2020) or pad "
            "(as before)"
        )
        return "ceil", Notes(undecided={"backbone.max_pool": why})
    pools = {era.max_pool for era in eras}
    pool: MaxPool = "ceil" if "ceil" in pools else "pad"
    other: MaxPool = "pad" if pool == "ceil" else "ceil"
    text = f"{_POOLS[pool]}, as fast-reid had it then"
    if len(pools) > 1:
        text = f"{_POOLS[pool]}, though a file with these keys may be older and have {_POOLS[other]}"
    return pool, Notes(assumptions=(Assumption(text, f"backbone.max_pool={other}"),))


def _canonical(name: str, changed: Mapping[str, str]) -> str:
    for start, canonical in changed.items():
        if name.startswith(start):
            return canonical + name.removeprefix(start)
    return name


def _findings(file: FastReidFile, changed: Mapping[str, str], idle: Sequence[str]) -> Iterable[str]:
    name = file.dating.name if file.dating.eras else "no one time, a crossed dialect"
    yield f"{name}, by its keys ({'; '.join(file.dating.per_key)})"
    if file.mgn:
        yield "an MGN, from b1 to b3 and eight heads"
    if file.distilled:
        yield f"a distilled network with pre-activation, from {some(file.distiller) or 'the config or --dialect'}"
    for start, canonical in changed.items():
        yield f"{start}{'*' if start.endswith('.') else ''} read as {canonical}{'*' if start.endswith('.') else ''}"
    if file.distiller:
        yield f"{len(file.distiller)} tensors that only a distiller needs were left out: {some(file.distiller)}"
    if idle:
        what = "non-local blocks, which a distilled network has and does not run"
        yield f"{len(idle)} tensors of {what}, were left out: {some(idle)}"
