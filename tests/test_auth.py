"""Authentication: bearer tokens in every spelling, tokens of the configuration, minted ones, and issuers' JWTs."""

import hmac
import json
from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from receiver.core.errors import Refused
from receiver.edge.auth import (
    ANONYMOUS,
    MINT_ISSUER,
    MINTED_CHARS_MAX,
    Credentials,
    Issuer,
    KeysWanted,
    StaticToken,
    authenticate,
    mint,
    spellings,
)

#: All times are whole seconds from this one; the library's own clock is not used.
NOW = 1_000_000_000.0
SECRET = b"the secret that signs minted tokens"
ISSUER = "https://auth.operator.example"
AUDIENCE = "qod-receiver.example"
LEEWAY = 30

RSA, OTHER_RSA = (rsa.generate_private_key(public_exponent=65537, key_size=2048) for _ in range(2))
EC = ec.generate_private_key(ec.SECP256R1())
RSA_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

UNKNOWN = (401, "the token is not known")
INVALID = (401, "the token is not valid")
EXPIRED = (401, "the token has expired or is not valid yet")
NAMELESS = (403, "the token names no sender")


def encoded(part: bytes) -> bytes:
    """A part of a JWT."""
    return urlsafe_b64encode(part).rstrip(b"=")


def forged(header: object, payload: object, secret: bytes | None = None) -> bytes:
    """A token with any content, signed with HMAC or not at all: no library would write it."""
    content = b".".join(encoded(json.dumps(part).encode()) for part in (header, payload))
    signature = b"" if secret is None else hmac.digest(secret, content, "sha256")
    return content + b"." + encoded(signature)


def claims(**changes: object) -> dict[str, Any]:
    """The claims of an issuer's token, with changes; `...` leaves a claim out."""
    told = {"iss": ISSUER, "aud": AUDIENCE, "sub": "acme", "exp": NOW + 3600} | changes
    return {name: value for name, value in told.items() if value is not ...}


def signed(key: Any = RSA, algorithm: str = "RS256", key_id: str | None = "k-1", **changes: object) -> bytes:  # noqa: ANN401  # each algorithm has its own kind
    """An issuer's token."""
    return jwt.encode(claims(**changes), key, algorithm, {} if key_id is None else {"kid": key_id}).encode()


def credentials(*, keys: dict[str, Any] | None = None, **changes: Any) -> Credentials:  # noqa: ANN401  # fields of Issuer
    """Credentials with one issuer, whose keys are known unless other ones are given."""
    told: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE, "algorithms": ["RS256"], "leeway_seconds": LEEWAY}
    made = Credentials(mint_secret=SECRET, issuers=[Issuer(**(told | changes))])
    made.replace_keys(ISSUER, {"k-1": RSA.public_key()} if keys is None else keys)
    return made


def outcome(token: bytes, known: Credentials, now: float = NOW, *, keys_current: bool = False) -> str | tuple[int, str]:
    """The sender's name, or the status and message of the refusal."""
    try:
        return authenticate(b"Bearer " + token, known, now, keys_current=keys_current)
    except Refused as refused:
        return refused.status.value, refused.message


# The header.


@pytest.mark.parametrize(
    ("authorization", "token"),
    [
        (b"Bearer x", b"x"),
        (b"bearer x", b"x"),
        (b"BEARER x", b"x"),
        (b"bEaReR x", b"x"),
        (b"Bearer: x", b"x"),
        (b"Bearer Bearer x", b"x"),
        (b"Bearer bearer x", b"x"),
        (b"Bearer: Bearer x", b"x"),
        (b"Bearer   x", b"x"),
        (b"  Bearer x  ", b"x"),
        (b"Bearer Bearer   x", b"x"),
        (b"Bearer x y", b"x y"),
        (b"Bearer Bearerx", b"Bearerx"),
        (b"Bearer Bearer", b"Bearer"),
        (b"Bearer \xff\xfe", b"\xff\xfe"),
        (b"Bearer " + b"x" * 8185, b"x" * 8185),
    ],
)
def test_a_bearer_token_is_found_as_senders_spell_it(authorization: bytes, token: bytes) -> None:
    """The scheme's case, a colon after it, blanks and a doubled scheme don't matter."""
    assert next(spellings(authorization)) == token


