"""Tokens: right ones in every spelling, wrong and forged ones, and the issuer whose keys verify them."""

import base64
import hashlib
import hmac
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

ISSUER = "https://auth.operator.example"
AUDIENCE = "fuzzed-receiver"
#: A configured header that may have the token, for gateways that put their own token into Authorization.
MORE_HEADER = "x-qod-token"
_KEY_ID = "k-1"
_DAY_SECONDS = 86_400
_ZEROS = bytes(64)

Pairs = list[tuple[str, str]]
"""Headers, in order."""


class Shown(NamedTuple):
    """A request's headers with a token, and the right sender, or the right statuses."""

    headers: Pairs
    sender: str
    statuses: frozenset[int]
    tag: str


class Tokens:
    """The tokens of a receiver: `plain` by sender, those of the issuer, and those minted with the receiver's secret."""

    def __init__(self, chance: random.Random) -> None:
        key = ec.derive_private_key(chance.getrandbits(250) | 1, ec.SECP256R1())
        public = key.public_key()
        self._key = key
        self._public = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._jwk = ECAlgorithm.to_jwk(public, as_dict=True) | {"kid": _KEY_ID, "use": "sig"}
        self.keys = json.dumps({"keys": [self._jwk]}).encode()
        # Letters of both cases, digits and what tokens may have beside them.
        names = ("acme", "bell", "tele-3", "operator_4")
        self.plain = {name: f"{chance.getrandbits(160):x}-{name.upper()}/+~._=" for name in names}
        self.expired = f"expired-{chance.getrandbits(160):x}"
        self.early = f"early-{chance.getrandbits(160):x}"
        self.secret = b""
        self.signed = {f"jwt-{number}": self._sign({"sub": f"jwt-{number}"}) for number in range(20)}
        self.minted: dict[str, str] = {}
        self._forged: list[tuple[str, str, frozenset[int]]] = []

    def configuration(self, jwks_url: str) -> str:
        """The settings of a receiver that accepts these tokens, as TOML."""
        sections = [
            f'[[auth.tokens]]\nsender = "{name}"\nsha256 = "{_sha256(token)}"\n{limit}'
            for name, token, limit in (
                *((name, token, "") for name, token in self.plain.items()),
                ("acme", self.expired, "not_after = 2020-01-01T00:00:00Z\n"),
                ("acme", self.early, "not_before = 2099-01-01T00:00:00Z\n"),
            )
        ]
        issuer = f'[[auth.jwt]]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\njwks_url = "{jwks_url}"\n'
        return "\n".join([f'[auth]\nheaders = ["{MORE_HEADER}"]\n', *sections, issuer])

    def use_secret(self, secret: bytes) -> None:
        """Mint tokens with the receiver's own secret, and forge tokens that are nearly right."""
        self.secret = secret
        expires = int(time.time()) + _DAY_SECONDS
        for number in range(5):
            claims = {"iss": "qod-receiver", "sub": f"minted-{number}", "exp": expires}
            self.minted[f"minted-{number}"] = hs256({}, claims, secret)
        self._forged = [(name, token, statuses) for name, (token, statuses) in self._forgeries(expires).items()]

    def right(self, chance: random.Random) -> tuple[str, str]:
        """A sender and a token of it."""
        table = chance.choice((self.plain, self.plain, self.signed, self.minted))
        sender = chance.choice(list(table))
        return sender, table[sender]

    def every(self) -> list[str]:
        """All right tokens, which must not appear in any output."""
        return [*self.plain.values(), *self.signed.values(), *self.minted.values()]

    def shown(self, chance: random.Random) -> Shown:
        """A right token, mostly in its usual spelling."""
        sender, token = self.right(chance)
        if chance.random() < 0.6:
            return Shown([("Authorization", f"Bearer {token}")], sender, frozenset(), "token: Bearer")
        name = chance.choice(list(SPELLINGS))
        return Shown(SPELLINGS[name](token, chance), sender, frozenset(), f"token: {name}")

    def wrong(self, chance: random.Random) -> Shown:
        """A wrong token, or none."""
        if chance.random() < 0.5:
            name, token, statuses = chance.choice(self._forged)
            return Shown(_around(token, chance), "", statuses, f"forged: {name}")
        _, right = self.right(chance)
        wrongs = self._wrongs(right, chance)
        name = chance.choice(list(wrongs))
        return Shown(wrongs[name], "", frozenset({401}), f"wrong token: {name}")

    def _wrongs(self, right: str, chance: random.Random) -> Mapping[str, Pairs]:
        at = chance.randrange(len(right))
        texts = {
            "empty": "",
            "a scheme alone": chance.choice(("Bearer", "Bearer ", "Basic", "bearer:")),
            "random": f"Bearer {chance.getrandbits(256):x}",
            "cut off": f"Bearer {right[:-1]}",
            "longer": f"Bearer {right}x",
            "in other case": f"Bearer {right.swapcase()}",
            "one character off": f"Bearer {right[:at]}{'!' if right[at] != '!' else '.'}{right[at + 1 :]}",
            "within something": f"Bearer x{right}x",
            "latin": f"Bearer {right}\xe9",
            "no text": "\xff\xfe",
            "long": f"Bearer {'x' * chance.choice((8_193, 9_000))}",
            "its hash": f"Bearer {_sha256(right)}",
            "expired": f"Bearer {self.expired}",
            "early": f"Bearer {self.early}",
            "three dots": "Bearer a.b.c",
            "many dots": f"Bearer {'.' * 50}",
        }
        return {"none": [], **{name: [("Authorization", text)] for name, text in texts.items()}}

    def _sign(self, claims: Mapping[str, Any], key: object = None, **header: object) -> str:
        whole = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + _DAY_SECONDS, **claims}
        told = {name: value for name, value in whole.items() if value is not ...}
        return jwt.encode(told, key or self._key, "ES256", {"kid": _KEY_ID, **header})  # type: ignore[arg-type]

    def _forgeries(self, expires: int) -> Mapping[str, tuple[str, frozenset[int]]]:
        """Forged tokens: their names, and the right statuses."""
        other = ec.generate_private_key(ec.SECP256R1())
        good, another = self._sign({"sub": "acme"}), self._sign({"sub": "bell"})
        head, claims, signature = good.split(".")
        whole = {"iss": ISSUER, "aud": AUDIENCE, "exp": expires, "sub": "acme"}
        ours = {"iss": "qod-receiver", "sub": "acme", "exp": expires}
        key = {"alg": "HS256", "kid": _KEY_ID}
        wrong = {
            "no algorithm": f"{part({'alg': 'none'})}.{part(whole)}.",
            "no algorithm, a signature": f"{part({'alg': 'nOnE', 'kid': _KEY_ID})}.{claims}.{signature}",
            "no algorithm, ours": f"{part({'alg': 'none'})}.{part(ours)}.",
            "the public key as a secret": hs256(key, whole, self._public),
            "the public JWK as a secret": hs256(key, whole, json.dumps(self._jwk).encode()),
            "an empty secret": hs256(key, whole, b""),
            "an empty secret, ours": hs256({}, ours, b""),
            "another secret, ours": hs256({}, ours, b"secret" * 8),
            "HS512 by name": hs256({"alg": "HS512"}, ours, self.secret),
            "no signature": f"{head}.{claims}.",
            "two parts": f"{head}.{claims}",
            "four parts": f"{good}.{signature}",
            "another's signature": f"{head}.{claims}.{another.split('.')[2]}",
            "a signature of zeros": f"{head}.{claims}.{base64url(_ZEROS)}",
            "other claims": f"{head}.{part(whole | {'sub': 'bell'})}.{signature}",
            "another key": self._sign({"sub": "acme"}, other),
            "a key of its own": self._sign(
                {"sub": "acme"}, other, jwk=ECAlgorithm.to_jwk(other.public_key(), as_dict=True)
            ),
            "expired": self._sign({"sub": "acme", "exp": time.time() - 3600}),
            "expired, ours": hs256({}, ours | {"exp": 1}, self.secret),
            "too early": self._sign({"sub": "acme", "nbf": time.time() + 3600}),
            "without an end": self._sign({"sub": "acme", "exp": ...}),
            "without an end, ours": hs256({}, {"iss": "qod-receiver", "sub": "acme"}, self.secret),
            "no number for an end": hs256({}, ours | {"exp": "never"}, self.secret),
            "no end that is a number": _json_claims(b'{"iss":"qod-receiver","sub":"acme","exp":NaN}', self.secret),
            "a list for an end": hs256({}, ours | {"exp": [expires]}, self.secret),
            "for somebody else": self._sign({"sub": "acme", "aud": "another"}),
            "for nobody": self._sign({"sub": "acme", "aud": ...}),
            "of another issuer": self._sign({"sub": "acme", "iss": "https://auth.other.example"}),
            "of no issuer": self._sign({"sub": "acme", "iss": ...}),
            "of the receiver, by the issuer": self._sign({"sub": "acme", "iss": "qod-receiver"}),
            "a list of issuers": f"{head}.{part(whole | {'iss': [ISSUER]})}.{signature}",
            "claims that are none": f"{head}.{base64url(b'[]')}.{signature}",
            "a head that is none": f"{base64url(b'[1]')}.{claims}.{signature}",
            "deep claims": f"{head}.{base64url(b'[' * 4000)}.{signature}",
            "no Base64": f"{head}.%%%.{signature}",
            "an extension that must be known": self._sign({"sub": "acme"}, crit=["exp"], b64=False),
        }
        # A key may be new, and its issuer can't be asked all the time: until then nothing tells whether the token is
        # right.
        unknown = {
            f"a key id such as {name!r:.20}": self._sign({"sub": "acme"}, other, kid=name)
            for name in ("k-2", "../../../dev/null", "' OR 1=1 --", "x" * 500)
        }
        nameless = {
            "nobody's": self._sign({}),
            "of a name that doesn't fit": self._sign({"sub": "no name"}),
            "of an empty name": self._sign({"sub": ""}),
            "of a number": self._sign({"sub": 7}),
            "of a list": self._sign({"sub": ["acme"]}),
            "of a long name": self._sign({"sub": "a" * 200}),
            "nobody's, ours": hs256({}, {"iss": "qod-receiver", "exp": expires}, self.secret),
        }
        return {
            **{name: (token, frozenset({401})) for name, token in wrong.items()},
            **{name: (token, frozenset({401, 503})) for name, token in unknown.items()},
            **{name: (token, frozenset({403})) for name, token in nameless.items()},
        }


