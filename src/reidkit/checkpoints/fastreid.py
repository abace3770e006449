"""fast-reid's checkpoints, of every time: which network one holds, under the names of today's fast-reid.

Source: JDAI-CV/fast-reid, its code and its history.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from reidkit.architecture import CLASSIFIERS, HeadSpec, MaxPool, ModelSpec, OSNetSpec, ResNetSpec
from reidkit.checkpoints.fastreid_config import DISTILLED_BACKBONE, POOLINGS, FastReidConfig, read_config
from reidkit.checkpoints.fastreid_eras import ERAS, Dating, Facets, date
from reidkit.checkpoints.fastreid_head import MGN_PREFIXES, PLAIN, HeadKeys, check_mgn_heads, head_names, read_heads
from reidkit.checkpoints.osnet_keys import infer_osnet, is_osnet
from reidkit.checkpoints.reading import Assumption, Reading, Sizes, sizes_of, some, without_prefix
from reidkit.checkpoints.resnet_keys import infer_resnet, is_resnet
from reidkit.errors import ModelError
from reidkit.types import InputSpec

ANY = "fastreid"
DISTILLED = "fastreid-distilled"
MGN = "fastreid-mgn"
DIALECTS = (ANY, DISTILLED, MGN, *ERAS)
"""Names for `--dialect`: a Baseline, a distilled network, an MGN, or the time that a Baseline or an MGN is from."""

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
_BUFFERS = ("pixel_mean", "pixel_std")
_DISTILLER = re.compile(r"^connectors(_\d+)?\.|^margin\d+(_\d+)?$")

_POOLS: Mapping[MaxPool, str] = {
    "ceil": "max-pooling without padding, its size rounded up (ceil)",
    "pad": "max-pooling padded by 1 (pad)",
}

_MGN_TRUNK = {
    "backbone.0.": "conv1.",
    "backbone.1.": "bn1.",
    "backbone.4.": "layer1.",
    "backbone.5.": "layer2.",
    "backbone.6.": "layer3.0.",
}

_OTHER_BACKBONES = (
    ("backbone.cls_token", "a vision transformer"),
    ("backbone.patch_embed.", "a vision transformer"),
    ("backbone.conv1.0.", "a ResNeSt, or a ResNet with a deep stem"),
    ("backbone.s1.b1.", "a RegNet or EfficientNet"),
    ("backbone.stage1.0.rbr_dense.", "a RepVGG"),
    ("backbone.features.", "a MobileNet or ShuffleNet"),
    ("backbone.conv_stem.", "an EfficientNet of timm"),
)


def detect(sizes: Sizes) -> str | None:
    """Why these names are fast-reid's; None where they are not."""
    backbone = next((name for name in sizes if name.startswith("backbone.")), None)
    head = next((name for name in sizes if name.startswith((PLAIN, *MGN_PREFIXES))), None)
    if backbone and head:
        return f"{backbone} and {head}"
    return backbone


def read(tensors: Mapping[str, Tensor], *, config: Path | None = None, dialect: str | None = None) -> Reading:
    """Understands a checkpoint of fast-reid.

    Args:
        tensors: by the names of the file.
        config: its `config.yaml`; what that says and no tensor shows is inferred from the recipes without it.
        dialect: one of `DIALECTS` that the caller holds the file to.

    Raises:
        ModelError: a network that reidkit does not have, a damaged one, or one that is not what the config or the
            caller says.
        ConfigError: the config cannot be read, or names what reidkit does not have.
    """
    sizes = sizes_of(tensors)
    settings = None if config is None else read_config(config)
    file = _inspect(sizes, settings, dialect)
    _check_config(file, settings)
    head, notes = _head_spec(file, settings)
    backbone = (
        replace(file.backbone, preactivation=file.distilled) if isinstance(file.backbone, ResNetSpec) else file.backbone
    )
    input_, input_notes = _input(tensors, file, settings)
    spec = ModelSpec(backbone, head, "mgn" if file.mgn else "one")
    dropped = [name for name in tensors if name in _BUFFERS or _DISTILLER.match(name)]
    renamed = head_names(file.head, file.prefixes)
    names = {_canonical(name, renamed): name for name in tensors if name not in set(dropped)}
    reading = Reading(
        dialect=_dialect(file),
        spec=spec,
        input=input_,
        identities=file.head.identities,
        tensors={canonical: tensors[name] for canonical, name in names.items()},
        names={canonical: name for canonical, name in names.items() if canonical != name},
        findings=(*_findings(file, renamed, dropped), *notes.findings, *input_notes.findings),
        assumptions=(*notes.assumptions, *input_notes.assumptions),
        expected=tuple(sorted(CLASSIFIERS & {f"{prefix}weight" for prefix in file.prefixes})),
        undecided=notes.undecided,
    )
    return _with_strides(reading, file, settings)