@pytest.mark.parametrize(
    "spelled",
    [
        "Bearer {}",
        "bearer {}",
        "{}",
        "  {} ",
        "Token {}",
        "Basic {}",
        "JWT {}",
        "token Bearer {}",
        "Bearer{}",
        "bearer{}",
        "Bearer:{}",
        "Bearer: {}",
        "Bearer={}",
        "Bearer Bearer {}",
        "Bearer  Bearer  {}",
        "Bearer Bearer{}",
        'Bearer "{}"',
        "Bearer '{}'",
        "Bearer <{}>",
        '"{}"',
        "Bearer {0}, Bearer {0}",
        "{0}, {0}",
        "Bearer {0},Bearer {0},Bearer {0}",
        "Bearer {}, Bearer other",
        "Bearer other, Bearer {}",
        "Basic Z2F0ZXdheTpvd24=, Bearer {}",
        "Bearer {},Basic Z2F0ZXdheTpvd24=",
    ],
)
def test_a_right_token_counts_in_every_spelling(spelled: str) -> None:
    """A token of any kind is recognized in every spelling of the header; one that differs in a character is not."""
    known = credentials()
    known.tokens |= {token.sha256: token for token in [static("a-static/token+of=24.chars")]}
    for token in (b"a-static/token+of=24.chars", mint(SECRET, "acme", 60, NOW).encode(), signed()):
        authorization = spelled.format(token.decode()).encode()
        assert authenticate(authorization, known, NOW) == "acme"
        with pytest.raises(Refused):
            authenticate(authorization.replace(token, token[:9] + b"!" + token[10:]), known, NOW)


EXPIRED_TOKEN = b"Bearer expired-token"


@pytest.mark.parametrize(
    ("authorization", "others", "told"),
    [
        (None, [b"right-token"], "acme"),
        (None, [b"Bearer right-token"], "acme"),
        (b"Bearer gateways-own", [b"Bearer right-token"], "acme"),
        (b"Basic Z2F0ZXdheTpvd24=", [b"right-token"], "acme"),
        (b"Bearer " + b"x" * 9000, [b"right-token"], "acme"),
        (b"Bearer right-token", [b"Bearer wrong"], "acme"),
        (b"Bearer wrong", [b"wrong too", b"Bearer right-token"], "acme"),
        (b"Bearer wrong", [b"wrong too"], 401),
        (None, [b"wrong"], 401),
        (None, [b""], 401),
        (EXPIRED_TOKEN, [b"wrong"], "the token has expired"),
        (b"wrong", [EXPIRED_TOKEN], "the token has expired"),
    ],
)
def test_a_token_may_stand_in_another_header(authorization: bytes | None, others: list[bytes], told: str | int) -> None:
    """A right token in any of the headers counts; of several wrong ones the most telling fault is reported."""
    tokens = [static("right-token"), static("expired-token", ends=-1)]
    known = Credentials(tokens=tokens, anonymous=True)
    if told == "acme":
        assert authenticate(authorization, known, NOW, others=others) == told
        return
    with pytest.raises(Refused) as caught:
        authenticate(authorization, known, NOW, others=others)
    assert told in {caught.value.status.value, caught.value.message}


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (b"", "a bearer token is required"),
        (b" ", "a bearer token is required"),
        (b"x", None),
        (b"Bearer", "a bearer token is required"),
        (b"Bearer ", "a bearer token is required"),
        (b"Bearer:", "a bearer token is required"),
        (b"Bearer Bearer ", None),
        (b"Basic eDp5", None),
        (b"Bearerx y", None),
        (b"Token Bearer x", None),
        (b"\xff x", None),
        (b"Bearer " + b"x" * 8186, "the token is too long"),
        (b"x" * 1_000_000, "the token is too long"),
    ],
)
def test_what_is_no_token_is_refused(authorization: bytes, message: str | None) -> None:
    """No token, an unknown token, and one that is longer than any are 401."""
    with pytest.raises(Refused) as caught:
        authenticate(authorization, credentials(), NOW)
    assert (caught.value.status, caught.value.code) == (401, "UNAUTHENTICATED")
    assert caught.value.message == (message or "the token is not known")


def test_without_a_token_only_the_anonymous_are_let_in() -> None:
    """A request without a header is refused unless anonymous senders are allowed; a wrong token is refused all the
    same.
    """
    with pytest.raises(Refused, match="a bearer token is required"):
        authenticate(None, Credentials(), NOW)
    open_to_all = Credentials(anonymous=True)
    assert authenticate(None, open_to_all, NOW) == ANONYMOUS
    assert outcome(b"wrong", open_to_all) == UNKNOWN


# Tokens of the configuration.


def static(text: str, sender: str = "acme", begins: float | None = None, ends: float | None = None) -> StaticToken:
    """A token of the configuration; its times are in seconds from now."""
    digest = sha256(text.encode("latin-1")).digest()
    return StaticToken(sender, digest, None if begins is None else NOW + begins, None if ends is None else NOW + ends)


EARLY, LATE = (401, "the token is not valid yet"), (401, "the token has expired")


