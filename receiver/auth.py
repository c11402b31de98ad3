"""Who sends: authenticate(Authorization, credentials, now) → the sender's name. Pure.

Three kinds of tokens are told apart by what they are. A token of the configuration is known by its SHA-256, which is
all that is kept of it. A minted one is a JWT signed with our own secret, so no store is asked. Any other JWT is its
issuer's, checked with the issuer's keys.

A wrong 401 can end a feed for good: a provider may take it for an expired token and stop (Commonalities, event guide,
sinkCredential). So it is given only for a token that is known to be wrong. Where we can't know, because an issuer's
keys are not at hand, it is 503.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from typing import Any, NamedTuple

import jwt

from receiver.errors import Refused

MINT_ISSUER = "qod-receiver"
_MINT_ALGORITHM = "HS256"
#: CAMARA's limit for a notificationAuthToken (QualityOnDemand v0.9.0 to v0.10.1).
MINTED_CHARS_MAX = 256
#: CAMARA's limit for an access token is 4,096 (QualityOnDemand r4.1); a longer one isn't worth hashing.
_TOKEN_BYTES_MAX = 8_192

ANONYMOUS = "anonymous"

#: Names become metric labels, record values and URI references.
_SENDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+/-]{0,127}")

_VERIFIED_MAX = 10_000

#: A token that names no key is tried with each; a check costs 30 µs and more.
_KEYS_TRIED_MAX = 8


class StaticToken(NamedTuple):
    """A token of the configuration. Times are seconds since 1970; None is no limit."""

    sender: str
    sha256: bytes
    not_before: float | None = None
    not_after: float | None = None


class Issuer(NamedTuple):
    """An authorization server whose tokens are accepted. `sender` names every bearer, else the claim `sender_claim`."""

    issuer: str
    audience: str
    algorithms: Sequence[str]
    sender: str | None = None
    sender_claim: str = "sub"
    leeway_seconds: float = 30


class KeysWanted(Exception):
    """The token is signed with a key of its issuer that is not at hand: fetch the issuer's keys, then try again."""

    def __init__(self, issuer: str) -> None:
        super().__init__(issuer)
        self.issuer = issuer


class Credentials:
    """What tokens are accepted; `keys` may be exchanged at any time."""

    def __init__(
        self,
        *,
        tokens: Sequence[StaticToken] = (),
        mint_secret: bytes | None = None,
        issuers: Sequence[Issuer] = (),
        anonymous: bool = False,
    ) -> None:
        self.tokens = {token.sha256: token for token in tokens}
        self.mint_secret = mint_secret
        self.issuers = {issuer.issuer: issuer for issuer in issuers}
        self.anonymous = anonymous
        self.keys: dict[str, Mapping[str, Any]] = {}  # by issuer, then by key id
        # Verifying a signature costs 30 µs and more. What was verified once is known by its SHA-256 until it expires.
        self.verified: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def replace_keys(self, issuer: str, keys: Mapping[str, Any]) -> None:
        """Use these keys of an issuer from now on; what older ones verified is verified again."""
        self.keys[issuer] = keys
        self.verified.clear()


def authenticate(
    authorization: bytes | None, credentials: Credentials, now: float, *, keys_current: bool = False
) -> str:
    """The sender's name. Raises Refused, and KeysWanted where the issuer's keys should be fetched.

    `keys_current` tells that they have just been: then a key that is not among them does not exist.
    """
    if authorization is None:
        if credentials.anonymous:
            return ANONYMOUS
        raise _unauthenticated("a bearer token is wanted")
    token = bearer_token(authorization)
    digest = sha256(token).digest()
    known = credentials.tokens.get(digest)
    if known is not None and compare_digest(known.sha256, digest):
        if known.not_before is not None and now < known.not_before:
            raise _unauthenticated("the token is not valid yet")
        if known.not_after is not None and now >= known.not_after:
            raise _unauthenticated("the token has expired")
        return known.sender
    verified = credentials.verified.get(digest)
    if verified is not None and now < verified[1]:
        return verified[0]
    sender, expires = _verify(token, credentials, now, keys_current=keys_current)
    credentials.verified[digest] = sender, expires
    if len(credentials.verified) > _VERIFIED_MAX:
        credentials.verified.popitem(last=False)
    return sender


