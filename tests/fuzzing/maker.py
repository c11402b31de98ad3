"""Conversations: all requests on one connection, made from a seed and a number, with the right results of each."""

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from tests.fuzzing.contents import (
    BODY_BYTES_MAX,
    Content,
    content,
    mutated,
    of_change,
    of_changes,
    padded,
)
from tests.fuzzing.expected import CLOSED, End, Line, Part, Request, Sent, any_of, lines_of
from tests.fuzzing.facts import change
from tests.fuzzing.heads import (
    BESIDE,
    EITHER_PATH,
    ODD_HEADS,
    OTHER_METHODS,
    PATHS,
    PROBES,
    Head,
    Right,
    broken,
    chunked,
    framed,
    head,
    right_of,
    too_large,
)
from tests.fuzzing.stories import Story, story
from tests.fuzzing.tokens import Pairs, Shown, Tokens

#: When more requests than this wait for an answer, the server may stop reading for a while.
_PIPELINE_MAX = 60
#: The server reads this many bytes at once.
_AT_ONCE_BYTES_MAX = 16_384


class Conversation(NamedTuple):
    """Requests on one connection. Where they are pipelined, each is sent before the answer to the last came.

    `pieces` are the sizes of the pieces in which the bytes are sent, empty if they are sent whole.
    """

    number: int
    requests: Sequence[Request]
    pipelined: bool
    pieces: Sequence[int]


class _Traced(NamedTuple):
    """The trace of a request: its headers, the correlator that is echoed, and the traceparent that is kept."""

    headers: Pairs
    correlator: str
    traceparent: str


