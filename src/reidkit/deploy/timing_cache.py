"""What the kernels of TensorRT took on a card, kept from build to build."""

import logging
from pathlib import Path
from typing import Any

from reidkit.atomic import output_file
from reidkit.cache import default_folder
from reidkit.errors import OutputError
from reidkit.runtime.engine_store import EngineFacts
from reidkit.runtime.flavour import Flavour

_SECONDS = 30.0  # that one build waits for another that writes its timings

_logger = logging.getLogger(__name__)


class TimingCache:
    """What kernels of a library took on a card: kept for the next build, of whatever network.

    Builds beside each other begin with what was there, and each adds its own. A folder that cannot be used costs a line
    in the log and no build. TensorRT-RTX times nothing while it builds.

    Args:
        flavour: that builds.
        facts: of the engine that is to be built.
        config: of the builder, which is given what was kept.
    """

    def __init__(self, flavour: Flavour, facts: EngineFacts, config: Any) -> None:
        folder = default_folder("timing") if flavour.needs_card else None
        self._file: Path | None = None
        if folder is None:
            return
        words = (facts.runtime, facts.version, facts.gpu or "", facts.driver or "")
        name = "-".join("".join(c if c.isalnum() or c == "." else "_" for c in word.lower()) for word in words)
        self._file = folder / f"{name}.cache"
        self._config = config
        try:
            cache = self._stored(self._file)
        except OSError as error:
            _logger.warning("The timing cache is not used: %s", error)
            cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            _logger.warning("The timing cache %s is of something else, and begins anew", self._file)
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def save(self) -> None:
        """Keeps it, together with what other builds have kept meanwhile."""
        cache = self._config.get_timing_cache() if self._file else None
        if self._file is None or cache is None:
            return
        from filelock import FileLock  # which is there: the store's lock is held while an engine is built

        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._file.with_name(f".{self._file.name}.lock"), timeout=_SECONDS):
                others = self._stored(self._file)
                if others is not None:
                    cache.combine(others, False)  # which refuses those of another card; of what both have, ours stays
                with output_file(self._file) as temporary:
                    temporary.write_bytes(bytes(cache.serialize()))
        except (OutputError, OSError, NotImplementedError) as error:  # the last of a file system without locks
            _logger.warning("The timing cache is not kept: %s", error)

    def _stored(self, file: Path) -> Any:
        """As it lies there, empty where nothing does; None where the library cannot read it."""
        return self._config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
