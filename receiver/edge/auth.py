"""Authentication: authenticate(Authorization, credentials, now) → the sender's name. Pure.

There are three kinds of tokens. A token of the configuration is recognized by its SHA-256; only tokens used lately are
in memory in clear. A minted token is a JWT signed with our own secret, so no store is asked. Any other JWT is checked
with its issuer's keys.

A wrong 401 can end a feed for good: a provider may take it for an expired token and stop (Commonalities, event guide,
sinkCredential). So 401 is given only for a token that is known to be wrong. If that can't be known, because an issuer's
keys are not at hand, the answer is 503.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from math import inf
from typing import Any, NamedTuple

import jwt

from receiver.core.errors import Refused

MINT_ISSUER = "qod-receiver"
_MINT_ALGORITHM = "HS256"
#: CAMARA's limit for a notificationAuthToken (QualityOnDemand v0.9.0 to v0.10.1).
MINTED_CHARS_MAX = 256
#: CAMARA's limit for an access token is 4,096 (QualityOnDemand r4.1); a longer one isn't worth hashing.
_TOKEN_BYTES_MAX = 8_192

ANONYMOUS = "anonymous"

#: Names become metric labels, record values and URI references.
_SENDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:+/-]{0,127}")

#: Of the values that a proxy merged into one, so many are looked at.
_MERGED_MAX = 4

_VERIFIED_MAX = 10_000
_VALUES_MAX = 1_000

#: A token that names no key is tried with at most this many keys; a check costs 30 µs or more.
_KEYS_TRIED_MAX = 8


class StaticToken(NamedTuple):
    """A token of the configuration. Times are seconds since 1970; None is no limit."""

    sender: str
    sha256: bytes
    not_before: float | None = None
    not_after: float | None = None


class Issuer(NamedTuple):
    """An authorization server whose tokens are accepted.

    `sender` names every bearer; without it the claim `sender_claim` does, with `sender_prefix` before it. Without an
    `audience` tokens for any audience are accepted. With `audience_optional` a token may leave out `aud`.
    """

    issuer: str
    audience: str | None
    algorithms: Sequence[str]
    sender: str | None = None
    sender_claim: str = "sub"
    leeway_seconds: float = 30
    sender_prefix: str = ""
    audience_optional: bool = False


class KeysWanted(Exception):
    """The token's signing key is not at hand: fetch the issuer's keys, then try again."""

    def __init__(self, issuer: str) -> None:
        super().__init__(issuer)
        self.issuer = issuer


class Known(NamedTuple):
    """The sender of a token, and the token's validity in seconds since 1970."""

    sender: str
    not_before: float
    not_after: float


class Credentials:
    """The accepted tokens. `replace_keys` may be called at any time."""

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
        # Verifying a signature costs 30 µs or more, so verified tokens are kept by their SHA-256 until they expire.
        self.verified: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        # By the whole value of Authorization, the first look-up for a request.
        self.values: dict[bytes | None, Known] = {}

    def replace_keys(self, issuer: str, keys: Mapping[str, Any]) -> None:
        """Use these keys of an issuer from now on; tokens verified with older keys are verified again."""
        self.keys[issuer] = keys
        self.verified.clear()
        self.values.clear()

    def remember(self, value: bytes, known: Known) -> None:
        """Remember a valid value of Authorization."""
        if len(self.values) >= _VALUES_MAX:
            self.values.clear()
        self.values[value] = known


def authenticate(
    authorization: bytes | None,
    credentials: Credentials,
    now: float,
    *,
    others: Sequence[bytes] = (),
    keys_current: bool = False,
) -> str:
    """The sender's name. Raises Refused, and KeysWanted if the issuer's keys should be fetched.

    A valid token counts wherever it is: in any spelling of Authorization, and in `others`, the values of the further
    headers that may hold one. `keys_current` says that the keys have just been fetched, so a key that is not among them
    does not exist.
    """
    seen = credentials.values.get(authorization)
    if seen is not None and seen.not_before <= now < seen.not_after:
        return seen.sender
    if authorization is None and not others and credentials.anonymous:
        return ANONYMOUS
    failures: list[Refused | KeysWanted] = []
    for value in (authorization, *others):
        if value is None:
            continue
        if len(value) > _TOKEN_BYTES_MAX:
            failures.append(_unauthenticated("the token is too long", why="long_token"))
            continue
        for token in spellings(value):
            try:
                known = _known(token, credentials, now, keys_current=keys_current)
            except (Refused, KeysWanted) as error:
                failures.append(error)
            else:
                if value is authorization:
                    credentials.remember(value, known)
                return known.sender
    raise max(failures, key=_told_by, default=_unauthenticated("a bearer token is required", why="no_token"))


