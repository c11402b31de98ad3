"""Rules for the structure of `receiver/`, each with a message that says what to do."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import receiver

ROOT = Path(receiver.__file__).parent
LINES_MAX = 500

#: Modules outside `core/` without async, clock, randomness, logging, network and files, as all modules of `core/` are:
#: their results follow from their arguments.
PURE_ELSEWHERE = {
    "edge.admission",
    "edge.auth",
    "edge.conversation",
    "edge.head",
    "backends.kafka.failures",
    "backends.kafka.records",
    "backends.kafka.session_table",
    "backends.kafka.settlement",
    "backends.kafka.standing",
    "backends.packing",
    "headers",
    "edge.peers",
    "qod.difference",
    "qod.model",
    "qod.telling",
    "edge.room",
    "shown",
    "simulator.chance",
    "simulator.creation",
    "simulator.dialects",
    "simulator.faults",
    "simulator.oauth",
    "simulator.plan",
    "simulator.sessions",
}
#: Other modules that a pure module may import; of these only functions of their arguments may be used.
PURE_IMPORTS = {
    "base64",
    "binascii",
    "collections",
    "collections.abc",
    "contextlib",
    "dataclasses",
    "datetime",
    "enum",
    "fnmatch",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "http",
    "ipaddress",
    "itertools",
    "json",
    "jwt",
    "jwt.types",
    "math",
    "msgspec",
    "operator",
    "orjson",
    "pydantic",
    "pydantic.alias_generators",
    "re",
    "struct",
    "tomlkit",
    "tomllib",
    "types",
    "typing",
    "urllib.parse",
    "zlib",
}
#: Names that read a clock or a file without an import.
IMPURE_CALLS = {"now", "utcnow", "today", "open", "print", "input", "exec", "eval", "__import__"}

#: A module imports only modules of the lines above its own.
LAYERS = (
    {"backoff"},
    {
        "answers",
        "edge.conversation",
        "core.errors",
        "core.rfc3339",
        "core.topics",
        "core.value",
        "edge.peers",
        "edge.room",
        "headers",
        "shown",
        "tls",
    },
    {"client_credentials", "core.body", "core.event"},
    {"core.facts", "core.marks", "core.message", "core.notification"},
    {"core.session", "qod.model"},
    {"core.headers", "qod.telling"},
    {"core.dead_letter", "core.routes", "core.session_record", "core.status_record"},
    {"edge.admission", "edge.arriving", "edge.auth", "edge.head", "inbox", "qod.difference", "reader"},
    {"edge.issuers", "process.node", "core.router", "log", "metrics", "request_lines"},
    {"telemetry"},
    {"edge.connection", "dispatcher", "edge.intake", "replay"},
    {"edge.app", "edge.express", "operations"},
    {"ops"},
    {"backends.kafka.failures"},
    {
        "backends.kafka.broker",
        "backends.kafka.fetching",
        "backends.kafka.tokens",
        "backends.kafka.records",
        "backends.kafka.session_table",
        "backends.kafka.settlement",
        "backends.kafka.standing",
        "backends.packing",
    },
    {"backends.kafka.connection"},
    {"backends.kafka.known", "backends.kafka.limits"},
    {"backends.kafka.batches", "backends.kafka.markers", "backends.kafka.reader", "backends.kafka.topics"},
    {"backends.kafka.inbox", "backends.kafka.writing"},
    {"backends.kafka.producer"},
    {"backends.kafka.scan"},
    {"backends.kafka.feed", "backends.kafka.repeats", "backends.kafka.writer"},
    {"backends.kafka.rivals"},
    {"backends.kafka.lane"},
    {"backends.kafka.membership"},
    {"backends.directory", "backends.reserve", "backends.sqlite.schema"},
    {"backends.sqlite.mark", "backends.sqlite.salvage"},
    {"backends.sqlite.check", "backends.sqlite.healing", "backends.sqlite.view"},
    {"backends.sqlite.file"},
    {"backends.sqlite.node"},
    {"backends.set_aside"},
    {"backends.spool_disk"},
    {"backends.spool"},
    {"backends.shared_spool"},
    {"settings_problems"},
    {"settings_layers"},
    {"settings_fields"},
    {"settings_auth"},
    {"settings"},
    {"secret_file"},
    {"qod.listing"},
    {"qod.client"},
    {"qod.reconciler"},
    {"console", "process.reconciling"},
    {
        "process.addresses",
        "process.cluster",
        "process.directory",
        "process.distant",
        "process.part",
        "process.ports",
        "process.routing",
    },
    {"process.clustered", "process.embedded", "process.receiving"},
    {"export", "process.store"},
    {"process.run"},
    {"process.workers"},
    {"simulator.chance", "simulator.creation", "simulator.oauth", "simulator.plan", "simulator.timers"},
    {"simulator.sessions"},
    {"simulator.dialects", "simulator.ledger"},
    {"simulator.faults"},
    {"simulator.notifier"},
    {"simulator.network"},
    {"simulator.api"},
    {"simulator.control"},
    {"simulator.server"},
    {"demo.application", "demo.ledger"},
    {"demo.comparison"},
    {"demo.tally"},
    {"demo.screen"},
    {"demo"},
    {"cli.failed"},
    {"cli.options", "cli.toml"},
    {"cli.reference"},
    {"cli.reconcile", "cli.topics"},
    {
        "cli.session",
        "cli.check_config",
        "cli.check_data",
        "cli.demo",
        "cli.export",
        "cli.tail",
        "cli.replay",
        "cli.serve",
        "cli.sessions",
        "cli.simulate",
        "cli.token",
    },
    {"cli"},
    {"__main__"},
)


class Import(NamedTuple):
    """An import, of a module of ours or of another's."""

    line: int
    module: str


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_name(path): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
TREES = {module: ast.parse(source) for module, source in SOURCES.items()}
#: Modules that hold more than a docstring.
MODULES = [module for module, tree in TREES.items() if len(tree.body) > 1]
PURE = PURE_ELSEWHERE.union(module for module in MODULES if module.startswith("core."))
HEIGHT = {module: height for height, layer in enumerate(LAYERS) for module in layer}