@pytest.mark.parametrize(
    ("begins", "ends", "told"),
    [
        (None, None, "acme"),
        (-1, None, "acme"),
        (0, None, "acme"),
        (0.001, None, EARLY),
        (None, 1, "acme"),
        (None, 0.001, "acme"),
        (None, 0, LATE),
        (None, -1, LATE),
        (-1, 1, "acme"),
        (0, 0, LATE),
        (1, 2, EARLY),
        (-2, -1, LATE),
    ],
)
def test_a_static_token_is_valid_from_its_first_moment_and_not_at_its_last(
    begins: float | None, ends: float | None, told: str | tuple[int, str]
) -> None:
    """A token of the configuration is valid from not-before on, until just before not-after."""
    assert outcome(b"x", Credentials(tokens=[static("x", begins=begins, ends=ends)])) == told


@pytest.mark.parametrize(
    ("seconds", "old", "new"),
    [(-11, "acme", EARLY), (-10, "acme", "acme"), (9.999, "acme", "acme"), (10, LATE, "acme"), (9999, LATE, "acme")],
)
def test_rotation_has_an_overlap(seconds: float, old: str | tuple[int, str], new: str | tuple[int, str]) -> None:
    """While two tokens of a sender overlap, either is accepted, and at every moment one is."""
    known = Credentials(tokens=[static("old", ends=10), static("new", begins=-10), static("else", "other")])
    assert outcome(b"old", known, NOW + seconds) == old
    assert outcome(b"new", known, NOW + seconds) == new
    assert outcome(b"else", known, NOW + seconds) == "other"


@pytest.mark.parametrize("text", ["é" * 20, "\xff\xfe\x80", "a\x80b", "x y", "a.b.c", "..", "\xa0x"])
def test_a_static_token_may_be_any_bytes(text: str) -> None:
    """Tokens with bytes beyond ASCII, or with a JWT's form, are compared as bytes: right or wrong, never an error."""
    known = Credentials(tokens=[static(text)])
    assert outcome(text.encode("latin-1"), known) == "acme"
    assert outcome(text.encode("latin-1") + b"\xff", known) == UNKNOWN
    assert outcome(text.encode("latin-1")[:-1] or b"-", known) == UNKNOWN


# Minted tokens.


@pytest.mark.parametrize("sender", ["a", "acme", "Acme_1", "https://op.example/x", "a@b.example", "9+9", "a" * 60])
def test_a_minted_token_names_its_sender(sender: str) -> None:
    """A minted token is accepted for its sender, and fits into CAMARA's notificationAuthToken."""
    token = mint(SECRET, sender, 60, NOW)
    assert 20 <= len(token) <= MINTED_CHARS_MAX == 256
    assert outcome(token.encode(), Credentials(mint_secret=SECRET)) == sender


@pytest.mark.parametrize("sender", ["", " ", "a b", "ä", "-a", ".", "a\n", "a\0", "a" * 128, "a" * 129, "a" * 9999])
def test_no_token_is_minted_for_what_is_no_name(sender: str) -> None:
    """Minting fails with a message for an invalid name, or one too long for a token that CAMARA allows."""
    with pytest.raises(ValueError, match="sender's name"):
        mint(SECRET, sender, 60, NOW)


def test_every_name_of_the_configuration_fits() -> None:
    """A name of up to 64 characters, the limit of the settings, fits into a token; for longer ones it depends on their
    length.
    """
    taken = [can_be_minted("a" * count) for count in range(1, 200)]
    assert all(taken[:64])
    assert taken == sorted(taken, reverse=True)


def can_be_minted(sender: str) -> bool:
    """Whether a name can be minted a token, which then is within CAMARA's limit."""
    try:
        token = mint(SECRET, sender, 60, NOW)
    except ValueError:
        return False
    assert len(token) <= MINTED_CHARS_MAX
    return True


@pytest.mark.parametrize(("seconds", "told"), [(-1e6, "acme"), (0, "acme"), (59.999, "acme"), (60, EXPIRED)])
def test_a_minted_token_expires(seconds: float, told: str | tuple[int, str]) -> None:
    """A minted token is valid until just before its time to live is over, without leeway."""
    assert outcome(mint(SECRET, "acme", 60, NOW).encode(), credentials(), NOW + seconds) == told


MINTED = {"iss": MINT_ISSUER, "sub": "acme", "exp": NOW + 60}
HS256 = {"alg": "HS256", "typ": "JWT"}