def _known(token: bytes, credentials: Credentials, now: float, *, keys_current: bool) -> Known:
    digest = sha256(token).digest()
    known = credentials.tokens.get(digest)
    if known is not None and compare_digest(known.sha256, digest):
        if known.not_before is not None and now < known.not_before:
            raise _unauthenticated("the token is not valid yet", why="early_token", sender=known.sender)
        if known.not_after is not None and now >= known.not_after:
            raise _unauthenticated("the token has expired", why="expired_token", sender=known.sender)
        return Known(known.sender, known.not_before or -inf, inf if known.not_after is None else known.not_after)
    verified = credentials.verified.get(digest)
    if verified is not None and now < verified[1]:
        return Known(verified[0], -inf, verified[1])
    sender, expires = _verify(token, credentials, now, keys_current=keys_current)
    credentials.verified[digest] = sender, expires
    if len(credentials.verified) > _VERIFIED_MAX:
        credentials.verified.popitem(last=False)
    return Known(sender, -inf, expires)


def _told_by(failure: Refused | KeysWanted) -> int:
    """How specific a failure is: most spellings of a token are not a token, and fail as unknown."""
    if isinstance(failure, KeysWanted):
        return 3
    return 1 if failure.why == "unknown_token" else 2


def spellings(authorization: bytes) -> Iterator[bytes]:
    """The tokens that a value of Authorization may hold, the likeliest first, each once.

    `Bearer x` in any case; then `Bearer: x`, `Bearer Bearer x`, `Bearerx`, `x` alone, `Token x`, `Bearer "x"`, and
    `Bearer x, Basic y`, which a proxy makes of two headers.
    """
    value = authorization.strip()
    scheme, _, rest = value.partition(b" ")
    likeliest = b""
    if scheme.rstrip(b":").lower() == b"bearer":
        rest = rest.strip()
        likeliest = rest[7:].strip() if rest[:7].lower() == b"bearer " else rest
        if likeliest:
            yield likeliest
    found = {likeliest}
    bare = value
    while bare[:6].lower() == b"bearer":
        bare = bare[6:].lstrip(b" :=")
    parts = dict.fromkeys(part.strip() for part in value.split(b",")[:_MERGED_MAX])
    others = [value, bare, rest, value.split(b" ")[-1]]
    for part in parts:
        if part != value:
            others += spellings(part)
    others += [other.strip(b"\"'<>") for other in others]
    for token in (other.strip() for other in others):
        if token not in found and token.rstrip(b":").lower() != b"bearer":
            found.add(token)
            yield token


def mint(secret: bytes, sender: str, ttl_seconds: float, now: float) -> str:
    """A token for `sender`, valid for `ttl_seconds`. Raises ValueError for a name that is invalid or too long."""
    if not _SENDER.fullmatch(sender):
        raise ValueError("a sender's name has letters, digits and ._@:+/- only, and begins with a letter or digit")
    claims = {"iss": MINT_ISSUER, "sub": sender, "exp": int(now + ttl_seconds)}
    token = jwt.encode(claims, secret, algorithm=_MINT_ALGORITHM)
    if len(token) > MINTED_CHARS_MAX:
        raise ValueError(f"the sender's name is too long for a token of {MINTED_CHARS_MAX} characters")
    return token


def _verify(token: bytes, credentials: Credentials, now: float, *, keys_current: bool) -> tuple[str, float]:
    """The sender of a signed token, and the token's expiry in seconds since 1970."""
    try:
        text = token.decode("ascii")
        header = jwt.get_unverified_header(text)
        claimed = jwt.decode(text, options={"verify_signature": False})
    except (UnicodeDecodeError, jwt.InvalidTokenError):
        raise _unauthenticated("the token is not known", why="unknown_token") from None
    issuer = claimed.get("iss")
    if issuer == MINT_ISSUER and credentials.mint_secret is not None:
        minted = _Wanted(MINT_ISSUER, [_MINT_ALGORITHM], {}, 0, _name_in(claimed.get("sub")))
        claims = _decode(text, credentials.mint_secret, minted, now)
        if claims is None:
            raise _unauthenticated("the token is not valid", why="wrong_signature")
        return _named(claims.get("sub")), float(claims["exp"])
    known = credentials.issuers.get(issuer) if isinstance(issuer, str) else None
    if known is None:
        raise _unauthenticated("the token is not known", why="unknown_token")
    name = known.sender or _prefixed(known.sender_prefix, claimed.get(known.sender_claim))
    wanted = _Wanted(known.issuer, known.algorithms, _audience(known, claimed), known.leeway_seconds, _name_in(name))
    key_id = header.get("kid")
    candidates = _candidates(credentials.keys.get(known.issuer, {}), key_id)
    for key in candidates:
        claims = _decode(text, key, wanted, now)
        if claims is not None:
            sender = _named(name)
            if not known.sender and _is_anothers(sender, known, credentials.issuers.values()):
                raise _forbidden("the token's sender has a name that belongs to another issuer", why="foreign_name")
            return sender, float(claims["exp"]) + known.leeway_seconds
    if candidates and key_id is not None:
        raise _unauthenticated("the token is not valid", why="wrong_signature")
    if not keys_current:
        raise KeysWanted(known.issuer)
    raise _unauthenticated("the token is signed with a key that its issuer doesn't have", why="unknown_key")