def _around(token: str, chance: random.Random) -> Pairs:
    name = chance.choice(("Bearer", "Bearer", "without a scheme", "glued", "in the other header alone"))
    return [("Authorization", f"Bearer {token}")] if name == "Bearer" else SPELLINGS[name](token, chance)


Spelling = Callable[[str, random.Random], Pairs]


def _texts(*texts: str) -> Spelling:
    return lambda token, chance: [("Authorization", chance.choice(texts).format(token))]


#: Spellings in which a right token counts.
SPELLINGS: dict[str, Spelling] = {
    "in other case": _texts("bearer {}", "BEARER {}", "bEaReR {}"),
    "many blanks": _texts("Bearer   {}", "Bearer {}  ", "  Bearer {}"),
    "a colon": _texts("Bearer: {}", "Bearer:{}", "bearer : {}"),
    "the scheme twice": _texts("Bearer Bearer {}", "Bearer bearer {}"),
    "glued": _texts("Bearer{}", "bearer{}"),
    "without a scheme": _texts("{}"),
    "another scheme": _texts("Token {}", "Basic {}", "JWT {}", "ApiKey {}", "OAuth {}"),
    "in quotes": _texts('Bearer "{}"', "Bearer '{}'", "Bearer <{}>", '"{}"'),
    "with other marks": _texts("Bearer\t{}", "Bearer={}", "Bearer {},", '"Bearer {}"', "Authorization: Bearer {}"),
    "merged": _texts("Bearer {0}, Bearer {0}", "Bearer {0},Bearer {0}"),
    "doubled": lambda t, _: [("Authorization", f"Bearer {t}"), ("authorization", f"Bearer {t}")],
    "beside another": lambda t, c: c.sample([("Authorization", f"Bearer {t}"), ("authorization", "Basic eDp5")], 2),
    "merged with another": _texts("Bearer {}, Basic eDp5", "Basic eDp5, Bearer {}", "Bearer other,Bearer {}"),
    "in the other header": lambda t, c: [
        ("Authorization", c.choice(("Bearer gateways", "Basic Z2F0ZXdheQ==", "x"))),
        (MORE_HEADER, c.choice(("{}", "Bearer {}")).format(t)),
    ],
    "in the other header alone": lambda t, _: [(MORE_HEADER.title(), f"Bearer {t}")],
}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def base64url(content: bytes) -> str:
    """Base64 as JWTs use it."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def part(tree: Mapping[str, object]) -> str:
    """A part of a JWT."""
    return base64url(json.dumps(tree).encode())


def hs256(header: Mapping[str, object], claims: Mapping[str, object], secret: bytes) -> str:
    """A JWT that is signed with a secret, whatever its header says."""
    return _json_claims(json.dumps(claims).encode(), secret, header)


def _json_claims(claims: bytes, secret: bytes, header: Mapping[str, object] | None = None) -> str:
    text = f"{part({'alg': 'HS256', 'typ': 'JWT', **(header or {})})}.{base64url(claims)}"
    return f"{text}.{base64url(hmac.digest(secret, text.encode(), 'sha256'))}"


@contextmanager
def key_server(keys: bytes) -> Iterator[str]:
    """An issuer's keys on a port of the loopback interface; yields their URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(keys)))
            self.end_headers()
            self.wfile.write(keys)

        def log_message(self, *_: object) -> None:
            """Write no log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/keys"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