class Maker:
    """Makes conversation `number` of a run. The same seed, tokens and time make the same conversation."""

    def __init__(self, tokens: Tokens, seed: int, now: datetime) -> None:
        self._tokens = tokens
        self._seed = seed
        self._now = now
        self._chance = random.Random()
        self._name = ""

    def conversation(self, number: int) -> Conversation:
        """The conversation of a number."""
        chance = self._chance = random.Random(f"{self._seed} {number}")
        self._name = f"f{self._seed}-{number}"
        requests: list[Request] = []
        for _ in range(chance.choice((1, 2, 4, 8)) if chance.random() < 0.99 else _PIPELINE_MAX):
            if chance.random() < 0.06:
                requests += self._story(len(requests))
            else:
                requests.append(self._request(len(requests)))
            if requests[-1].ends is not End.NOT:
                break
        pipelined = chance.random() < 0.4 and not any(request.pause for request in requests)
        pieces = [] if chance.random() < 0.6 else [chance.choice((1, 3, 20, 200, 1500)) for _ in range(40)]
        if pipelined and requests[-1].ends is not End.NOT:
            # A client that is still sending when the server closes may lose an earlier answer (RFC 9112, 9.6).
            pieces = []
            pipelined = sum(len(request.raw) for request in requests) <= _AT_ONCE_BYTES_MAX
        return Conversation(number, requests, pipelined, pieces)

    # Requests.

    def _request(self, index: int) -> Request:
        kinds: Mapping[Callable[[_Traced], Request], int] = {
            self._anything: 62,
            self._mutated: 6,
            self._beside: 5,
            self._wrong: 9,
            self._method: 4,
            self._broken: 8,
            self._cut: 2,
            self._length: 2,
            self._special: 2,
        }
        make = self._chance.choices(list(kinds), list(kinds.values()))[0]
        return make(self._trace(index))

    def _anything(self, traced: _Traced) -> Request:
        return self._sound(content(self._chance, self._now), traced)

    def _sound(self, told: Content, traced: _Traced, shown: Shown | None = None) -> Request:
        """A request that must be accepted, with any oddities."""
        chance = self._chance
        shown = shown or self._tokens.shown(chance)
        asked = head(shown, told, traced.headers, chance)
        tags = [shown.tag, *told.tags]
        if chance.random() < 0.2:
            name = chance.choice(list(PATHS))
            asked = asked._replace(target=chance.choice(PATHS[name]))
            tags.append(name)
        if chance.random() < 0.2:
            name = chance.choice(list(ODD_HEADS))
            asked = ODD_HEADS[name](asked, chance)
            tags.append(name)
        right = right_of(told, Sent(shown.sender, traced.traceparent))
        if len(told.body) > BODY_BYTES_MAX:
            return too_large(asked, chance)._replace(tags=(*tags, "too large"))
        return self._dressed(asked, told.body, right, tags, traced)

    def _dressed(self, asked: Head, body: bytes, right: Right, tags: Sequence[str], traced: _Traced) -> Request:
        chance = self._chance
        if chance.random() < 0.04:
            return self._old(asked, body, right, tags, traced)
        raw, tag = framed(asked, body, chance)
        end = End.NOT
        pause = 0
        if chance.random() < 0.04:
            asked = asked._replace(headers=[*asked.headers, ("Connection", "close")])
            raw, tag = framed(asked, body, chance)
            end, tag, right = End.CLOSED, f"{tag}, then close", _perhaps_unheard(right)
        elif chance.random() < 0.02:
            asked = asked._replace(headers=[*asked.headers, ("Expect", "100-continue")])
            raw, tag = framed(asked, body, chance)
            pause, tag = raw.index(b"\r\n\r\n") + 4, f"{tag}, after 100 Continue"
            end = End.LEAVING  # a client that is refused in place of 100 Continue does not send the body
        elif chance.random() < 0.03:
            end, tag = End.SENDING, f"{tag}, then no more"
        elif chance.random() < 0.03:
            raw = chance.choice((b"\r\n", b"\r\n\r\n")) + raw
            tag = f"{tag}, behind blank lines"
        return Request(raw, right, (*tags, tag), correlator=traced.correlator, ends=end, pause=pause)

    def _old(self, asked: Head, body: bytes, right: Right, tags: Sequence[str], traced: _Traced) -> Request:
        """The same in HTTP/1.0, which needs no host."""
        asked = asked._replace(version="1.0")
        if self._chance.random() < 0.5 and asked.target.startswith("/"):
            asked = asked.replaced("Host")
        raw = asked.encoded(("Content-Length", str(len(body)))) + body
        right = _perhaps_unheard(right)
        return Request(raw, right, (*tags, "HTTP/1.0"), correlator=traced.correlator, ends=End.CLOSED)

    def _mutated(self, traced: _Traced) -> Request:
        body, tag = mutated(self._chance, self._now)
        kept = {"content-type": "application/json"}
        told = Content(body, kept, 204, [], (tag,))
        shown = self._tokens.shown(self._chance)
        request = self._sound(told, traced, shown)
        letter = lines_of(Part(body, None, kept), Sent(shown.sender, traced.traceparent))
        return request._replace(right={204: [any_of(body, shown.sender)], 400: letter})

    def _beside(self, traced: _Traced) -> Request:
        chance = self._chance
        told = content(chance, self._now)
        if len(told.body) > BODY_BYTES_MAX:
            told = told._replace(body=told.body[:BODY_BYTES_MAX])
        shown = self._tokens.shown(chance) if chance.random() < 0.7 else self._tokens.wrong(chance)
        name = chance.choice(list(BESIDE))
        target = chance.choice(BESIDE[name])
        if chance.random() < 0.1:
            name, target = "beside: a token in it", f"/hook/{self._tokens.right(chance)[1]}/x"
        asked = head(shown, told, traced.headers, chance)._replace(target=target)
        lines = self._letter_beside(told, shown, traced) if shown.sender else []
        right: Right = {404: lines}
        if 503 in shown.statuses:
            right = {404: [], 503: []}
        return self._dressed(asked, told.body, right, (name, shown.tag), traced)

    @staticmethod
    def _letter_beside(told: Content, shown: Shown, traced: _Traced) -> list[Line]:
        kept = {name: value.strip() for name, value in told.headers.items() if value.strip()}
        return lines_of(Part(told.body, None, kept), Sent(shown.sender, traced.traceparent, "beside"))

    def _wrong(self, traced: _Traced) -> Request:
        """A request with a token that no sender has."""
        chance = self._chance
        shown = self._tokens.wrong(chance)
        told = content(chance, self._now)
        asked = head(shown, told, traced.headers, chance)
        right: Right = dict.fromkeys(shown.statuses, ())
        return self._dressed(asked, told.body[:BODY_BYTES_MAX], right, (shown.tag,), traced)

    def _method(self, traced: _Traced) -> Request:
        chance = self._chance
        shown = self._tokens.shown(chance)
        told = content(chance, self._now)
        method = chance.choice((*OTHER_METHODS, *PROBES))
        asked = head(shown, told, traced.headers, chance)._replace(method=method)
        status = 204 if method in PROBES else 405
        if chance.random() < 0.3:
            asked = asked._replace(target=chance.choice(("/x", "/", "/notifications/x", "/Notifications")))
            status = 404
        body = told.body[:BODY_BYTES_MAX] if method not in PROBES or chance.random() < 0.2 else b""
        raw = asked.encoded(*[("Content-Length", str(len(body)))] * bool(body or chance.random() < 0.5)) + body
        return Request(raw, {status: ()}, (f"method: {method}",), method)

    def _broken(self, traced: _Traced) -> Request:
        chance = self._chance
        shown = self._tokens.shown(chance)
        told = content(chance, self._now)
        told = told._replace(body=told.body[:BODY_BYTES_MAX])
        asked = head(shown, told, traced.headers, chance)
        kept = {name: value.strip() for name, value in told.headers.items() if value.strip()}
        beside = Part(told.body, None, kept)
        return broken(asked, told, beside, Sent(shown.sender, traced.traceparent), chance)

    def _cut(self, traced: _Traced) -> Request:
        """A request that breaks off: it gets no 204, and is not kept."""
        chance = self._chance
        shown = self._tokens.shown(chance)
        told = of_change(change(chance, self._now), chance)
        asked = head(shown, told, traced.headers, chance)
        raw, _ = framed(asked, told.body, chance)
        raw = raw[: chance.randrange(1, len(raw))]
        return Request(raw, {CLOSED: (), 400: (), 408: ()}, ("cut off",), ends=chance.choice((End.SENDING, End.GONE)))

    def _length(self, traced: _Traced) -> Request:
        """A body of exactly, more, or less than its announced length."""
        chance = self._chance
        told = change(chance, self._now)
        kind = chance.choice(("longest", "too long", "told too long", "told too short", "chunks' too long"))
        if kind in {"longest", "too long"}:
            return self._sound(padded(told, BODY_BYTES_MAX + (kind == "too long"), chance), traced)
        shown = self._tokens.shown(chance)
        made = of_change(told, chance)
        asked = head(shown, made, traced.headers, chance)
        if kind == "told too long":
            raw = asked.encoded(("Content-Length", str(len(made.body) + chance.choice((1, 1000))))) + made.body
            return Request(raw, {CLOSED: (), 400: (), 408: ()}, (f"length: {kind}",), ends=End.SENDING)
        if kind == "chunks' too long":
            return too_large(asked, chance)
        behind = chance.choice((b'{"more": true}', b"x", b"\0\0", made.body + b"\r\n\r\n"))
        raw = asked.encoded(("Content-Length", str(len(made.body)))) + made.body + behind
        right = right_of(made, Sent(shown.sender, traced.traceparent))
        after = frozenset({400})
        return Request(raw, right, (f"length: {kind}",), correlator=traced.correlator, ends=End.SENDING, after=after)

    def _special(self, traced: _Traced) -> Request:
        """A request with several right answers, or with a header twice with two values."""
        chance = self._chance
        shown = self._tokens.shown(chance)
        made = of_change(change(chance, self._now), chance)
        asked = head(shown, made, traced.headers, chance)
        taken: dict[int, Sequence[Line]] = dict(right_of(made, Sent(shown.sender, traced.traceparent)))
        right: Right = {400: ()}
        name = chance.choice(("host", "no host", "content type", "slash", "coded", "chunks twice", "1.0"))
        match name:
            case "host":
                asked = asked.replaced("Host", "localhost", "other")
            case "no host":
                asked = asked.replaced("Host")
            case "content type":
                asked = asked.replaced("Content-Type", "application/json", "text/json")
            case "slash":
                asked = asked._replace(target=chance.choice(EITHER_PATH))
                right = taken | {400: (), 404: self._letter_beside(made, shown, traced)}
            case "coded":
                raw = asked.encoded(("Transfer-Encoding", "gzip, chunked")) + chunked(made.body, chance)
                return Request(raw, taken | {501: ()} | _REFUSED, (f"special: {name}",), ends=End.SENDING)
            case "chunks twice":
                raw = asked.encoded(*[("Transfer-Encoding", "chunked")] * 2) + chunked(made.body, chance)
                return Request(raw, taken | _REFUSED, (f"special: {name}",), ends=End.SENDING)
            case _:
                asked = asked._replace(version="1.0")
                raw = asked.encoded(("Transfer-Encoding", "chunked")) + chunked(made.body, chance)
                return Request(raw, taken | _REFUSED, (f"special: chunks in {name}",), ends=End.SENDING)
        raw, _ = framed(asked, made.body, chance)
        end = End.SENDING if name == "slash" else End.NOT
        return Request(raw, right, (f"special: {name}",), ends=end)

    # Stories.

    def _story(self, index: int) -> list[Request]:
        chance = self._chance
        told = story(chance, self._now)
        sender, token = self._tokens.right(chance)
        other, other_token = sender, token
        while other == sender:
            other, other_token = self._tokens.right(chance)
        if chance.random() < 0.3 and not any(step.is_anothers for step in told.steps):
            return [self._in_one_batch(told, self._bearer(sender, token), index)]
        requests = []
        for number, step in enumerate(told.steps):
            shown = self._bearer(other, other_token) if step.is_anothers else self._bearer(sender, token)
            made = of_change(step.change, chance)
            asked = head(shown, made, (traced := self._trace(index + number)).headers, chance)
            right = right_of(made, Sent(shown.sender, traced.traceparent))
            raw, _ = framed(asked, made.body, chance)
            requests.append(Request(raw, right, (f"story: {told.name}",), correlator=traced.correlator))
        return requests

    def _in_one_batch(self, told: Story, shown: Shown, index: int) -> Request:
        traced = self._trace(index)
        made = of_changes([step.change for step in told.steps], self._chance)
        asked = head(shown, made, traced.headers, self._chance)
        right = right_of(made, Sent(shown.sender, traced.traceparent))
        raw, _ = framed(asked, made.body, self._chance)
        return Request(raw, right, (f"story: {told.name}, in a batch",), correlator=traced.correlator)

    @staticmethod
    def _bearer(sender: str, token: str) -> Shown:
        return Shown([("Authorization", f"Bearer {token}")], sender, frozenset(), "token: Bearer")

    # The trace of a request.

    def _trace(self, index: int) -> _Traced:
        chance = self._chance
        headers: Pairs = []
        correlator = traceparent = ""
        if chance.random() < 0.8:
            correlator = f"{self._name}-{index}{chance.choice(('', ':;.<>{}/_'))}"
            correlator = correlator.ljust(256, "c") if chance.random() < 0.02 else correlator
            headers.append(("x-correlator", correlator))
        elif chance.random() < 0.5:
            headers.append(("X-Correlator", chance.choice(("", "a b", "a,b", "\xe9", "x" * 257, "a=b", "<script>'"))))
        if chance.random() < 0.3:
            traceparent = (
                f"00-{chance.getrandbits(128) | 1:032x}-{chance.getrandbits(64) | 1:016x}-{chance.choice(('00', '01'))}"
            )
            headers.append(("traceparent", traceparent))
        elif chance.random() < 0.1:
            wrong = (
                "00-" + "0" * 32 + "-b7ad6b7169203331-01",
                "ff-" + "1" * 32 + "-b7ad6b7169203331-01",
                "00-x",
                "\xe9",
                "",
            )
            headers.append(("traceparent", chance.choice(wrong)))
        return _Traced(headers, correlator, traceparent)


def _perhaps_unheard(right: Right) -> Right:
    """Add the end without an answer: a client that is refused while it sends its body may lose the answer (RFC 9112,
    9.6).
    """
    return right if any(right.values()) else {**right, CLOSED: ()}


_REFUSED: dict[int, Sequence[Line]] = {400: (), CLOSED: ()}
