"""Uses of libraries beyond their promises: any release may change these without notice."""

import hashlib
import re
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.test_architecture import ROOT, SOURCES

DEPENDENCIES = {
    requirement.name: requirement
    for requirement in map(
        Requirement, tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    )
}

#: Modules whose internals ours rely on, and the beginning of each one's SHA-256.
MODULES = {
    "uvicorn.protocols.http.flow_control": "d39d16560df512f3",
    "uvicorn.protocols.http.httptools_impl": "1d4e1c579df41684",
    "uvicorn.server": "c1be9d133467a42a",
    "aiokafka.admin.client": "d5ed18b9ed24331f",
    "aiokafka.client": "d20532ad5b41aa62",
    "aiokafka.conn": "b841c4f64a9767e1",
    "aiokafka.consumer.consumer": "24f84531f97fcfeb",
    "aiokafka.consumer.fetcher": "d7ee9eeb185c5c6e",
    "aiokafka.consumer.group_coordinator": "de3548a072bb0b22",
    "aiokafka.consumer.subscription_state": "1fe3b1b52e7b3838",
    "aiokafka.producer.message_accumulator": "61ed4194069ca7ba",
    "aiokafka.producer.producer": "2a9ba914c20db832",
    "aiokafka.producer.sender": "e5b7fbdb7379ef9c",
    "aiokafka.producer.transaction_manager": "9636848a74bf43d8",
    "aiokafka.protocol.api": "8104844ba843b695",
    "aiokafka.protocol.produce": "8e93fd2872997079",
}
PRIVATE = re.compile(r"\.(_[a-zA-Z]\w*)")


def _source(module: str) -> bytes:
    spec = find_spec(module)
    assert spec is not None, f"{module} is gone: look where what we used of it is now"
    assert spec.origin is not None
    return Path(spec.origin).read_bytes()


@pytest.mark.parametrize("module", MODULES)
def test_the_insides_of_libraries_are_those_that_we_know(module: str) -> None:
    """A module that we rely on beyond its promises is the one that was read."""
    digest = hashlib.sha256(_source(module)).hexdigest()[:16]
    assert digest == MODULES[module], (
        f"{module} changed: read the difference beside what our code does with its private members and with methods "
        f"of its that it overrides, run the tests of edge/ or backends/kafka/, and then write down {digest}"
    )


@pytest.mark.parametrize("name", sorted({module.partition(".")[0] for module in MODULES}))
def test_no_minor_release_comes_unread(name: str) -> None:
    """The next minor release of a library whose internals we use is not installed automatically."""
    installed = Version(version(name))
    following = f"{installed.major}.{installed.minor + 1}.0"
    assert following not in DEPENDENCIES[name].specifier, f"cap {name} below {following} in pyproject.toml"


@pytest.mark.parametrize("module", [each for each in SOURCES if each.startswith("backends.kafka")])
def test_private_members_are_known(module: str) -> None:
    """Each used private member of aiokafka belongs to a module in the table above."""
    known = b"".join(map(_source, MODULES)).decode()
    used = {
        name
        for line in SOURCES[module].splitlines()
        if "noqa: SLF001" in line and "# of this class" not in line
        for name in PRIVATE.findall(line.partition("#")[0])
    }
    missing = sorted(name for name in used if not re.search(rf"\b{name}\b", known))
    assert not missing, f"{module} uses {missing}, which no module of MODULES has: add the one that it is of"
