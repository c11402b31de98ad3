"""The position at which a lane begins to read: each way in which positions and logs may fail to fit."""

import pytest

from receiver.backends.kafka.standing import Doubt, Place, Standing, place_of, standing

NOW, WAS, TABLE, OTHER_TABLE = "now", "was", "table", "other"


@pytest.mark.parametrize(
    ("committed", "traces", "log", "wanted"),
    [
        (None, {}, (0, 0), Standing(0)),
        (None, {}, (5, 9), Standing(5)),
        (Place(7, 1, NOW, TABLE), {NOW: 7}, (5, 9), Standing(7)),
        (Place(9, 1, NOW, TABLE), {NOW: 7, WAS: 80}, (5, 9), Standing(9)),
        (Place(7, 1, NOW, TABLE), {NOW: 80}, (5, 9), Standing(7)),  # it was longer once, and that was settled
        (Place(7), {"": 7}, (5, 9), Standing(7)),  # by an older release
        (Place(7), {WAS: 7}, (5, 9), Standing(7)),
        (Place(7, 1, NOW, TABLE), {"": 7, NOW: 7}, (5, 9), Standing(7)),
        (None, {"": 7}, (5, 9), Standing(5, Doubt.INBOX_ANEW)),
        (None, {"": 7, NOW: 8}, (5, 9), Standing(8)),
        (None, {NOW: 8, WAS: 80}, (5, 9), Standing(8)),
        (None, {"": 0, NOW: 0}, (5, 9), Standing(5)),  # exported records have no place
        (None, {WAS: 7}, (0, 0), Standing(0, Doubt.INBOX_ANEW)),
        (None, {WAS: 7}, (0, 90), Standing(0, Doubt.INBOX_ANEW)),
        (Place(7, 1, WAS, TABLE), {WAS: 7}, (2, 90), Standing(2, Doubt.INBOX_ANEW)),
        (Place(7, 1, WAS, TABLE), {NOW: 8}, (2, 90), Standing(8)),  # another cluster's, copied over ours
        (Place(70, 1, WAS, OTHER_TABLE), {}, (2, 90), Standing(2, Doubt.INBOX_ANEW)),
        (Place(10, 1, NOW, TABLE), {}, (5, 9), Standing(None, Doubt.INBOX_SHORTER)),
        (None, {NOW: 10}, (5, 9), Standing(None, Doubt.INBOX_SHORTER)),
        (Place(10), {}, (5, 9), Standing(5, Doubt.INBOX_ANEW)),
        (None, {"": 10}, (5, 9), Standing(5, Doubt.INBOX_ANEW)),
        (Place(4, 1, NOW, TABLE), {}, (5, 9), Standing(5, Doubt.INBOX_REMOVED)),
        (Place(7, 1, NOW, OTHER_TABLE), {}, (5, 9), Standing(5, Doubt.SESSIONS_ANEW, 7)),
        (Place(7, 1, NOW, OTHER_TABLE), {NOW: 3}, (5, 9), Standing(5, Doubt.SESSIONS_ANEW, 7)),
        (Place(7, 1, NOW, ""), {}, (5, 9), Standing(7)),
        (Place(7, 1, NOW, TABLE), {"": 8}, (5, 9), Standing(7, Doubt.FOREIGN_POSITION)),  # a record without an id
        (Place(7, 1, NOW, TABLE), {"": 8, NOW: 9}, (5, 9), Standing(9)),
        (Place(7, 1, NOW, TABLE), {"": 80}, (5, 9), Standing(7)),
        (Place(9, is_ours=False), {}, (5, 9), Standing(5, Doubt.FOREIGN_POSITION)),
        (Place(9, is_ours=False), {NOW: 8}, (5, 9), Standing(8, Doubt.FOREIGN_POSITION)),
        (Place(9, is_ours=False), {"": 9, WAS: 8}, (5, 9), Standing(5, Doubt.FOREIGN_POSITION)),
        (Place(6, is_ours=False), {NOW: 10}, (5, 9), Standing(None, Doubt.INBOX_SHORTER)),
    ],
)
def test_a_lane_stands_where_its_positions_fit(
    committed: Place | None, traces: dict[str, int], log: tuple[int, int], wanted: Standing
) -> None:
    """No kept notification is passed over, and no position is waited for."""
    beginning, end = log
    assert standing(committed, traces, inbox_id=NOW, sessions_id=TABLE, beginning=beginning, end=end) == wanted


@pytest.mark.parametrize("committed", [Place(7, 1, "", ""), Place(7, 1, WAS, OTHER_TABLE)])
def test_brokers_that_tell_no_ids_are_trusted(committed: Place) -> None:
    """Without topic ids every position counts, as in earlier releases."""
    assert standing(committed, {WAS: 6}, inbox_id="", sessions_id="", beginning=0, end=9) == Standing(7)


@pytest.mark.parametrize("place", [Place(0), Place(3, 17, NOW, TABLE, 12), Place(3, 17, "", "", 12)])
def test_a_place_is_read_as_it_was_written(place: Place) -> None:
    """The group's metadata gives the place back."""
    assert place_of(place.position, f"{place.metadata}#4.0.12") == place


@pytest.mark.parametrize(
    ("metadata", "clock_micros"), [("", 0), ("17", 17), ("from elsewhere", 0), ("a b c d", 0), ("1 2 3 4 5", 1)]
)
def test_other_metadata_tells_no_ids(metadata: str, clock_micros: int) -> None:
    """An older release noted only the clock, and other programs note anything."""
    assert place_of(3, f"{metadata}#4.0.12") == Place(3, clock_micros)
    assert place_of(3, metadata) == Place(3, clock_micros, is_ours=False)
