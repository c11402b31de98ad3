"""The directory of the settings, opened by the process that serves it or by readers beside it."""

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
    """The settings' directory, served by this process alone. Raises Unavailable."""
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
    """A reader of the settings' directory, beside the process that serves it. Raises Unavailable."""
    return SqliteReader(settings.data, TopicNames(settings.prefix).sessions, passed_over, damaged)