def _imports(module: str) -> Iterator[Import]:
    """Every import of a module, anywhere in it, by its full name; for our modules without the package's name."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"receiver/{module}: line {node.lineno} imports relatively; write the full name"
            parent = node.module or ""
            names = [
                f"{parent}.{each.name}" if f"{parent}.{each.name}".removeprefix("receiver.") in SOURCES else parent
                for each in node.names
            ]
        else:
            continue
        yield from (Import(node.lineno, name) for name in sorted(set(names)))


def _ours(module: str) -> list[Import]:
    return [
        Import(line, name.removeprefix("receiver.")) for line, name in _imports(module) if name.startswith("receiver.")
    ]


def _others(module: str) -> list[Import]:
    return [each for each in _imports(module) if each.module.partition(".")[0] != "receiver"]


def _closure(module: str) -> set[str]:
    """A module, and all modules that it imports in turn."""
    found, waiting = {module}, [module]
    while waiting:
        news = {each.module for each in _ours(waiting.pop())} - found
        found |= news
        waiting += news
    return found


def test_every_module_has_its_place() -> None:
    """Each module is in one line of LAYERS, and LAYERS names no other."""
    assert sum(map(len, LAYERS)) == len(HEIGHT), "a module stands in two lines of LAYERS"
    missing, gone = set(MODULES) - HEIGHT.keys(), HEIGHT.keys() - set(MODULES)
    assert not missing, f"put {sorted(missing)} into a line of LAYERS: below all that it may import"
    assert not gone, f"take {sorted(gone)} out of LAYERS"
    assert set(MODULES) >= PURE, f"take {sorted(PURE - set(MODULES))} out of PURE"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    """A module imports only from the lines above its own: the data's path knows nothing of servers, displays and
    settings.
    """
    wrong = [each for each in _ours(module) if HEIGHT[each.module] >= HEIGHT[module]]
    assert not wrong, (
        f"{module} must not import {wrong}: pass in what it needs from there as an argument, "
        "or move what both need into a module above the two"
    )


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_import_what_is_pure(module: str) -> None:
    """A pure module imports pure modules, and of others only those whose functions depend on their arguments alone."""
    wrong = [each for each in _others(module) if each.module not in PURE_IMPORTS]
    assert not wrong, (
        f"{module} is pure but imports {wrong}: take time, randomness, files and the network's answers as arguments, "
        "or, if what you import is a function of its arguments too, add it to PURE_IMPORTS"
    )
    impure = [each for each in _ours(module) if each.module not in PURE]
    assert not impure, f"{module} is pure but imports {impure}: move what it needs from there into a pure module"


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_wait_for_nothing_and_ask_nobody(module: str) -> None:
    """A pure module has no async function, reads no clock, and opens and prints nothing."""
    for node in ast.walk(TREES[module]):
        line = f"receiver/{module} line {getattr(node, 'lineno', 0)}"
        asynchronous = isinstance(node, ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await)
        assert not asynchronous, f"{line}: a pure module is not async; let its caller wait, and pass in the result"
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            assert name not in IMPURE_CALLS, f"{line} calls {name}: take what it tells as an argument, such as `now`"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("demo")])
def test_the_demo_does_not_know_the_parser(module: str) -> None:
    """The demo's judge spells names itself: if judge and parser shared code, they would share mistakes."""
    direct = {each.module for each in _ours(module)}
    assert "notification" not in direct, f"{module} imports notification: write out what is to be told"