@pytest.mark.parametrize(
    ("token", "told"),
    [
        (forged(HS256, MINTED, SECRET), "acme"),
        (forged(HS256, MINTED, b"another secret that signs tokens"), INVALID),
        (forged(HS256, MINTED, SECRET[:-1]), INVALID),
        (forged(HS256, MINTED, b""), INVALID),
        (forged(HS256, MINTED), INVALID),
        (forged({"alg": "none"}, MINTED), INVALID),
        (forged({"alg": "NONE"}, MINTED), INVALID),
        (forged({"alg": "HS512"}, MINTED, SECRET), INVALID),
        (forged({"alg": "RS256"}, MINTED, SECRET), INVALID),
        (forged({"alg": ""}, MINTED, SECRET), INVALID),
        (forged({"alg": None}, MINTED, SECRET), INVALID),
        (forged({"alg": ["HS256"]}, MINTED, SECRET), INVALID),
        (forged({}, MINTED, SECRET), INVALID),
        (forged(HS256, MINTED | {"exp": None}, SECRET), INVALID),
        (forged(HS256, {"iss": MINT_ISSUER, "sub": "acme"}, SECRET), INVALID),
        (forged(HS256, MINTED | {"iss": "qod-receiver "}, SECRET), UNKNOWN),
        (forged(HS256, MINTED | {"iss": ["qod-receiver"]}, SECRET), UNKNOWN),
        (forged(HS256, {"iss": MINT_ISSUER, "exp": NOW + 60}, SECRET), NAMELESS),
        (forged(HS256, MINTED | {"sub": "a b"}, SECRET), NAMELESS),
        (forged(HS256, MINTED | {"sub": 7}, SECRET), NAMELESS),
    ],
)
def test_a_minted_token_is_taken_only_as_it_was_minted(token: bytes, told: str | tuple[int, str]) -> None:
    """Only HS256 with our secret makes a minted token; no other algorithm, secret or content does."""
    assert outcome(token, credentials()) == told


def test_a_tampered_token_is_refused() -> None:
    """A minted token that differs in any one character, or is cut off, is refused."""
    token = mint(SECRET, "acme", 60, NOW).encode()
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for index in range(len(token)):
        # A character's first bit always counts; the last bits of a part's last character don't.
        other = alphabet[(alphabet.index(token[index]) + 32) % 64] if token[index] in alphabet else ord("A")
        assert outcome(token[:index] + bytes([other]) + token[index + 1 :], credentials()) in {UNKNOWN, INVALID}
        assert outcome(token[:index] or b"-", credentials()) in {UNKNOWN, INVALID}


def test_no_token_is_minted_without_a_secret() -> None:
    """Without a secret there are no minted tokens, not even ones signed with nothing."""
    for secret in (SECRET, b"", None):
        assert outcome(forged(HS256, MINTED, secret), Credentials()) == UNKNOWN


# JWTs of issuers.


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "acme"),
        ({"more": {"scope": ["a"]}}, "acme"),
        # The audience.
        ({"aud": [AUDIENCE]}, "acme"),
        ({"aud": ["another", AUDIENCE]}, "acme"),
        ({"aud": "another"}, INVALID),
        ({"aud": ["another"]}, INVALID),
        ({"aud": []}, INVALID),
        ({"aud": ...}, INVALID),
        ({"aud": None}, INVALID),
        ({"aud": AUDIENCE.upper()}, INVALID),
        # The issuer.
        ({"iss": "https://another.example"}, UNKNOWN),
        ({"iss": f"{ISSUER}/"}, UNKNOWN),
        ({"iss": ...}, UNKNOWN),
        ({"iss": MINT_ISSUER}, INVALID),
        # The times, with 30 s for clocks that differ.
        ({"exp": NOW - 29.5}, "acme"),
        ({"exp": NOW - 30}, EXPIRED),
        ({"exp": NOW - 3600}, EXPIRED),
        ({"exp": ...}, INVALID),
        ({"exp": None}, INVALID),
        ({"exp": "soon"}, INVALID),
        ({"exp": []}, INVALID),
        ({"exp": float("nan")}, EXPIRED),
        ({"exp": 10**400}, INVALID),
        ({"exp": -(10**400)}, INVALID),
        ({"nbf": NOW - 3600}, "acme"),
        ({"nbf": NOW + 30}, "acme"),
        ({"nbf": NOW + 30.5}, EXPIRED),
        ({"nbf": NOW + 1800}, EXPIRED),
        ({"nbf": None}, INVALID),
        ({"nbf": "soon"}, INVALID),
        ({"nbf": float("nan")}, EXPIRED),
        ({"nbf": -(10**400)}, INVALID),
        ({"iat": NOW + 3600}, "acme"),
        ({"iat": "soon"}, "acme"),
        # The sender.
        ({"sub": "https://op.example/clients/7"}, "https://op.example/clients/7"),
        ({"sub": "a" * 128}, "a" * 128),
        ({"sub": "a" * 129}, NAMELESS),
        ({"sub": "a b"}, NAMELESS),
        ({"sub": "a\n"}, NAMELESS),
        ({"sub": "é"}, NAMELESS),
        ({"sub": ""}, NAMELESS),
        ({"sub": None}, NAMELESS),
        ({"sub": 7}, NAMELESS),
        ({"sub": ["acme"]}, NAMELESS),
        ({"sub": ...}, NAMELESS),
    ],
)
def test_a_jwt_is_judged_by_its_claims(changes: dict[str, Any], told: str | tuple[int, str]) -> None:
    """An issuer's token is accepted with our audience, within its time, for the sender that it names; without one it is
    403.
    """
    assert outcome(signed(**changes), credentials()) == told