@dataclass(frozen=True, slots=True)
class _File:
    """What the names alone show."""

    backbone: ResNetSpec | OSNetSpec
    head: HeadKeys
    prefixes: tuple[str, ...]
    dating: Dating
    mgn: bool
    distilled: bool
    distiller: tuple[str, ...]
    buffers: bool


@dataclass(frozen=True, slots=True)
class _Notes:
    findings: tuple[str, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    undecided: Mapping[str, str] = field(default_factory=dict)


def _inspect(sizes: Sizes, config: FastReidConfig | None, dialect: str | None) -> _File:
    for start, name in _OTHER_BACKBONES:
        if found := next((key for key in sizes if key.startswith(start)), None):
            raise ModelError(f"The file's backbone is {name}, which reidkit cannot take from fast-reid", got=found)
    mgn = any(name.startswith(("b1.", "b1_head.", "b1_pool.")) for name in sizes)
    if mgn:
        check_mgn_heads(sizes)
    distiller = tuple(name for name in sizes if _DISTILLER.match(name))
    _check_variant(config, dialect, mgn=mgn, distiller=distiller)
    trunk = _mgn_trunk(sizes) if mgn else without_prefix(sizes, "backbone.")
    backbone = _backbone(trunk)
    prefixes = MGN_PREFIXES if mgn else (PLAIN,)
    head = read_heads(sizes, prefixes, backbone.dim)
    buffers = _BUFFERS[0] in sizes
    facets = Facets(
        neck=head.neck,
        classifier=head.classifier,
        buffers=buffers,
        non_local=backbone.non_local if isinstance(backbone, ResNetSpec) else "none",
        head=prefixes[0],
    )
    dating = date(facets, wanted=dialect if dialect in ERAS else None)
    distilled = bool(distiller) or dialect == DISTILLED or bool(config and config.distilled)
    return _File(backbone, head, prefixes, dating, mgn, distilled, distiller, buffers)


def _check_variant(
    config: FastReidConfig | None, dialect: str | None, *, mgn: bool, distiller: tuple[str, ...]
) -> None:
    """Refuses a Baseline, a distilled network and an MGN that are offered as one another."""
    proof = f"{some(distiller)} ({len(distiller)} tensors)" if distiller else None
    if config and config.distilled and not proof:
        proof = f"{DISTILLED_BACKBONE} in {config.path}"
    says_plain = dialect is not None and dialect in (ANY, MGN)
    if proof and says_plain:
        raise ModelError(
            f"The checkpoint is of a distilled network and is offered as {dialect}",
            got=proof,
            fix=f"leave --dialect out, or say --dialect {DISTILLED}",
        )
    if config and config.distilled is False and (distiller or dialect == DISTILLED):
        raise ModelError(
            "A distilled checkpoint comes with the config of a plain network",
            got=f"{proof or f'--dialect {DISTILLED}'}, and {config.backbone} in {config.path}",
            expected=f"MODEL.BACKBONE.NAME {DISTILLED_BACKBONE}",
            fix="give the config that the network was trained with",
        )
    says_mgn = {MGN: True, ANY: False, DISTILLED: False}.get(dialect or "")
    if says_mgn is not None and says_mgn != mgn:
        got = "b1, b2 and b3 with their heads" if mgn else "no b1_head"
        fix = f"leave --dialect out, or say --dialect {MGN if mgn else ANY}"
        raise ModelError(f"The checkpoint is {'an' if mgn else 'no'} MGN and is offered as {dialect}", got=got, fix=fix)
    if config and config.meta and (config.meta == "MGN") != mgn:
        branches = "branches b1 to b3" if mgn else "no branches"
        raise ModelError(
            "The config and the checkpoint are of different networks",
            got=f"MODEL.META_ARCHITECTURE {config.meta} in {config.path}, and {branches} in the file",
            fix="give the config that the network was trained with",
        )


def _mgn_trunk(sizes: Sizes) -> dict[str, int]:
    """The names that the trunk and the first branch of an MGN have in a ResNet."""
    trunk: dict[str, int] = {}
    for name, size in sizes.items():
        for start, plain in _MGN_TRUNK.items():
            if name.startswith(start):
                trunk[plain + name.removeprefix(start)] = size
        if found := re.match(r"^b1\.0\.(\d+)\.(.+)$", name):
            trunk[f"layer3.{int(found[1]) + 1}.{found[2]}"] = size
        elif found := re.match(r"^b1\.1\.(.+)$", name):
            trunk[f"layer4.{found[1]}"] = size
    return trunk


def _backbone(names: Sizes) -> ResNetSpec | OSNetSpec:
    if is_osnet(names):
        return infer_osnet(names)
    if is_resnet(names):
        return infer_resnet(names)
    raise ModelError(
        "The file's backbone is none that reidkit knows",
        got=some([f"backbone.{name}" for name in names], 4) or "no backbone",
        expected="a ResNet or an OSNet",
    )


def _check_config(file: _File, config: FastReidConfig | None) -> None:
    """The file is right about its shapes; a config that says otherwise is another network's."""
    if config is None:
        return
    faults = list(_contradictions(file, config))
    if faults:
        wrong = " and ".join(what for what, _, _ in faults)
        raise ModelError(
            f"{config.path} is the config of another network: it has the wrong {wrong}",
            got="; ".join(f"{what}: {said} in the config, {held} in the file" for what, said, held in faults),
            fix="give the config that the network was trained with, or none",
        )


def _contradictions(file: _File, config: FastReidConfig) -> Iterable[tuple[str, object, object]]:
    backbone, head = file.backbone, file.head
    if isinstance(backbone, OSNetSpec):
        held = f"x{str(float(backbone.width)).replace('.', '_')}"
        ibn, se, non_local = backbone.variant != "plain", False, False
    else:
        held = f"{backbone.depth}x"
        ibn, se, non_local = backbone.ibn != "none", backbone.se, backbone.non_local != "none"
    if config.depth is not None and config.depth.rstrip("x") != held.rstrip("x"):
        yield "depth", config.depth, held
    if config.ibn is not None and config.ibn != ibn:
        yield "WITH_IBN", config.ibn, ibn
    if config.se is not None and config.se != se:
        yield "WITH_SE", config.se, se
    # A ResNet of depth 18 or 34 and a distilled one have no non-local blocks, whatever their config says.
    takes = isinstance(backbone, ResNetSpec) and backbone.bottleneck and not file.distilled
    if config.non_local is not None and config.non_local != non_local and (takes or non_local):
        yield "WITH_NL", config.non_local, non_local
    if config.embedding_dim is not None and config.embedding_dim != head.embedding_dim:
        yield "EMBEDDING_DIM", config.embedding_dim, head.embedding_dim
    if config.neck is not None and config.neck != (head.neck is not None):
        yield "WITH_BNNECK", config.neck, head.neck is not None


def _head_spec(file: _File, config: FastReidConfig | None) -> tuple[HeadSpec, _Notes]:
    head, key = file.head, f"{file.prefixes[0]}pool_layer.p"
    spec = HeadSpec(
        pooling="average",
        embedding_dim=head.embedding_dim,
        embedding_bias=head.embedding_bias,
        neck=head.neck is not None,
    )
    if head.learned:
        findings = [f"GeM with a learned exponent, from {key}"]
        if config and POOLINGS[config.pooling] != "gem":
            findings.append(f"the config's {config.pooling} is not what the file holds: the file is believed")
        return replace(spec, pooling="gem", gem_learned=True), _Notes(tuple(findings))
    if config:
        return replace(spec, pooling=POOLINGS[config.pooling], gem_learned=config.learned), _Notes()
    non_local = isinstance(file.backbone, ResNetSpec) and file.backbone.non_local != "none"
    if file.mgn or (non_local and head.neck == "bnneck"):
        what = "an MGN" if file.mgn else "a network with non-local blocks from before September 2020"
        why = f"no recipe of fast-reid gives {what} a pooling without {key}"
        return spec, _Notes(
            undecided={"head.pooling": f"{why}; say --set head.pooling=gem, average, max or average+max"}
        )
    if non_local:
        text = "generalised-mean pooling with exponent 3, as in AGW: non-local blocks, and no learned exponent"
        assumption = Assumption(text, "head.pooling=average")
        return replace(spec, pooling="gem"), _Notes(assumptions=(assumption,))
    text = "average pooling, as in the bag of tricks: neither non-local blocks nor a learned exponent"
    return spec, _Notes(assumptions=(Assumption(text, "head.pooling=gem"),))


def _input(tensors: Mapping[str, Tensor], file: _File, config: FastReidConfig | None) -> tuple[InputSpec, _Notes]:
    mean, std = (config.mean if config else None) or MEAN, (config.std if config else None) or STD
    findings: list[str] = []
    assumptions: list[Assumption] = []
    if file.buffers:
        held = _buffer(tensors, _BUFFERS[0]), _buffer(tensors, _BUFFERS[1])
        findings.append(f"normalisation from pixel_mean and pixel_std: mean {held[0]}, std {held[1]}")
        if config and (config.mean or config.std) and not np.allclose(held, (mean, std), rtol=1e-5):
            findings.append(f"the config's mean {mean} and std {std} differ: the file is believed")
        mean, std = held
    elif not (config and config.mean and config.std):
        assumptions.append(
            Assumption(
                "ImageNet's mean and standard deviation, fast-reid's default", "input.mean=[127.5, 127.5, 127.5]"
            )
        )
    if config:
        height, width = config.size
    else:
        (height, width), assumption = _size_by_recipe(file)
        assumptions.append(assumption)
    spec = InputSpec(height, width, resize="bicubic", color="rgb", scale=1.0, mean=mean, std=std)
    return spec, _Notes(tuple(findings), tuple(assumptions))


def _size_by_recipe(file: _File) -> tuple[tuple[int, int], Assumption]:
    if file.distilled:
        size, recipe = (256, 128), "the distilled networks"
    elif file.mgn:
        size, recipe = (384, 128), "MGN"
    elif not file.head.learned:
        size, recipe = (256, 128), "AGW and the bag of tricks"
    else:
        size, recipe = (384, 128), "SBS"
        if file.head.neck == "bnneck":
            recipe += ", though AGW, whose exponent was then learned too, took 256 x 128"
    setting = "input.height=256" if size[0] == 384 else "input.height=384"
    return size, Assumption(f"crops of {size[0]} x {size[1]}, as in {recipe}", setting)


def _buffer(tensors: Mapping[str, Tensor], name: str) -> tuple[float, float, float]:
    values = tensors[name].flatten().tolist() if name in tensors else []
    if len(values) != 3 or not np.isfinite(values).all() or (name == _BUFFERS[1] and min(values) <= 0):
        raise ModelError(f"{name} cannot be used", got=values or "nothing", expected="three numbers, and std above 0")
    # The shortest decimals that are these float32 values: 123.675, not 123.67500305.
    red, green, blue = (float(str(np.float32(value))) for value in values)
    return red, green, blue


def _with_strides(reading: Reading, file: _File, config: FastReidConfig | None) -> Reading:
    """What no tensor shows of a ResNet: its last stride, its max-pooling and where its ReLUs stand."""
    backbone = reading.spec.backbone
    if not isinstance(backbone, ResNetSpec):
        return reading
    eras, assumptions, undecided = file.dating.eras, list(reading.assumptions), dict(reading.undecided)
    pools = {era.max_pool for era in eras}
    per_key = "; ".join(file.dating.per_key)
    if not eras:
        undecided["backbone.max_pool"] = (
            f"the keys are of different times, so the max-pooling of the stem is unknown ({per_key}); "
            "say --set backbone.max_pool=ceil (as since November 2020) or pad (as before)"
        )
    pool: MaxPool = "ceil" if "ceil" in pools or not eras else "pad"
    other: MaxPool = "pad" if pool == "ceil" else "ceil"
    if len(pools) > 1:
        text = f"{_POOLS[pool]}, though a file with these keys may be older and have {_POOLS[other]}"
    else:
        text = f"{_POOLS[pool]}, as fast-reid had it then"
    if eras:
        assumptions.append(Assumption(text, f"backbone.max_pool={other}"))
    stride = config.last_stride if config else 1
    if config is None:
        assumptions.append(Assumption("last stride 1, as in every recipe", "backbone.last_stride=2"))
        if not file.distilled and not file.mgn:
            text = f"a plain network: a distilled one has the same names (--dialect {DISTILLED})"
            assumptions.append(Assumption(text, "backbone.preactivation=true"))
    if backbone.se and not backbone.bottleneck and (not eras or "pad" in pools):
        raise ModelError(
            "The old fast-reid put squeeze and excitation into the weights of ResNet-18 and 34 and did not use it",
            got=f"a ResNet-{backbone.depth} with SE of {reading.dialect}",
            fix="if it is newer, say --dialect fastreid-2020-12 or --dialect fastreid-2021-03",
        )
    settled = {}
    if file.distiller:
        settled["backbone.preactivation"] = (True, f"{some(file.distiller)}: the network is distilled")
    spec = replace(reading.spec, backbone=replace(backbone, max_pool=pool, last_stride=stride))
    return replace(reading, spec=spec, assumptions=tuple(assumptions), undecided=undecided, settled=settled)


def _canonical(name: str, renamed: Mapping[str, str]) -> str:
    for start, canonical in renamed.items():
        if name.startswith(start):
            return canonical + name.removeprefix(start)
    return name


def _dialect(file: _File) -> str:
    return MGN if file.mgn else DISTILLED if file.distilled else file.dating.name


def _findings(file: _File, renamed: Mapping[str, str], dropped: list[str]) -> Iterable[str]:
    name = file.dating.name if file.dating.eras else "no one time, a crossed dialect"
    yield f"{name}, by its keys ({'; '.join(file.dating.per_key)})"
    if file.mgn:
        yield "an MGN, from b1 to b3 and eight heads"
    if file.distilled:
        yield f"a distilled network with pre-activation, from {some(file.distiller) or 'the config or --dialect'}"
    for start, canonical in renamed.items():
        yield f"{start}{'*' if start.endswith('.') else ''} read as {canonical}{'*' if start.endswith('.') else ''}"
    distiller = [name for name in dropped if name not in _BUFFERS]
    if distiller:
        yield f"{len(distiller)} tensors that only a distiller needs were left out: {some(distiller)}"
