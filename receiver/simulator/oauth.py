"""Access tokens for clients: RFC 6749's client credentials grant, and the rights of a bearer. Pure.

A token is signed and complete in itself, so that no table of tokens grows. Clients treat it as opaque.
"""

import base64
import binascii
import hmac
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote_plus

import jwt

READ = "qod:sessions:read"
WRITE = "qod:sessions:write"
SCOPES = (READ, WRITE)

_ALGORITHM = "HS256"
_AUDIENCE = "qod"
_NO_STORE = {"cache-control": "no-store", "pragma": "no-cache"}


class Client(NamedTuple):
    """A client that may have tokens."""

    client_id: str
    secret: str
    scopes: tuple[str, ...] = SCOPES


def client_of(text: str) -> Client:
    """A client from ID:SECRET or ID:SECRET:SCOPE,…. Raises ValueError."""
    client_id, _, rest = text.partition(":")
    secret, _, scopes_text = rest.partition(":")
    scopes = tuple(scopes_text.split(",")) if scopes_text else SCOPES
    if not client_id or not secret or not set(scopes) <= set(SCOPES):
        raise ValueError(f"ID:SECRET or ID:SECRET:SCOPE,… is required, with scopes of {', '.join(SCOPES)}")
    return Client(client_id, secret, scopes)


class OAuthError(Exception):
    """An error answer of RFC 6749, 5.2."""

    def __init__(self, error: str, description: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(description)
        self.status = status
        self.body = {"error": error, "error_description": description}
        self.headers = dict(_NO_STORE)
        if status is HTTPStatus.UNAUTHORIZED:
            self.headers["www-authenticate"] = 'Basic realm="token"'


class Unauthorized(Exception):
    """The bearer is refused (RFC 6750, 3). `challenge` is the value of WWW-Authenticate."""

    def __init__(self, status: HTTPStatus, message: str, challenge: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.challenge = challenge


class Tokens:
    """Grants and checks tokens. Times are seconds since 1970."""

    def __init__(self, clients: Mapping[str, Client], key: bytes, token_seconds: int) -> None:
        self._clients = clients
        self._key = key
        self._token_seconds = token_seconds

    def grant(self, authorization: str | None, form: bytes, now: float) -> tuple[dict[str, Any], dict[str, str]]:
        """The answer to a request for a token, and its headers. Raises OAuthError."""
        fields = _fields(form)
        client = self._authenticated(authorization, fields)
        grant_type = fields.get("grant_type")
        if grant_type is None:
            raise OAuthError("invalid_request", "grant_type is missing")
        if grant_type != "client_credentials":
            raise OAuthError("unsupported_grant_type", "only client_credentials is granted")
        scopes = fields["scope"].split(" ") if fields.get("scope") else list(client.scopes)
        if not set(scopes) <= set(client.scopes):
            raise OAuthError("invalid_scope", f"this client may have {' '.join(client.scopes)}")
        scope = " ".join(each for each in SCOPES if each in scopes)
        claims = {
            "aud": _AUDIENCE,
            "sub": client.client_id,
            "scope": scope,
            "iat": int(now),
            "exp": int(now) + self._token_seconds,
        }
        token = jwt.encode(claims, self._key, _ALGORITHM)
        body = {"access_token": token, "token_type": "Bearer", "expires_in": self._token_seconds, "scope": scope}
        return body, _NO_STORE

    def bearer(self, authorization: str | None, scope: str, now: float) -> str:
        """The client that presents a token with this scope. Raises Unauthorized."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthorized(HTTPStatus.UNAUTHORIZED, "an access token is required", "Bearer")
        try:
            claims = jwt.decode(
                token.strip(),
                self._key,
                [_ALGORITHM],
                audience=_AUDIENCE,
                # PyJWT would read the clock.
                options={"verify_exp": False, "verify_iat": False, "require": ["sub", "scope", "exp"]},
            )
        except jwt.InvalidTokenError:
            raise _invalid("the access token is unknown") from None
        if claims["exp"] <= now:
            raise _invalid("the access token has expired")
        if scope not in claims["scope"].split():
            challenge = f'Bearer error="insufficient_scope", scope="{scope}"'
            raise Unauthorized(HTTPStatus.FORBIDDEN, f"the access token lacks {scope}", challenge)
        return str(claims["sub"])

    def _authenticated(self, authorization: str | None, fields: Mapping[str, str]) -> Client:
        """The client, by HTTP Basic or by the form (RFC 6749, 2.3.1), not both. Raises OAuthError."""
        if authorization is not None:
            if "client_secret" in fields:
                raise OAuthError("invalid_request", "the client authenticates in two ways")
            client_id, secret = _basic(authorization)
        else:
            client_id, secret = fields.get("client_id", ""), fields.get("client_secret", "")
        client = self._clients.get(client_id)
        expected = "" if client is None else client.secret
        if not hmac.compare_digest(expected.encode(), secret.encode()) or client is None:
            raise OAuthError("invalid_client", "the client is unknown, or its secret wrong", HTTPStatus.UNAUTHORIZED)
        return client


def openid_configuration(issuer: str) -> dict[str, Any]:
    """The metadata that OpenID Connect Discovery and RFC 8414 require of an issuer with one grant and no users."""
    return {
        "issuer": issuer,
        "token_endpoint": f"{issuer}/token",
        "jwks_uri": f"{issuer}/jwks",
        "grant_types_supported": ["client_credentials"],
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [_ALGORITHM],
        "scopes_supported": list(SCOPES),
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    }


def _invalid(message: str) -> Unauthorized:
    return Unauthorized(HTTPStatus.UNAUTHORIZED, message, 'Bearer error="invalid_token"')


def _fields(form: bytes) -> dict[str, str]:
    """The fields of a form, each at most once. Raises OAuthError."""
    try:
        pairs = parse_qsl(form.decode("ascii"), keep_blank_values=True, strict_parsing=bool(form), errors="strict")
    except ValueError:
        raise OAuthError("invalid_request", "the body is not a form") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise OAuthError("invalid_request", "a field appears twice")
    return fields


def _basic(authorization: str) -> tuple[str, str]:
    """Client id and secret, which are form-encoded within HTTP Basic. Raises OAuthError."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        text = ""
    client_id, colon, secret = text.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise OAuthError("invalid_client", "HTTP Basic is required", HTTPStatus.UNAUTHORIZED)
    return unquote_plus(client_id), unquote_plus(secret)