def test_the_demos_judge_shares_nothing_with_the_receiver() -> None:
    """The demonstration's expected results follow from the ledger; of the receiver the judge only knows how times are
    written.
    """
    foreign = _closure("demo.comparison") - {"demo.comparison", "demo.ledger", "core.rfc3339"}
    assert not foreign, f"demo/comparison.py leads to {sorted(foreign)}: judge by what the ledger says instead"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("simulator.")])
def test_the_simulator_shares_nothing_with_the_receiver(module: str) -> None:
    """The simulator is the other side of the contract: of the receiver it only knows how times are written."""
    foreign = {each for each in _closure(module) if not each.startswith("simulator.")} - {"core.rfc3339"}
    assert not foreign, f"{module} leads to {sorted(foreign)}: write out what CAMARA's texts say instead"


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("backends.")])
def test_backends_keep_and_decide_nothing(module: str) -> None:
    """A backend keeps the decisions of others: it knows neither the router nor its routes."""
    wrong = {each.module for each in _ours(module)} & {"core.router", "core.routes"}
    assert not wrong, f"{module} imports {sorted(wrong)}: what both need belongs into a module of its own in core/"


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_modules_are_short(module: str) -> None:
    """No module has more than 500 lines."""
    lines = SOURCES[module].count("\n")
    assert lines <= LINES_MAX, (
        f"{module} has {lines} lines: find the second noun in it, and give it a module of its own"
    )


TESTS = Path(__file__).parent
#: Each of these calls has a time limit of 5 s, unless another one is given.
LIMITED = {"get", "post", "put", "delete", "request", "stream", "Client", "AsyncClient"}


@pytest.mark.parametrize("path", sorted(TESTS.glob("*.py")), ids=lambda path: path.stem)
def test_requests_of_tests_say_how_long_they_wait(path: Path) -> None:
    """No test relies on a limit that a busy machine reaches: give `timeout=SECONDS_MAX` to the calls named here."""
    found = [
        f"{path.name}:{each.lineno} httpx2.{each.func.attr}"
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.Call)
        and isinstance(each.func, ast.Attribute)
        and isinstance(each.func.value, ast.Name)
        and (each.func.value.id, each.func.attr in LIMITED) == ("httpx2", True)
        and "timeout" not in {keyword.arg for keyword in each.keywords}
    ]
    assert not found


@pytest.mark.parametrize("module", MODULES)
def test_no_cancellation_is_lost(module: str) -> None:
    """`asyncio.wait_for` isn't used: it loses a cancellation that comes while the awaited task ends (Python 3.11)."""
    assert "wait_for(" not in SOURCES[module], f"{module}: wait within `async with asyncio.timeout(…)` instead"