@pytest.mark.parametrize(
    ("issuer", "changes", "told"),
    [
        ({"sender": "fixed"}, {}, "fixed"),
        ({"sender": "fixed"}, {"sub": ...}, "fixed"),
        ({"sender": "fixed"}, {"sub": "a b"}, "fixed"),
        ({"sender": "fixed"}, {"sub": 7}, "fixed"),
        ({"sender": "fixed", "sender_claim": "azp"}, {"azp": "other"}, "fixed"),
        ({"sender": "fixed"}, {"exp": ...}, INVALID),
        ({"sender_claim": "client_id"}, {"client_id": "c-1"}, "c-1"),
        ({"sender_claim": "client_id"}, {"client_id": "c-1", "sub": ...}, "c-1"),
        ({"sender_claim": "client_id"}, {"client_id": "c-1", "sub": 7}, "c-1"),
        ({"sender_claim": "client_id"}, {}, NAMELESS),
        ({"sender_claim": "client_id"}, {"client_id": None}, NAMELESS),
        ({"sender_claim": "client_id"}, {"client_id": {"a": 1}}, NAMELESS),
        ({"sender_claim": "https://claims.example/who"}, {"https://claims.example/who": "c-1"}, "c-1"),
        ({"leeway_seconds": 0}, {"exp": NOW}, EXPIRED),
        ({"leeway_seconds": 0}, {"exp": NOW + 0.5}, "acme"),
        ({"leeway_seconds": 0}, {"nbf": NOW}, "acme"),
        ({"leeway_seconds": 0}, {"nbf": NOW + 0.5}, EXPIRED),
    ],
)
def test_an_issuer_says_who_its_bearers_are(
    issuer: dict[str, Any], changes: dict[str, Any], told: str | tuple[int, str]
) -> None:
    """A fixed sender needs no claim; else the configured claim names the sender, and `sub` may be absent."""
    assert outcome(signed(**changes), credentials(**issuer)) == told


@pytest.mark.parametrize(
    ("first", "second", "claimed", "told"),
    [
        # One issuer keeps its senders' names, and the other's get a prefix.
        ({}, {"sender_prefix": "b:"}, ("alice", "alice"), ("alice", "b:alice")),
        ({"sender_prefix": "a:"}, {"sender_prefix": "b:"}, ("alice", "alice"), ("a:alice", "b:alice")),
        # No token gives a name that is another issuer's.
        ({}, {"sender_prefix": "b:"}, ("b:alice", "alice"), (403, "b:alice")),
        ({"sender_prefix": "a"}, {"sender_prefix": "a:"}, (":alice", "alice"), (403, "a:alice")),
        ({}, {"sender": "alice"}, ("alice", "anybody"), (403, "alice")),
        ({"sender": "alice"}, {"sender": "alice"}, ("x", "y"), ("alice", "alice")),
        ({"sender_prefix": "a:"}, {"sender": "alice"}, ("alice", "x"), ("a:alice", "alice")),
        # A prefix makes no valid name of an invalid one.
        ({"sender_prefix": "a:"}, {"sender_prefix": "b:"}, ("", 7), (403, 403)),
        ({"sender_prefix": "a" * 64}, {"sender_prefix": "b:"}, ("x" * 65, "x" * 126), (403, "b:" + "x" * 126)),
    ],
)
def test_a_name_belongs_to_its_issuer(
    first: dict[str, Any], second: dict[str, Any], claimed: tuple[object, object], told: tuple[str | int, str | int]
) -> None:
    """Two issuers never give the same sender, unless the configuration names it for both."""
    issuers = [
        Issuer(name, AUDIENCE, ["RS256"], **changes)
        for name, changes in (("https://a.example", first), ("https://b.example", second))
    ]
    known = Credentials(issuers=issuers)
    for issuer in issuers:
        known.replace_keys(issuer.issuer, {"k-1": RSA.public_key()})
    for issuer, sub, expected in zip(issuers, claimed, told, strict=True):
        found = outcome(signed(iss=issuer.issuer, sub=sub), known)
        assert (found if isinstance(found, str) else found[0]) == expected


