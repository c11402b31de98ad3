"""Builds the receiving side from the settings: the public port's application, and the authenticator of senders."""

from datetime import datetime

from receiver.edge.admission import Admission
from receiver.edge.app import EdgeApp
from receiver.edge.auth import Credentials, Issuer, StaticToken
from receiver.edge.intake import Intake, Limits
from receiver.edge.issuers import Authenticator, KeySource
from receiver.inbox import Inbox
from receiver.process.ports import connections_that_fit
from receiver.secret_file import mint_secret
from receiver.settings import Settings
from receiver.telemetry import Telemetry


def build_edge(settings: Settings, inbox: Inbox, telemetry: Telemetry) -> tuple[EdgeApp, Authenticator]:
    """The application of the public port, and the authenticator of senders."""
    edge, auth = settings.edge, settings.auth
    credentials = Credentials(
        tokens=[
            StaticToken(
                token.sender, bytes.fromhex(token.sha256), _timestamp(token.not_before), _timestamp(token.not_after)
            )
            for token in auth.tokens
        ],
        mint_secret=mint_secret(settings),
        issuers=[
            Issuer(
                each.issuer,
                each.audience,
                each.algorithms,
                each.sender,
                each.sender_claim,
                each.leeway_seconds,
                each.sender_prefix,
                each.audience_optional,
            )
            for each in auth.jwt
        ],
        anonymous=auth.anonymous,
    )
    sources = {
        each.issuer: KeySource(
            each.jwks_url, each.refresh_min_seconds, each.refresh_max_seconds, each.fetch_timeout_seconds
        )
        for each in auth.jwt
    }
    authenticator = Authenticator(credentials, sources)
    admission = Admission(
        in_flight_max=edge.in_flight_max,
        in_flight_bytes_max=edge.in_flight_bytes_max,
        share=edge.sender_share,
        share_bytes=max(edge.sender_share_bytes, edge.body_bytes_max),
        rate_per_second=edge.rate_per_second,
        rate_burst=edge.rate_burst,
    )
    intake = Intake(
        authenticate=authenticator,
        admission=admission,
        inbox=inbox,
        telemetry=telemetry,
        limits=Limits(
            edge.body_bytes_max,
            edge.query_tokens,
            [name.lower().encode() for name in auth.headers],
            edge.trusted_proxies,
        ),
    )
    return EdgeApp(intake, edge.path), authenticator


def fitted(settings: Settings, telemetry: Telemetry) -> Settings:
    """The settings, with no more connections than there are file descriptors for."""
    edge = settings.edge
    fitting = connections_that_fit(edge.connections_max, telemetry)
    changes = {
        "connections_max": fitting,
        "connections_per_address_max": max(1, edge.connections_per_address_max * fitting // edge.connections_max),
    }
    return settings.model_copy(update={"edge": edge.model_copy(update=changes)})


def _timestamp(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
