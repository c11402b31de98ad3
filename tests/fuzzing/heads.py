"""Requests as bytes: heads, framings, paths and methods, valid and broken, and the right results of each."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tests.fuzzing.contents import BODY_BYTES_MAX, Content
from tests.fuzzing.expected import CLOSED, End, Line, Part, Request, Sent, lines_of
from tests.fuzzing.tokens import Pairs, Shown

HEAD_BYTES_MAX = 16_384
PATH = "/notifications"

Right = Mapping[int, Sequence[Line]]
#: Bytes that two readers could read in two ways must be refused, or the connection closed without an answer. Nothing is
#: kept.
REFUSED: Right = {400: (), CLOSED: ()}

#: Spellings of our path.
PATHS: Mapping[str, Sequence[str]] = {
    "path: a slash at its end": ("/notifications/", "/notifications//"),
    "path: slashes": ("//notifications", "///notifications//"),
    "path: as release 0.8 appends it": (
        *("/notifications/notifications", "/notifications/notifications/", "/notifications//notifications"),
    ),
    "path: a query": ("/notifications?x=y", "/notifications?", "/notifications/?access_token=x&a"),
    "path: escaped": ("/%6eotifications", "/notification%73/%6eotifications"),
    "path: absolute": ("http://localhost/notifications", "http://other:99/notifications?a", "HTTP://A/notifications"),
}
BESIDE: Mapping[str, Sequence[str]] = {
    "beside: another case": ("/Notifications", "/NOTIFICATIONS"),
    "beside: near": (
        "/notification",
        "/notifications.",
        "/notifications.json",
        "/notifications;x=1",
        "/notifications,",
    ),
    "beside: below": ("/notifications/x", "/notifications/notifications/notifications", "/notifications/../x"),
    "beside: dots": ("/./notifications", "/notifications/.", "/x/../notifications", "/notifications/notifications/.."),
    "beside: root": ("/", "//", "/?a", "http://localhost/"),
    "beside: elsewhere": ("/api/qod/callback", "/v1/notifications", "/a/b/c?token=x", "/livez", "/metrics", "/replay"),
    "beside: escaped oddly": ("/notifications%00", "/%ff", "/%zz", "/notifications%0d%0aX:%20y", "/%E2%9C%93"),
    "beside: long": (f"/{'x' * 3000}", f"/{'a/' * 1000}", f"/{'%41' * 900}"),
}
#: An escaped slash may count as a slash or not.
EITHER_PATH = ("/notifications%2F", "/notifications%2Fnotifications", "/notifications#fragment")

OTHER_METHODS = ("PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "SEARCH")
PROBES = ("GET", "HEAD", "OPTIONS")


class Head(NamedTuple):
    """The first line and the headers of a request, without those of the body's length."""

    method: str
    target: str
    version: str
    headers: Pairs

    def encoded(self, *more: tuple[str, str]) -> bytes:
        """The head as bytes, with more headers."""
        lines = [f"{self.method} {self.target} HTTP/{self.version}"]
        lines += [f"{name}: {value}" for name, value in (*self.headers, *more)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def replaced(self, name: str, *values: str) -> "Head":
        """The head with these values of a header in place of its own."""
        others = [pair for pair in self.headers if pair[0].lower() != name.lower()]
        return self._replace(headers=[*others, *((name, value) for value in values)])


def head(shown: Shown, content: Content, more: Pairs, chance: random.Random) -> Head:
    """A head as a client might write it."""
    kind, *_ = (value for name, value in content.headers.items() if name == "content-type")
    headers = [("Host", "localhost"), *shown.headers, *more]
    if kind or chance.random() < 0.5:
        headers.append(("Content-Type", kind))
    headers += [(name, value) for name, value in content.headers.items() if name != "content-type" and value]
    if chance.random() < 0.3:
        chance.shuffle(headers)
    if chance.random() < 0.2:
        change = chance.choice((str.upper, str.lower, str.title))
        headers = [(change(name), value) for name, value in headers]
    return Head("POST", PATH, "1.1", headers)


# Framings.


def _chunks(body: bytes, chance: random.Random) -> list[bytes]:
    if not body or chance.random() < 0.3:
        return [body] if body else []
    size = chance.choice((1, 7, 100, 1000)) if len(body) < 2000 else 4000
    return [body[at : at + size] for at in range(0, len(body), size)]


def chunked(body: bytes, chance: random.Random) -> bytes:
    """A body in chunks, with the extras that chunks may have."""
    extension = chance.choice((b"", b"", b";a=b", b";a", b';a="b"'))
    trailer = chance.choice((b"", b"", b"X-Trailer: a\r\n", b"Authorization: Bearer x\r\nContent-Encoding: br\r\n"))
    size = chance.choice((b"%x", b"%X", b"0%x"))
    parts = [(size % len(chunk)) + extension + b"\r\n" + chunk + b"\r\n" for chunk in _chunks(body, chance)]
    return b"".join(parts) + b"0\r\n" + trailer + b"\r\n"


def framed(asked: Head, body: bytes, chance: random.Random) -> tuple[bytes, str]:
    """The whole request, with its framing."""
    if chance.random() < 0.75:
        return asked.encoded(("Content-Length", str(len(body)))) + body, "framing: length"
    name = chance.choice(("Transfer-Encoding", "transfer-encoding"))
    return asked.encoded((name, chance.choice(("chunked", "Chunked", "CHUNKED")))) + chunked(body, chance), (
        "framing: chunks"
    )


def right_of(content: Content, sent: Sent) -> Right:
    """The right results of an accepted request."""
    return {content.status: [line for part in content.parts for line in lines_of(part, sent)]}


# Valid but odd heads. Each function changes a head.

Change = Callable[[Head, random.Random], Head]


def _again(name: str) -> Change:
    def doubled(asked: Head, chance: random.Random) -> Head:
        values = [value for each, value in asked.headers if each.lower() == name]
        spell = chance.choice((str.upper, str.lower, str.title))
        more = [(spell(name), values[0])] if values else []
        return asked._replace(headers=[*asked.headers, *more])

    return doubled


def _merged_type(asked: Head, chance: random.Random) -> Head:
    values = [value for name, value in asked.headers if name.lower() == "content-type" and value]
    return asked.replaced("Content-Type", chance.choice((", ", ",")).join(values * 2)) if values else asked


def _with(*pairs: tuple[str, str]) -> Change:
    return lambda asked, _: asked._replace(headers=[*asked.headers, *pairs])


def _filled(asked: Head, chance: random.Random) -> Head:
    length = HEAD_BYTES_MAX - len(asked.encoded()) - chance.choice((200, 2_000, 8_000))
    return asked._replace(headers=[*asked.headers, ("X-Filled", "x" * max(1, length))])


ODD_HEADS: Mapping[str, Change] = {
    "header doubled: Host": _again("host"),
    "header doubled: Content-Type": _again("content-type"),
    "header merged: Content-Type": _merged_type,
    "header: many": lambda h, c: h._replace(headers=[*h.headers, *((f"X-{n}", f"{c.random()}") for n in range(150))]),
    "header: long": _filled,
    "header: latin": _with(("X-Latin", "\xe9\xff")),
    "header: empty": _with(("X-Empty", ""), ("X-Blank", "   ")),
    "header: the same with other values": _with(("X-Other", "a"), ("x-other", "b"), ("Accept", "*/*")),
    "header: upgrade": _with(("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMA")),
    "header: websocket": _with(("Connection", "upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "x")),
    "header: of proxies": _with(("X-Forwarded-For", "1.2.3.4, x"), ("Forwarded", "for=_x"), ("Via", "1.1 a")),
    "header: another method": _with(("X-HTTP-Method-Override", "DELETE"), ("X-Original-URL", "/livez")),
    "header: nearly the length's": _with(("Content_Length", "1"), ("X-Content-Length", "5"), ("Content-Lengths", "9")),
    "header: names of attributes": _with(("ce", "x"), ("xce-id", "y"), ("c-e-id", "z")),
    "header: blanks around": lambda h, _: h._replace(headers=[(n, f"  {v} \t") if v else (n, v) for n, v in h.headers]),
}

# Broken requests. Each function makes the bytes of a head and a body; none of it is kept.

Broken = Callable[[Head, bytes, random.Random], bytes]


def _length(text: str) -> Broken:
    return lambda h, b, _: h.encoded(("Content-Length", text.format(len(b), len(b) + 1))) + b


def _coding(*texts: str) -> Broken:
    return lambda h, b, c: h.encoded(("Transfer-Encoding", c.choice(texts))) + chunked(b, c)


def _line(line: bytes) -> Broken:
    return lambda h, b, _: _inserted(h.encoded(("Content-Length", str(len(b)))), line) + b


def _inserted(encoded: bytes, line: bytes) -> bytes:
    first, _, rest = encoded.partition(b"\r\n")
    return first + b"\r\n" + line + b"\r\n" + rest


def _first(method: str = "POST", target: str = PATH, version: str = "HTTP/1.1", blank: str = " ") -> Broken:
    line = blank.join(filter(None, (method, target, version))).encode("latin-1")

    def made(asked: Head, body: bytes, _: random.Random) -> bytes:
        rest = asked.encoded(("Content-Length", str(len(body)))).partition(b"\r\n")[2]
        return line + b"\r\n" + rest + body

    return made


def _lines_ended(end: bytes) -> Broken:
    return lambda h, b, _: h.encoded(("Content-Length", str(len(b)))).replace(b"\r\n", end) + b


def _chunk(text: bytes) -> Broken:
    return lambda h, _b, _c: h.encoded(("Transfer-Encoding", "chunked")) + text


BROKEN: Mapping[str, Broken] = {
    "smuggling: length and chunks": lambda h, b, c: (
        h.encoded(*c.sample([("Content-Length", str(len(b))), ("Transfer-Encoding", "chunked")], 2))
        + c.choice((b, chunked(b, c), b"0\r\n\r\n" + b))
    ),
    "smuggling: two lengths": lambda h, b, c: (
        h.encoded(
            *c.sample([("Content-Length", str(len(b))), ("Content-Length", str(c.choice((0, 5, len(b) + 9))))], 2)
        )
        + b
    ),
    "smuggling: a length twice": lambda h, b, _: h.encoded(*[("Content-Length", str(len(b)))] * 2) + b,
    "smuggling: lengths merged": _length("{0}, {0}"),
    "smuggling: a signed length": lambda h, b, c: _length(c.choice(("+{0}", "-{0}", "-0")))(h, b, c),
    "smuggling: an odd length": lambda h, b, c: _length(
        c.choice(("0x{0:x}", "{0}.0", "1_0", "{0} {0}", "{0};", "", "{0}e0", "9" * 30))
    )(h, b, c),
    "smuggling: a length with a blank": lambda h, b, _: h.encoded(("Content-Length ", str(len(b)))) + b,
    "smuggling: an odd coding": _coding(
        *("xchunked", "chunked, identity", "identity", "\x0bchunked", "chunked;x", "chunk", "chunked\0", "'chunked'"),
        *("gzip", "chunkedchunked", "chunked, x"),
    ),
    "smuggling: a coding with a blank": lambda h, b, c: h.encoded(("Transfer-Encoding ", "chunked")) + chunked(b, c),
    "smuggling: a coding of two": lambda h, b, c: (
        h.encoded(("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")) + chunked(b, c)
    ),
    "smuggling: a folded coding": lambda h, b, c: h.encoded(("Transfer-Encoding", "\r\n chunked")) + chunked(b, c),
    "smuggling: a chunk's odd size": lambda h, b, c: _chunk(
        c.choice((b"x", b"-5", b"+5", b"0x5", b"5 ", b" 5", b"fffffffffffffffffffff", b"5;\0", b"", b"5_0"))
        + b"\r\nhello\r\n0\r\n\r\n"
        + b
    )(h, b, c),
    "smuggling: a chunk's odd end": lambda h, b, c: _chunk(
        c.choice((b"5\r\nhelloX\r\n", b"5\r\nhello", b"5\r\nhello\n", b"5\nhello\n", b"5\rhello\r")) + b"0\r\n\r\n" + b
    )(h, b, c),
    "smuggling: an odd trailer": lambda h, b, c: _chunk(
        b"5\r\nhello\r\n0\r\n" + c.choice((b"bad trailer", b": x", b"a\0: b", b" a: b")) + b"\r\n\r\n" + b
    )(h, b, c),
    "broken: lines that end oddly": lambda h, b, c: _lines_ended(c.choice((b"\n", b"\r", b"\r\r\n", b"\0\r\n")))(
        h, b, c
    ),
    "broken: a folded header": lambda h, b, c: _line(c.choice((b"X-A: a\r\n b", b"X-A: a\r\n\tb", b" X: a")))(h, b, c),
    "broken: an odd header": lambda h, b, c: _line(
        c.choice((b"X-A: a\0b", b"X\0: a", b"X y: a", b": a", b"no colon", b"X-A : a", b"X(: a", b"X-A: a\rb"))
    )(h, b, c),
    "broken: a host twice": lambda h, b, c: _line(c.choice((b"Host: other", b"Host: localhost:80", b"host:")))(h, b, c),
    "broken: an odd version": lambda h, b, c: _first(
        version=c.choice(("HTTP/1.9", "HTTP/3", "HTTP/2.0", "HTTP/0.9", "HTP/1.1", "http/1.1", "HTTP/11", "HTTP/1.1x"))
    )(h, b, c),
    "broken: no version": _first(version=""),
    "broken: an odd method": lambda h, b, c: _first(c.choice(("PoST", "FOO", "POST\0", "P", "post", "(x)", "")))(
        h, b, c
    ),
    "broken: CONNECT": lambda h, b, c: _first("CONNECT", c.choice(("localhost:80", PATH)))(h, b, c),
    "broken: an odd target": lambda h, b, c: _first(
        target=c.choice(("notifications", "*", "/a b", "/notific\0ations", "", "/\x7f", "//[", "/ /", "http:/x y"))
    )(h, b, c),
    "broken: tabs": _first(blank="\t"),
    "broken: another protocol": lambda _h, b, c: (
        c.choice((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 100))
        + c.choice((b"", b))
    ),
    "broken: the body alone": lambda _h, b, _c: b + b"\r\n\r\n",
}
#: These are refused with a status of their own, and then the connection is closed.
TOO_LONG: Mapping[str, tuple[int, Broken]] = {
    "head too long: a header": (431, _line(b"X-Long: " + b"x" * HEAD_BYTES_MAX)),
    "head too long: many": (431, _line(b"\r\n".join([b"X-Many: 1234567890"] * 900))),
    "head too long: a query": (431, _first(target=f"{PATH}?{'q' * HEAD_BYTES_MAX}")),
    "head too long: without an end": (431, lambda h, _b, _c: h.encoded()[:-2] + b"X: " + b"x" * 2 * HEAD_BYTES_MAX),
    "head too long: trailers": (
        431,
        lambda h, _b, _c: h.encoded(("Transfer-Encoding", "chunked")) + b"0\r\n" + b"X: 1234567890\r\n" * 3000,
    ),
}


def broken(asked: Head, content: Content, beside: Part, sent: Sent, chance: random.Random) -> Request:
    """A broken request, which nothing may accept."""
    if chance.random() < 0.12:
        name = chance.choice(list(TOO_LONG))
        status, made = TOO_LONG[name]
        return Request(made(asked, content.body, chance), {status: (), CLOSED: ()}, (name,), ends=End.SENDING)
    name = chance.choice(list(BROKEN))
    right: dict[int, Sequence[Line]] = dict(REFUSED)
    if "version" in name:  # HTTP/0.9 has none, and some readers take it for HTTP/1
        taken = right_of(content, sent)
        right |= {400: [("perhaps dead-letter",)]} if 400 in taken else taken
    if name == "broken: an odd target":  # some readers take one of these for a path that is not served
        right[404] = lines_of(beside, sent._replace(origin="beside"))
    if "length" in name:
        right[413] = ()
    raw = BROKEN[name](asked, content.body, chance)
    return Request(raw, right, (name,), ends=End.SENDING, after=frozenset({400}))


def too_large(asked: Head, chance: random.Random) -> Request:
    """A body that is too large, by its announced length or by its bytes."""
    name, raw = chance.choice(
        (
            ("told", asked.encoded(("Content-Length", str(BODY_BYTES_MAX + chance.choice((1, 10**6, 10**15, 2**63)))))),
            ("chunks", asked.encoded(("Transfer-Encoding", "chunked")) + chunked(b"x" * (BODY_BYTES_MAX + 1), chance)),
        )
    )
    return Request(raw, {413: ()}, (f"too large: {name}",), ends=End.LEAVING)