@pytest.mark.parametrize(
    ("audience", "optional", "aud", "told"),
    [
        (AUDIENCE, True, ..., "acme"),
        (AUDIENCE, True, AUDIENCE, "acme"),
        (AUDIENCE, True, "another", INVALID),
        (AUDIENCE, True, None, INVALID),
        (AUDIENCE, False, ..., INVALID),
        (None, True, ..., "acme"),
        (None, True, "another", "acme"),
    ],
)
def test_the_audience_may_be_left_out(
    audience: str | None, optional: bool, aud: object, told: str | tuple[int, str]
) -> None:
    """If the configuration allows it, a token may leave out its audience; a wrong audience is refused all the same."""
    assert outcome(signed(aud=aud), credentials(audience=audience, audience_optional=optional)) == told


@pytest.mark.parametrize(
    ("token", "why", "sender"),
    [
        (b"x", "unknown_token", ""),
        (b"old", "expired_token", "former"),
        (b"soon", "early_token", "coming"),
        (signed(exp=NOW - 3600), "expired_token", "acme"),
        (signed(aud="another"), "wrong_audience", "acme"),
        (signed(OTHER_RSA), "wrong_signature", ""),
        (signed(OTHER_RSA, exp=NOW - 3600), "wrong_signature", ""),
        (mint(SECRET, "acme", 60, NOW - 60).encode(), "expired_token", "acme"),
        (forged(HS256, MINTED, b"another secret that signs tokens"), "wrong_signature", ""),
        (signed(sub="a b"), "no_name", ""),
    ],
)
def test_a_refusal_tells_why_and_who(token: bytes, why: str, sender: str) -> None:
    """Each refusal has its reason, and the sender's name if the token is the sender's although not valid."""
    known = credentials()
    tokens = [static("old", "former", ends=-1), static("soon", "coming", begins=1)]
    known.tokens |= {each.sha256: each for each in tokens}
    with pytest.raises(Refused) as caught:
        authenticate(b"Bearer " + token, known, NOW)
    assert (caught.value.why, caught.value.sender) == (why, sender)


KEYS: dict[str, Any] = {
    "k-1": RSA.public_key(),
    "ec": EC.public_key(),
    "secret": SECRET,
}
RS256 = {"alg": "RS256", "kid": "k-1"}


@pytest.mark.parametrize(
    ("token", "algorithms", "told"),
    [
        (signed(), ["RS256"], "acme"),
        (signed(), ["ES256", "RS256"], "acme"),
        (signed(key_id=None), ["RS256"], "acme"),
        (signed(algorithm="PS256"), ["PS256"], "acme"),
        (signed(EC, "ES256", "ec"), ["ES256"], "acme"),
        # The right key with an algorithm that is not its issuer's.
        (signed(), ["RS512"], INVALID),
        (signed(algorithm="RS512"), ["RS256"], INVALID),
        (signed(EC, "ES256", "ec"), ["RS256"], INVALID),
        # Another key of the issuer's, or an unknown one.
        (signed(OTHER_RSA), ["RS256"], INVALID),
        (signed(EC, "ES256", "k-1"), ["RS256", "ES256"], INVALID),
        (signed(key_id="ec"), ["RS256", "ES256"], INVALID),
        (signed(key_id="secret"), ["RS256"], INVALID),
        # No signature, or one that anybody can make.
        (forged({"alg": "none", "kid": "k-1"}, claims()), ["RS256"], INVALID),
        (forged({"alg": "None", "kid": "k-1"}, claims()), ["RS256"], INVALID),
        (forged(RS256, claims()), ["RS256"], INVALID),
        (forged({"alg": "HS256", "kid": "k-1"}, claims(), RSA_PEM), ["RS256"], INVALID),
        (forged({"alg": "HS256", "kid": "k-1"}, claims(), RSA_PEM), ["RS256", "HS256"], INVALID),
        (forged({"alg": "HS256", "kid": "k-1"}, claims(), RSA_PEM.strip()), ["RS256", "HS256"], INVALID),
        (forged(RS256, claims(), RSA_PEM), ["RS256"], INVALID),
        (forged({"alg": "HS256", "kid": "k-1"}, claims(), SECRET), ["RS256"], INVALID),
        # Headers that bring a key along, or ask for unsupported features.
        (forged(RS256 | {"jwk": {"kty": "oct", "k": "AAAA"}}, claims(), b"\0\0\0"), ["RS256"], INVALID),
        (forged(RS256 | {"jku": "https://evil.example/"}, claims(), b"x"), ["RS256"], INVALID),
        (forged(RS256 | {"crit": ["exp"]}, claims(), b"x"), ["RS256"], UNKNOWN),
        (forged(RS256 | {"b64": False}, claims(), b"x"), ["RS256"], UNKNOWN),
        (forged({"alg": "RS256", "kid": 1}, claims(), b"x"), ["RS256"], UNKNOWN),
        (forged({"alg": ["RS256"], "kid": "k-1"}, claims(), b"x"), ["RS256"], INVALID),
    ],
)
def test_a_jwt_is_judged_by_its_signature(token: bytes, algorithms: list[str], told: str | tuple[int, str]) -> None:
    """Only a signature by the issuer's named key and with an algorithm of the issuer's is accepted."""
    assert outcome(token, credentials(keys=KEYS, algorithms=algorithms)) == told


