"""`reid doctor`: what this machine can run, and what is missing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from reidkit.bundle import open_bundle
from reidkit.cli import console
from reidkit.cli.outputs import check_outputs, write_json
from reidkit.config import to_dict
from reidkit.deploy.doctor import Card, Diagnosis, Library, diagnose
from reidkit.report.results import printable


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="A model whose engines are to be looked at, too.", metavar="[BUNDLE]")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write what was found as JSON.")] = None,
) -> Diagnosis:
    """Say which engines, TensorRT flavours, cards and drivers are here, and what would install those that are not."""
    check_outputs({"--json": json_file})
    opened = None if bundle is None else open_bundle(bundle)
    with console.spinner("looking"):
        found = diagnose(opened)
    _print_machine(found)
    _print_libraries(found)
    if found.stored is not None:
        _print_stored(found)
    if json_file is not None:
        write_json(json_file, to_dict(found))
    return found


def _print_machine(found: Diagnosis) -> None:
    table = console.table(None, "machine", "")
    rows = {
        "reidkit": found.reidkit,
        "Python": found.python,
        "system": found.system,
        "processor": found.processor,
        "NVIDIA driver": _driver(found),
    }
    for name, value in rows.items():
        table.add_row(name, _cell(value))
    for card in found.cards:
        table.add_row("card", _cell(_card(card)))
    if found.no_cards is not None:
        table.add_row("CUDA", _cell(found.no_cards))
    console.out.print(table)


def _driver(found: Diagnosis) -> str:
    if found.driver is None and found.cuda is None:
        return "none" if found.cards else "none, and no NVIDIA card seen"
    known = [] if found.cuda is None else [f"CUDA up to {found.cuda}"]
    return ", ".join([found.driver or "of unknown version", *known])


def _card(card: Card) -> str:
    facts = [] if card.compute_capability is None else [f"compute capability {card.compute_capability}"]
    facts += [] if card.memory is None else [f"{card.memory / 2**30:.1f} GiB"]
    facts += [f"fits {' and '.join(card.flavours)}"] if card.flavours else []
    return f"{card.name}: {', '.join(facts)}" if facts else card.name


def _print_libraries(found: Diagnosis) -> None:
    table = console.table(None, "runtime", "library", "version", "")
    for name, library in found.engines.items():
        table.add_row(name, library.name, _cell(library.version or ""), _state(library))
    for library in found.beside:
        table.add_row("beside TensorRT", library.name, _cell(library.version or ""), _state(library))
    console.out.print()
    console.out.print(table)
    # Commands stand in lines of their own, whole, to be copied.
    fixes = [library.fix for library in (*found.engines.values(), *found.beside) if library.fix is not None]
    if fixes:
        console.out.print()
        console.say("to install what is missing, as far as it is wanted:")
        for fix in dict.fromkeys(fixes):
            console.say(f"  {fix}")


def _state(library: Library) -> Text:
    if library.problem is not None:
        return Text.assemble(("broken: ", "bold red"), _cell(library.problem))
    return Text("ready", "green") if library.usable else Text("not installed", "yellow")


def _print_stored(found: Diagnosis) -> None:
    console.out.print()
    if not found.stored:
        console.say("no engine was built for this bundle")
        return
    table = console.table(None, "engine of the bundle", "")
    for engine in found.stored:
        state = _cell("; ".join(engine.misfits)) if engine.misfits else Text("fits", "green")
        table.add_row(_cell(engine.name), state)
    console.out.print(table)


def _cell(text: str) -> Text:
    """What libraries, drivers and strangers' files say: no markup, no control characters."""
    return Text(printable(text))
