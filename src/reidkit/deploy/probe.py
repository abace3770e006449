"""Asks one library what it is, in a process of its own: one that is broken may print, hang or take its process along.

Run as a script by `reidkit.deploy.doctor`, with the import path and a library's name; answers one line of JSON on
standard output. It imports nothing of reidkit, so that it starts in no time and cannot fail for another reason.
"""

import importlib
import json
import sys
from typing import Any

CUDA = "cuda.bindings.driver"
"""The library that is asked for the cards as well."""


def main() -> None:
    """Imports the library named on the command line and writes what it found."""
    sys.path[:] = json.loads(sys.argv[1])
    name = sys.argv[2]
    found: dict[str, Any] = {}
    try:
        library = importlib.import_module(name)
        found["version"] = version_of(library, name)
        if name == CUDA:
            found.update(cards_of(library))
        if name.startswith("tensorrt") and not hasattr(library, "Builder"):
            found["problem"] = "it is a package without the library"
    except ModuleNotFoundError as error:
        absent = error.name in (name, name.partition(".")[0], name.rpartition(".")[0])
        found["absent" if absent else "problem"] = one_line(error)
    except BaseException as error:
        found["problem"] = one_line(error)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def one_line(error: BaseException) -> str:
    """The first line of what an error says, or else what it is."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def version_of(library: Any, name: str) -> str | None:
    """The version that a library says, or that its parent package does."""
    for module in (library, sys.modules.get(name.rpartition(".")[0])):
        version = getattr(module, "__version__", None)
        if version is not None:
            return str(version)
    return None


def cards_of(driver: Any) -> dict[str, Any]:
    """Every card that CUDA's driver lets this process see, and the newest CUDA that it knows.

    Args:
        driver: the module `cuda.bindings.driver`.
    """
    try:
        checked(driver.cuInit(0))
        version = checked(driver.cuDriverGetVersion())
        cards = [card_of(driver, index) for index in range(checked(driver.cuDeviceGetCount()))]
    except Exception as error:  # what it raises without a driver differs from version to version
        return {"no_cards": one_line(error)}
    return {"cuda": f"{version // 1000}.{version % 1000 // 10}", "cards": cards}


def card_of(driver: Any, index: int) -> dict[str, Any]:
    """Name, compute capability and bytes of memory of a card.

    Raises:
        RuntimeError: the driver does not say.
    """
    device = checked(driver.cuDeviceGet(index))
    known = driver.CUdevice_attribute
    major = checked(driver.cuDeviceGetAttribute(known.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = checked(driver.cuDeviceGetAttribute(known.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    return {
        # Behind the first NUL of the buffer may be anything.
        "name": checked(driver.cuDeviceGetName(256, device)).split(b"\0", 1)[0].decode(errors="replace"),
        "compute_capability": f"{major}.{minor}",
        "memory": int(checked(driver.cuDeviceTotalMem(device))),
    }


def checked(result: Any) -> Any:
    """What a call of the driver gave, without its status.

    Raises:
        RuntimeError: the call failed.
    """
    status, *values = result
    if int(status) != 0:
        raise RuntimeError(f"the driver says {getattr(status, 'name', status)}")
    return values[0] if values else None


if __name__ == "__main__":
    main()