def bearer_token(authorization: bytes) -> bytes:
    """The token in a value of Authorization: `Bearer x`, in any case, and as some senders have it, `Bearer: x` and
    `Bearer Bearer x`. Raises Refused.
    """
    if len(authorization) > _TOKEN_BYTES_MAX:
        raise _unauthenticated("the token is too long")
    scheme, _, token = authorization.strip().partition(b" ")
    if scheme.rstrip(b":").lower() != b"bearer":
        raise _unauthenticated("a bearer token is wanted")
    token = token.strip()
    if token[:7].lower() == b"bearer ":
        token = token[7:].strip()
    if not token:
        raise _unauthenticated("a bearer token is wanted")
    return token


def mint(secret: bytes, sender: str, ttl_seconds: float, now: float) -> str:
    """A token for `sender` that is valid for `ttl_seconds`. Raises ValueError for a name that doesn't fit into it."""
    if not _SENDER.fullmatch(sender):
        raise ValueError("a sender's name has letters, digits and ._@:+/- only, and begins with a letter or digit")
    claims = {"iss": MINT_ISSUER, "sub": sender, "exp": int(now + ttl_seconds)}
    token = jwt.encode(claims, secret, algorithm=_MINT_ALGORITHM)
    if len(token) > MINTED_CHARS_MAX:
        raise ValueError(f"the sender's name is too long for a token of {MINTED_CHARS_MAX} characters")
    return token


def _verify(token: bytes, credentials: Credentials, now: float, *, keys_current: bool) -> tuple[str, float]:
    """The sender of a signed token, and when it expires."""
    try:
        text = token.decode("ascii")
        header = jwt.get_unverified_header(text)
        claimed = jwt.decode(text, options={"verify_signature": False})
    except (UnicodeDecodeError, jwt.InvalidTokenError):
        raise _unauthenticated("the token is not known") from None
    issuer = claimed.get("iss")
    if issuer == MINT_ISSUER and credentials.mint_secret is not None:
        claims = _decode(text, credentials.mint_secret, [_MINT_ALGORITHM], {"issuer": MINT_ISSUER}, now, 0)
        if claims is None:
            raise _unauthenticated("the token is not valid")
        return _named(claims.get("sub")), float(claims["exp"])
    known = credentials.issuers.get(issuer) if isinstance(issuer, str) else None
    if known is None:
        raise _unauthenticated("the token is not known")
    audience = {"issuer": known.issuer, "audience": known.audience}
    key_id = header.get("kid")
    candidates = _candidates(credentials.keys.get(known.issuer, {}), key_id)
    for key in candidates:
        claims = _decode(text, key, known.algorithms, audience, now, known.leeway_seconds)
        if claims is not None:
            return _named(known.sender or claims.get(known.sender_claim)), float(claims["exp"]) + known.leeway_seconds
    if candidates and key_id is not None:
        raise _unauthenticated("the token is not valid")
    if not keys_current:
        raise KeysWanted(known.issuer)
    raise _unauthenticated("the token is signed with a key that its issuer doesn't have")


def _candidates(keys: Mapping[str, Any], key_id: object) -> Sequence[Any]:
    """The keys that a token may be signed with: the one that it names, or any where it names none."""
    if key_id is None:
        return list(keys.values())[:_KEYS_TRIED_MAX]
    return [keys[key_id]] if isinstance(key_id, str) and key_id in keys else ()


def _named(sender: object) -> str:
    if not isinstance(sender, str) or not _SENDER.fullmatch(sender):
        raise Refused(HTTPStatus.FORBIDDEN, "PERMISSION_DENIED", "the token names no sender", reason="forbidden")
    return sender


def _decode(  # noqa: PLR0917  # one call of one library
    text: str,
    key: Any,  # noqa: ANN401  # each algorithm has its own kind
    algorithms: Sequence[str],
    wanted: Mapping[str, str],
    now: float,
    leeway_seconds: float,
) -> dict[str, Any] | None:
    """What the token claims, None where it was not signed with this key."""
    try:
        claims = jwt.decode(
            text,
            key,
            algorithms=list(algorithms),
            options={
                "require": ["exp", "iss"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_sub": False,
            },
            issuer=wanted["issuer"],
            audience=wanted.get("audience"),
        )
        begins, expires = float(claims.get("nbf", 0)), float(claims["exp"])
    except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
        return None
    except (jwt.PyJWTError, OverflowError, TypeError, ValueError):
        raise _unauthenticated("the token is not valid") from None
    # The library looks at its own clock; ours comes in as `now`.
    if not begins - leeway_seconds <= now < expires + leeway_seconds:
        raise _unauthenticated("the token has expired or is not valid yet")
    return claims


def _unauthenticated(message: str) -> Refused:
    return Refused(HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED", message, reason="unauthenticated")
