"""A processor played to OpenVINO: what tests want of its arithmetic does not depend on the machine they run on."""

from typing import Any

from reidkit.runtime.openvino_core import CORE


class PlayedProcessor:
    """The core, but for what its processor says it computes in; what it was asked for is kept, and done in float32."""

    def __init__(self, *offered: str) -> None:
        self.offered = offered
        self.asked: dict[str, object] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(CORE, name)

    def get_property(self, *names: str) -> Any:
        return list(self.offered) if names[-1] == "OPTIMIZATION_CAPABILITIES" else CORE.get_property(*names)

    def compile_model(self, model: Any, device: str, config: dict[str, object]) -> Any:
        self.asked = dict(config)
        return CORE.compile_model(model, device, {**config, "INFERENCE_PRECISION_HINT": "f32"})
