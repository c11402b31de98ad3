"""The failures of a cluster, by their remedy. Pure."""

from receiver.core.errors import Unavailable


class ClusterFailed(Unavailable):
    """Kafka can't do it now; another attempt may succeed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="kafka")


class TopicsUnfit(Unavailable):
    """Nothing may run on these topics: an operator must change them, or the configuration."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="topics")