def _candidates(keys: Mapping[str, Any], key_id: object) -> Sequence[Any]:
    """The keys that may have signed a token: the one that it names, or any if it names none."""
    if key_id is None:
        return list(keys.values())[:_KEYS_TRIED_MAX]
    return [keys[key_id]] if isinstance(key_id, str) and key_id in keys else ()


def _prefixed(prefix: str, name: object) -> object:
    return prefix + name if isinstance(name, str) and name else name


def _is_anothers(sender: str, issuer: Issuer, issuers: Iterable[Issuer]) -> bool:
    """Whether a sender's name from an issuer's token belongs to another issuer: as its fixed name, or by its prefix.

    If one prefix begins with another, names with the longer one belong to the longer one's issuer.
    """
    return any(
        sender == other.sender
        if other.sender
        else len(other.sender_prefix) > len(issuer.sender_prefix) and sender.startswith(other.sender_prefix)
        for other in issuers
        if other is not issuer
    )


def _audience(issuer: Issuer, claimed: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the library about `aud`."""
    if issuer.audience is None or (issuer.audience_optional and "aud" not in claimed):
        return {"options": {"verify_aud": False}}
    return {"audience": issuer.audience}


def _named(sender: object) -> str:
    name = _name_in(sender)
    if not name:
        raise _forbidden("the token names no sender", why="no_name")
    return name


def _name_in(sender: object) -> str:
    """A valid sender's name; empty if it is invalid."""
    return sender if isinstance(sender, str) and _SENDER.fullmatch(sender) else ""


class _Wanted(NamedTuple):
    """Requirements on a token. `sender` is the name that it claims, reported only once its signature was verified."""

    issuer: str
    algorithms: Sequence[str]
    audience: Mapping[str, Any]
    leeway_seconds: float
    sender: str


def _decode(
    text: str,
    key: Any,  # noqa: ANN401  # each algorithm has its own kind
    wanted: _Wanted,
    now: float,
) -> dict[str, Any] | None:
    """The token's claims; None if it was not signed with this key."""
    options = {
        "require": ["exp", "iss"],
        "verify_exp": False,
        "verify_nbf": False,
        "verify_iat": False,
        "verify_sub": False,
        **wanted.audience.get("options", {}),
    }
    try:
        claims = jwt.decode(
            text,
            key,
            algorithms=list(wanted.algorithms),
            options=options,  # type: ignore[arg-type]  # a typed dict that is put together
            issuer=wanted.issuer,
            audience=wanted.audience.get("audience"),
        )
        begins, expires = float(claims.get("nbf", 0)), float(claims["exp"])
    except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
        return None
    except jwt.InvalidAudienceError:
        raise _unauthenticated("the token is not valid", why="wrong_audience", sender=wanted.sender) from None
    except (jwt.PyJWTError, OverflowError, TypeError, ValueError):
        raise _unauthenticated("the token is not valid", why="invalid_token") from None
    # The library would use its own clock; here the time is `now`.
    if not begins - wanted.leeway_seconds <= now < expires + wanted.leeway_seconds:
        message = "the token has expired or is not valid yet"
        raise _unauthenticated(message, why="expired_token", sender=wanted.sender)
    return claims


def _unauthenticated(message: str, *, why: str, sender: str = "") -> Refused:
    return Refused(
        HTTPStatus.UNAUTHORIZED, "UNAUTHENTICATED", message, reason="unauthenticated", why=why, sender=sender
    )


def _forbidden(message: str, *, why: str) -> Refused:
    return Refused(HTTPStatus.FORBIDDEN, "PERMISSION_DENIED", message, reason="forbidden", why=why)
