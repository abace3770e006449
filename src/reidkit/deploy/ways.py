"""The ways in which a bundle can be run here: engine, precision and, of engines that were built, how."""

from collections.abc import Sequence
from typing import NamedTuple

from reidkit.bundle import Bundle
from reidkit.runtime import ENGINES, RuntimeName, load
from reidkit.runtime.engine_store import read_store
from reidkit.types import Embedder, Precision, Via


class Way(NamedTuple):
    """An engine, its precision and how its network came to the builder; None takes what there is."""

    runtime: RuntimeName
    precision: Precision | None = None
    via: Via | None = None

    def open(self, bundle: Bundle, *, device: str | None = None) -> Embedder:
        """Opens a bundle in this way.

        Raises:
            BundleError, RuntimeMissing, ModelError, EngineError: as `reidkit.load`.
        """
        return load(bundle, self.runtime, device=device, precision=self.precision, via=self.via)

    def in_words(self) -> str:
        """Such as "tensorrt float16 by parser"."""
        by = None if self.via is None else f"by {self.via}"
        return " ".join(word for word in (self.runtime, self.precision, by) if word is not None)


INT8_ENGINES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")
"""That run a quantised bundle's graph for processors as it is."""


def ways_of(
    bundle: Bundle,
    runtimes: Sequence[RuntimeName],
    precisions: Sequence[Precision | None] = (None,),
    *,
    device: str | None = None,
) -> list[Way]:
    """Every engine in every precision; of engines that are built first, each that was built for the bundle.

    Args:
        bundle: that is to be run.
        runtimes: engines.
        precisions: None is what there is: the graph's own and, once quantised, int8 on a processor; or all that were
            built.
        device: that they are to run on; None is their usual one.
    """
    quantized = bundle.int8_model("cpu") is not None and (device or "cpu").lower() == "cpu"
    built_first = [name for name, engine in ENGINES.items() if engine.built and name in runtimes]
    store = read_store(bundle) if built_first else []
    ways: list[Way] = []
    for runtime in runtimes:
        for precision in precisions:
            built = [
                Way(runtime, facts.precision, facts.via)
                for facts in store
                if facts.runtime == runtime and precision in (None, facts.precision)
            ]
            ways += built or [Way(runtime, precision)]  # which says what to build
            if precision is None and quantized and runtime in INT8_ENGINES:
                ways.append(Way(runtime, "int8"))
    return list(dict.fromkeys(ways))
