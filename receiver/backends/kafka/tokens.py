"""Tokens for SASL OAUTHBEARER, as aiokafka asks for them."""

from aiokafka.abc import AbstractTokenProvider

from receiver import client_credentials

#: Below the time that a cluster has to answer at the start, so that the reason is told there.
TIMEOUT_SECONDS = 4.0


class ClientCredentials(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Tokens by client credentials, the same for all connections; see `receiver.client_credentials`."""

    def __init__(
        self,
        url: str,
        client_id: str,
        client_secret: str,
        scope: str | None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._tokens = client_credentials.ClientCredentials(
            url,
            client_id,
            client_secret,
            scope,
            timeout_seconds=timeout_seconds,
            audience="Kafka",
            reason="kafka",
        )

    async def token(self) -> str:
        """See aiokafka. Raises Unavailable."""
        return await self._tokens.token()

    @property
    def seconds_left(self) -> float:
        """How long the token that is at hand can be used; none is at hand where this is not above 0."""
        return self._tokens.seconds_left