def test_the_signature_covers_every_claim() -> None:
    """Claims that were exchanged under a signature are refused."""
    header, _, signature = signed().split(b".")
    payload = encoded(json.dumps(claims(sub="other")).encode())
    assert outcome(b".".join((header, payload, signature)), credentials()) == INVALID


@pytest.mark.parametrize(
    ("keys", "key_id"),
    [({}, "k-1"), ({}, None), ({"k-2": OTHER_RSA.public_key()}, "k-1"), ({"k-1": OTHER_RSA.public_key()}, None)],
)
def test_a_key_that_is_not_at_hand_is_wanted(keys: dict[str, Any], key_id: str | None) -> None:
    """An unknown key has the issuer's keys fetched; the token is refused only if they were fetched a moment ago."""
    token = signed(key_id=key_id)
    with pytest.raises(KeysWanted) as caught:
        authenticate(b"Bearer " + token, credentials(keys=keys), NOW)
    assert caught.value.issuer == ISSUER
    told = outcome(token, credentials(keys=keys), keys_current=True)
    assert told == (401, "the token is signed with a key that its issuer doesn't have")


def test_a_token_that_names_no_key_is_tried_with_each() -> None:
    """A token without a key's name is accepted if any of its issuer's keys signed it."""
    keys = {"k-1": OTHER_RSA.public_key(), "k-2": RSA.public_key()}
    assert outcome(signed(key_id=None), credentials(keys=keys)) == "acme"


def test_no_keys_are_wanted_of_an_unknown_issuer() -> None:
    """A token with an unknown issuer has no keys fetched."""
    token = signed(iss="https://evil.example")
    assert outcome(token, credentials(keys={})) == UNKNOWN


# Tokens that were verified before.


def test_a_verified_token_is_known_until_it_expires() -> None:
    """A token is verified once: after that it needs no key, until its time, leeway included, is over."""
    known, token = credentials(), signed(exp=NOW + 60)
    assert outcome(token, known) == "acme"
    known.keys.clear()
    assert outcome(token, known, NOW + 60 + LEEWAY - 0.001) == "acme"
    with pytest.raises(KeysWanted):
        outcome(token, known, NOW + 60 + LEEWAY)


def test_a_verified_token_is_verified_again_once_it_expired() -> None:
    """A verified token is refused once its time is over."""
    for token, leeway in ((signed(exp=NOW + 60), LEEWAY), (mint(SECRET, "acme", 60, NOW).encode(), 0)):
        known = credentials()
        assert outcome(token, known, NOW + 60 + leeway - 0.001) == "acme"
        assert outcome(token, known, NOW + 60 + leeway) == EXPIRED


def test_what_a_replaced_key_verified_is_verified_again() -> None:
    """A token whose key its issuer withdrew is no longer accepted, however often it was."""
    known, token = credentials(), signed()
    assert outcome(token, known) == "acme"
    known.replace_keys(ISSUER, {"k-1": OTHER_RSA.public_key()})
    assert outcome(token, known) == INVALID
    known.replace_keys(ISSUER, {"k-2": RSA.public_key()})
    with pytest.raises(KeysWanted):
        outcome(token, known)
    known.replace_keys(ISSUER, {"k-1": RSA.public_key()})
    assert outcome(token, known) == "acme"


def test_a_refused_token_is_not_remembered() -> None:
    """A refused token leaves no trace, and is judged anew when there is reason to."""
    known, token = credentials(), signed(nbf=NOW + 60)
    assert outcome(token, known) == EXPIRED
    assert not known.verified
    assert outcome(token, known, NOW + 60) == "acme"


def test_the_memory_of_verified_tokens_is_limited() -> None:
    """When there are too many verified tokens, the one verified first is forgotten, and is verified again."""
    known = credentials()
    first, last = signed(jti="first"), signed(jti="last")
    assert outcome(first, known) == "acme"
    known.verified.update((number.to_bytes(32), ("filler", NOW + 1)) for number in range(9_999))
    assert outcome(last, known) == "acme"
    assert len(known.verified) == 10_000
    assert sha256(first).digest() not in known.verified
    assert outcome(first, known) == "acme"


# Any header.


def segments(token: bytes) -> set[str]:
    """Every run of eight characters of a token."""
    text = token.decode("latin-1")
    return {text[index : index + 8] for index in range(len(text) - 7)}


CANARY = "canary-7f3a9e1c5b2d"
#: A name is no secret, but it is shown only if a signature proves it.
SIGNED_NAMES = {"", "acme", CANARY}


