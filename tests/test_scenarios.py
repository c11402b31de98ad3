"""The scenarios of the benchmarks: our receiver passes all of them, and a receiver that fails is found."""

import asyncio
from pathlib import Path

import pytest

from tests.benchmarks import scenarios
from tests.benchmarks.peers.trial import Answer, Found, Trial, own_broker
from tests.benchmarks.scenarios import Cell, Cells, play, started
from tests.kafka_cluster import Brokers, Cluster

QUIET_SECONDS = 2


@pytest.fixture(scope="module")
def outcomes(kafka: Brokers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cells]:
    """The outcomes of our receiver and of the handler."""
    if not isinstance(kafka, Cluster):
        pytest.skip("the cluster of KAFKA_BOOTSTRAP_SERVERS is not ours to disturb")
    return asyncio.run(_played(kafka, tmp_path_factory.mktemp("receivers")))


async def _played(cluster: Cluster, directory: Path) -> dict[str, Cells]:
    """Scenarios that leave the broker alone are played on several receivers at the same time, to save time."""
    async with (
        own_broker(cluster) as broker,
        started("ours", broker, directory) as one,
        started("ours", broker, directory) as other,
        started("handler", broker, directory) as handler,
    ):
        trials = [Trial(receiver, broker, quiet_seconds=QUIET_SECONDS) for receiver in (one, other, handler)]
        first, second, theirs = await asyncio.gather(
            play(trials[0], ["load"]),
            play(trials[1], ["fan-out", "concurrent"]),
            play(trials[2], ["fan-out", "concurrent"]),
        )
        ours = {**first, **second, **await play(trials[0], ["outage", "copies", "lost-answer"])}
    return {"ours": ours, "handler": theirs}


def test_ours_comes_through_all_of_them(outcomes: dict[str, Cells]) -> None:
    """A notification that was answered 204 is on all of its topics once, and the readiness check reports faults."""
    alone = {scenarios.AFTER_OUTAGE_ALONE, scenarios.AFTER_FAN_OUT_ALONE}
    assert set(outcomes["ours"]) == set(scenarios.ROWS) - alone
    assert not {row: cell.text for row, cell in outcomes["ours"].items() if not cell.right}


def test_a_plain_handler_does_not(outcomes: dict[str, Cells]) -> None:
    """The handler, which writes each topic separately and remembers nothing, repeats a repeated post and leaves a topic
    out.
    """
    torn = Cell("2 on status, 0 on unavailable: the sender knows", right=False)
    assert outcomes["handler"][scenarios.AFTER_FAN_OUT] == torn
    assert outcomes["handler"][scenarios.CONCURRENT] == Cell("6 of 6 kept, 72 records of them", right=False)


@pytest.mark.parametrize(
    ("found", "statuses", "told"),
    [
        (Found(1, 1), [204, 204], "kept once"),
        (Found(0, 0), [408, 204], "lost"),
        (Found(0, 0), [408, None], "not kept, the sender knows"),
        (Found(1, 0), [408, 204], "1 on status, 0 on unavailable: lost there"),
        (Found(2, 1), [204, 204], "kept 2 times"),
    ],
)
def test_the_outcome_in_words(found: Found, statuses: list[int | None], told: str) -> None:
    """A notification counts as lost if it was answered 2xx and is not on both topics; once on each is right."""
    cell = scenarios.one(found, *(Answer(status, 0.1) for status in statuses))
    assert cell == Cell(told, right=found == (1, 1))
