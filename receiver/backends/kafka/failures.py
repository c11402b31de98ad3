"""What fails of a cluster, divided by what helps. Pure."""

from receiver.core.errors import Unavailable


class ClusterFailed(Unavailable):
    """Kafka can't do it now: to try again may help."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="kafka")


class TopicsUnfit(Unavailable):
    """Nothing may run on the topics as they are: somebody must change them, or the configuration."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="topics")
