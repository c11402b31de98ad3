"""The directory of the settings, as the process that serves it opens it, and as others do that look on."""

from collections.abc import Callable

from receiver.backends.sqlite.node import ServedDirectory, SqliteReader
from receiver.core.topics import TopicNames
from receiver.reader import PassedOver, nobody
from receiver.settings import Settings


def open_directory(
    settings: Settings,
    appended: Callable[[int, float], None] = lambda _count, _seconds: None,
    passed_over: PassedOver = nobody,
) -> ServedDirectory:
    """The directory of the settings, to be served by this process alone. Raises Unavailable."""
    return ServedDirectory(
        settings.data,
        sessions_topic=TopicNames(settings.prefix).sessions,
        append_timeout_seconds=settings.edge.append_timeout_seconds,
        appended=appended,
        passed_over=passed_over,
    )


def open_reader(
    settings: Settings, passed_over: PassedOver = nobody, damaged: Callable[[], None] = lambda: None
) -> SqliteReader:
    """A reader of the directory of the settings, beside whoever serves it. Raises Unavailable."""
    return SqliteReader(settings.data, TopicNames(settings.prefix).sessions, passed_over, damaged)
