"""Where rounding hurts: what each part of a network gives back when it stays float, and the fewest layers that have to.

Nothing is estimated: each answer is a graph that was made, run by ONNX Runtime on the processor and ranked.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import onnx

from reidkit.bundle import Bundle
from reidkit.calibration import Calibration
from reidkit.deploy.quantize.calibrate import quantizable_graph
from reidkit.deploy.quantize.emit import quantized_graph
from reidkit.deploy.quantize.fewest import fewest_floats
from reidkit.deploy.quantize.groups import Group, groups_of, names_of
from reidkit.deploy.quantize.placement import Layer, place, quantizable_layers
from reidkit.deploy.quantize.quantize import check_table, on_a_processor
from reidkit.deploy.verify import MAX_MAP_DROP, Agreement, Measured, check_accuracy, measure_on
from reidkit.errors import ConfigError
from reidkit.evaluate import Report, compare_reports
from reidkit.metrics.bootstrap import PairedDifference
from reidkit.runtime import load
from reidkit.types import Precision, Progress, Split, no_progress


@dataclass(frozen=True, slots=True)
class Trial:
    """A network with some layers in float and the others in eight bits, as it was measured.

    Attributes:
        floats: layers in float, in the order of the graph.
        agreement: with the float network: cosines, mAP, its change with an interval, rank-1.
        report: of its ranking.
    """

    floats: tuple[str, ...]
    agreement: Agreement
    report: Report

    @property
    def mean_ap(self) -> float:
        """MAP, a fraction of 1."""
        return self.report.mean_ap

    @property
    def drop(self) -> float:
        """MAP that the float network has and this one has not; a fraction of 1, below 0 where this one is better."""
        return -self.agreement.change.difference

    @property
    def error(self) -> float:
        """1 - mean cosine."""
        return 1 - self.agreement.mean_cosine

    @property
    def meets(self) -> bool:
        """Whether it passes as `reid verify --data` has it: mAP that is lost, and the mean cosine."""
        return self.agreement.passed


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What a network in eight bits gains where one group of it stays float.

    Attributes:
        group: that stays float.
        trial: with that group alone in float.
        gain: of mAP, over all layers in eight bits, query by query with its 95 % interval; fractions of 1.
        kept: its layers that the choice keeps in float.
    """

    group: Group
    trial: Trial
    gain: PairedDifference
    kept: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the group."""
        return self.group.name

    @property
    def layers(self) -> tuple[str, ...]:
        """Of the group."""
        return self.group.layers

    @property
    def share(self) -> float:
        """Of the multiply-adds of all layers; a fraction of 1."""
        return self.group.share

    @property
    def error(self) -> float:
        """1 - mean cosine, with the group in float."""
        return self.trial.error


@dataclass(frozen=True, slots=True)
class Search:
    """Where a network is sensitive to rounding, and which of its layers are to stay float.

    Attributes:
        mean_ap: of the float network.
        rounded: with all layers in eight bits.
        groups: in the order of the graph.
        chosen: the choice where `met`; else the trial that lost least.
        float_share: multiply-adds of the layers that it keeps in float, of those of all; a fraction of 1.
        trials: how many networks were measured, beside the float one.
    """

    mean_ap: float
    rounded: Trial
    groups: tuple[Sensitivity, ...]
    chosen: Trial
    float_share: float
    trials: int

    @property
    def met(self) -> bool:
        """Whether the choice passes, see `Trial.meets`."""
        return self.chosen.meets


def search(
    bundle: Bundle,
    table: Calibration,
    split: Split,
    *,
    max_map_drop: float = MAX_MAP_DROP,
    reference: Measured | None = None,
    batch_size: int = 32,
    threads: int | None = None,
    each: Callable[[Trial], None] | None = None,
    progress: Progress = no_progress,
) -> Search:
    """Measures a network with each group in float, and chooses the fewest layers that have to stay so.

    None where all layers in eight bits pass (`Trial.meets`); else those that `fewest_floats` finds. Groups are added in
    the order of the cosine error that each takes away a layer: such errors add up nearly, while what one group does to
    mAP is mostly chance.

    The choice was measured, and none of its layers can be spared alone; a smaller one is not ruled out. It is fitted to
    this data set: what it loses on others has to be measured there.

    Args:
        bundle: an open bundle.
        table: of its ranges; layers that it already keeps in float are rounded here as all others.
        split: with query and gallery, best of other pictures than accuracy is told of.
        max_map_drop: mAP that may be lost; a fraction of 1.
        reference: the float network on the same split, where it was measured before.
        batch_size: crops a call of the engine.
        threads: that the graph runs on, and workers that decode; None takes all cores.
        each: called with each network as it was measured.
        progress: over the crops of all networks; the total grows when more of them have to be measured.

    Raises:
        BundleError: the table is of another graph or of an older placement.
        ConfigError: the drop is below 0 or no number.
        DataError, ImageError: the split cannot be measured on, see `measure_on`.
        InputError: no query has a match, or `reference` is of another split or width.
        ModelError: the graph cannot be quantised, or the table lacks something.
        OutputError: the folder for temporary files cannot be written to.
    """
    if not 0 <= max_map_drop < math.inf:
        raise ConfigError("The drop of mAP that is allowed is out of range", got=max_map_drop, expected="0 or above")
    check_table(bundle, table)
    model = quantizable_graph(bundle)
    layers = quantizable_layers(model)
    groups = groups_of(layers)
    bench = _Bench(bundle, model, table, split, max_map_drop, batch_size, threads, each, progress)
    bench.planned = 1 + len(groups) + (reference is None)
    bench.reference = bench.measured(bundle) if reference is None else reference
    rounded = bench.trial(())
    rows = []
    for group in groups:
        trial = bench.trial(group.layers)
        gain = compare_reports(rounded.report, trial.report).measures[0].paired
        rows.append(Sensitivity(group, trial, gain))
    chosen = _choose(bench, layers, rounded, rows)
    return Search(
        mean_ap=rounded.agreement.mean_ap[0],
        rounded=rounded,
        groups=tuple(
            replace(row, kept=tuple(name for name in row.group.layers if name in chosen.floats)) for row in rows
        ),
        chosen=chosen,
        float_share=sum(layer.multiply_adds for layer in layers if layer.name in chosen.floats)
        / (sum(layer.multiply_adds for layer in layers) or 1),
        trials=len(bench.trials),
    )


@dataclass
class _Bench:
    """Measures a network with any layers in float, each choice once."""

    bundle: Bundle
    model: onnx.ModelProto
    table: Calibration
    split: Split
    max_drop: float
    batch_size: int
    threads: int | None
    each: Callable[[Trial], None] | None
    progress: Progress
    reference: Measured | None = None
    planned: int = 0  # networks, as far as is known
    done: int = 0
    trials: dict[tuple[str, ...], Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = names_of(quantizable_layers(self.model))

    def trial(self, floats: Iterable[str]) -> Trial:
        """The network with these layers in float."""
        chosen = set(floats)
        ordered = tuple(name for name in self.names if name in chosen)
        if ordered not in self.trials:
            self.trials[ordered] = trial = self._try(ordered)
            if self.each is not None:
                self.each(trial)
        return self.trials[ordered]

    def measured(self, bundle: Bundle, precision: Precision | None = None) -> Measured:
        """Everything embedded and ranked."""
        self.planned = max(self.planned, self.done + 1)
        embedder = load(bundle, "onnxruntime", device="cpu", threads=self.threads, precision=precision)
        measured = measure_on(
            embedder,
            self.split,
            batch_size=self.batch_size,
            workers=self.threads,
            progress=lambda done, total: self.progress(self.done * total + done, self.planned * total),
        )
        self.done += 1
        return measured

    def _try(self, floats: tuple[str, ...]) -> Trial:
        reference = self.reference
        assert reference is not None
        measured = reference if floats == self.names else self._rounded(floats)
        agreement = check_accuracy(reference, measured, max_drop=self.max_drop)
        return Trial(floats, agreement, measured.report)

    def _rounded(self, floats: tuple[str, ...]) -> Measured:
        graph = quantized_graph(self.model, place(self.model, "cpu", floats=floats), self.table)
        with on_a_processor(self.bundle, graph.SerializeToString(deterministic=True)) as alone:
            return self.measured(alone, "int8")


def _choose(bench: _Bench, layers: Sequence[Layer], rounded: Trial, rows: Sequence[Sensitivity]) -> Trial:
    """See `search`."""
    if rounded.meets:
        return rounded
    multiply_adds: Counter[str] = Counter()
    for layer in layers:
        multiply_adds[layer.name] += layer.multiply_adds

    def gain_per_layer(row: Sensitivity) -> float:
        return (rounded.error - row.error) / len(row.layers)

    order = sorted(rows, key=lambda row: (-gain_per_layer(row), row.group.multiply_adds))
    floats = fewest_floats(lambda chosen: bench.trial(chosen).meets, [row.layers for row in order], multiply_adds)
    if floats is not None:
        return bench.trial(floats)
    rounding = [trial for trial in bench.trials.values() if trial.floats != bench.names]
    return min(rounding, key=lambda trial: (trial.drop, len(trial.floats)))