@pytest.mark.parametrize(
    ("token", "now", "keys_current"),
    [
        (CANARY.encode(), NOW, False),
        (CANARY.encode() + b"\xff", NOW, False),
        (b"expired-canary", NOW, False),
        (CANARY.encode() * 1000, NOW, False),
        (b"%s.%s.%s" % ((CANARY.encode(),) * 3), NOW, False),
        (forged({"alg": CANARY}, {CANARY: CANARY}), NOW, False),
        (forged(HS256, MINTED | {"sub": CANARY}, CANARY.encode()), NOW, False),
        (forged(HS256, MINTED | {"sub": f"{CANARY} {CANARY}"}, SECRET), NOW, False),
        (forged(HS256, MINTED | {"exp": CANARY}, SECRET), NOW, False),
        (mint(SECRET, CANARY, 60, NOW).encode(), NOW + 60, False),
        (signed(iss=CANARY), NOW, False),
        (signed(aud=CANARY), NOW, False),
        (signed(sub=f"{CANARY} "), NOW, False),
        (signed(exp=CANARY), NOW, False),
        (signed(nbf=CANARY), NOW, False),
        (signed(exp=NOW - 60), NOW, False),
        (signed(key_id=CANARY), NOW, True),
        (signed(key_id=CANARY), NOW, False),
        (forged({"alg": CANARY, "kid": "k-1"}, claims()), NOW, False),
    ],
)
def test_no_refusal_tells_anything_of_the_token(token: bytes, now: float, keys_current: bool) -> None:
    """Neither the message of a refusal nor any representation of it has a part of the token or its claims."""
    known = credentials()
    known.tokens |= {expired.sha256: expired for expired in [static("expired-canary", ends=-1)]}
    with pytest.raises((Refused, KeysWanted)) as caught:
        authenticate(b"Bearer " + token, known, now, keys_current=keys_current)
    told = f"{caught.value!r} {caught.value} { {**vars(caught.value), 'sender': ''} }"
    assert getattr(caught.value, "sender", "") in SIGNED_NAMES
    assert not {segment for segment in segments(token) | segments(CANARY.encode()) if segment in told}
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
ALGORITHMS: st.SearchStrategy[Any] = st.sampled_from(["none", "HS256", "RS256", "ES256", "EdDSA", None]) | JSON
ISSUERS: st.SearchStrategy[Any] = st.sampled_from([ISSUER, MINT_ISSUER]) | JSON
HEADERS = JSON | st.fixed_dictionaries(
    {"alg": ALGORITHMS},
    optional={"kid": st.sampled_from(["k-1", "ec", "secret"]) | JSON, "crit": JSON, "b64": JSON, "typ": JSON},
)
PAYLOADS = JSON | st.fixed_dictionaries(
    {"iss": ISSUERS},
    optional={"aud": st.just(AUDIENCE) | JSON, "exp": st.just(NOW + 60) | JSON, "sub": JSON, "nbf": JSON, "jti": JSON},
)
FORGED = st.builds(forged, HEADERS, PAYLOADS, st.sampled_from([None, b"wrong", RSA_PEM]))
#: Claims signed with our secret, which must not raise an error.
OWN = st.builds(forged, st.just(HS256), PAYLOADS.filter(lambda payload: isinstance(payload, dict)), st.just(SECRET))


def refused_or_wanted(authorization: bytes, known: Credentials) -> bool:
    """Whether a value of Authorization does not authenticate; it may raise only Refused and KeysWanted."""
    try:
        authenticate(authorization, known, NOW)
    except (Refused, KeysWanted):
        return True
    return False


@given(st.binary() | st.binary().map(b"Bearer ".__add__) | FORGED.map(b"Bearer ".__add__))
def test_nothing_forged_gets_in(authorization: bytes) -> None:
    """Any header without a right token and key is refused, and no other error is raised."""
    assert refused_or_wanted(authorization, credentials(keys=KEYS, algorithms=["RS256", "ES256", "EdDSA"]))


@given(OWN)
def test_no_claims_break_it(token: bytes) -> None:
    """A token with a right signature and any claims is accepted or refused, and no other error is raised."""
    refused_or_wanted(b"Bearer " + token, credentials())


@pytest.mark.parametrize("place", [0, 1])
def test_deep_nesting_in_a_token_is_refused(place: int) -> None:
    """A token that is nested as deeply as fits into the header is refused like any other unknown one."""
    parts = [b'{"alg": "HS256"}', b"{}"]
    parts[place] = b'{"a": ' + b"[" * 2900 + b"]" * 2900 + b"}"
    token = b".".join(map(encoded, parts)) + b".AA"
    assert outcome(token, credentials()) == UNKNOWN
