"""Tokens for SASL OAUTHBEARER, as aiokafka asks for them."""

from aiokafka.abc import AbstractTokenProvider

from receiver.client_credentials import ClientCredentials

#: Shorter than a client's time to start, so that the start fails with the token server's reason.
TIMEOUT_SECONDS = 4.0


class KafkaTokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Tokens by client credentials, shared by all connections."""

    def __init__(
        self, url: str, client_id: str, client_secret: str, scope: str | None, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        login = url, client_id, client_secret, scope
        self.tokens = ClientCredentials(*login, timeout_seconds=timeout_seconds, audience="Kafka", reason="kafka")

    async def token(self) -> str:
        """A valid token, fetched if necessary. Raises Unavailable."""
        return await self.tokens.token()
