"""Parity as a gate: an engine must give what the source framework gave, to within the tolerance of its precision."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from reidkit.bundle import Bundle, Golden
from reidkit.errors import InputError, ReidkitError
from reidkit.runtime import ENGINES, RuntimeName, load
from reidkit.types import Embedder, Precision


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an embedding may be from the golden one.

    Attributes:
        relative: Euclidean length of the difference over that of the golden embedding.
        cosine: between the two, at least this.
    """

    relative: float
    cosine: float


TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(1e-4, 0.99999),
    "tf32": Tolerance(2e-2, 0.9999),
    "float16": Tolerance(2e-2, 0.9999),
    "bfloat16": Tolerance(5e-2, 0.999),
    "int8": Tolerance(2.5e-1, 0.97),
}


@dataclass(frozen=True, slots=True)
class Parity:
    """How near an engine comes to the golden embeddings; the worst over all crops, batched and one by one.

    Attributes:
        max_abs: largest difference of a value.
        max_rel: largest Euclidean length of a difference, over that of the golden embedding.
        min_cosine: smallest cosine.
    """

    runtime: str
    device: str
    precision: Precision
    max_abs: float
    max_rel: float
    min_cosine: float
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        """Whether every crop is within the tolerance; a NaN never is."""
        return self.max_rel <= self.tolerance.relative and self.min_cosine >= self.tolerance.cosine


@dataclass(frozen=True, slots=True)
class Refusal:
    """An engine that could not open the bundle, or not on that device."""

    runtime: str
    device: str
    error: ReidkitError

    @property
    def passed(self) -> bool:
        """Never."""
        return False


def verify(bundle: Bundle, runtimes: Sequence[RuntimeName], *, device: str | None = None) -> list[Parity | Refusal]:
    """Holds engines to a bundle's golden embeddings; one that cannot open it does not keep the others from it.

    Args:
        bundle: an open bundle.
        runtimes: to check; `reidkit.runtime.installed(bundle)` are those that are here and can open it.
        device: of the engines.

    Raises:
        BundleError: the golden file does not fit the manifest.
    """
    golden = bundle.golden()
    rows: list[Parity | Refusal] = []
    for name in runtimes:
        try:
            rows.append(check_parity(load(bundle, name, device=device), golden))
        except ReidkitError as error:
            rows.append(Refusal(name, device or ENGINES[name].device, error))
    return rows


def check_parity(embedder: Embedder, golden: Golden) -> Parity:
    """Compares an open engine with golden embeddings, on the whole batch and crop by crop.

    Raises:
        InputError: no golden crop, or the engine's embeddings have another width.
    """
    if len(golden.crops) == 0:
        raise InputError("There is no golden crop to compare with", expected="at least one", fix="export it again")
    together = embedder.embed(golden.crops)
    if together.shape != golden.embeddings.shape:
        raise InputError(
            f"{embedder.spec.runtime} gives embeddings of another shape than the golden ones",
            got=together.shape,
            expected=golden.embeddings.shape,
        )
    alone = np.concatenate([embedder.embed(golden.crops[i : i + 1]) for i in range(len(golden.crops))])
    worst = [_differences(got, golden.embeddings) for got in (together, alone)]
    return Parity(
        runtime=embedder.spec.runtime,
        device=embedder.spec.device,
        precision=embedder.spec.precision,
        max_abs=float(np.max([w[0] for w in worst])),
        max_rel=float(np.max([w[1] for w in worst])),
        min_cosine=float(np.min([w[2] for w in worst])),
        tolerance=TOLERANCES[embedder.spec.precision],
    )


def _differences(got: Float32[np.ndarray, "n dim"], golden: Float32[np.ndarray, "n dim"]) -> tuple[float, float, float]:
    a, b = got.astype(np.float64), golden.astype(np.float64)
    lengths = np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.linalg.norm(a - b, axis=1) / lengths
        cosine = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * lengths)
        return float(np.abs(a - b).max()), float(relative.max()), float(cosine.min())
