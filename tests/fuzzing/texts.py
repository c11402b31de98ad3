"""A tree as bytes: JSON in every spelling, and bytes that are not JSON."""

import json
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_DEEP, _TOO_DEEP = 100, (300, 900, 2_000, 20_000)
_LONE = '"x-lone": "\\ud800"'


class Text(NamedTuple):
    """The bytes of a body and how it was written. `is_read`: all readers agree on its meaning."""

    body: bytes
    tag: str
    is_read: bool = True


Form = Callable[[Any, random.Random], bytes]


def compact(tree: object) -> bytes:
    """JSON as most senders write it."""
    return json.dumps(tree, separators=(",", ":")).encode()


def _plain(tree: object) -> bytes:
    try:
        return json.dumps(tree, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(tree).encode()


def _shuffled(tree: Any, chance: random.Random) -> Any:  # noqa: ANN401  # JSON
    if not isinstance(tree, dict):
        return tree
    return {name: _shuffled(tree[name], chance) for name in chance.sample(list(tree), len(tree))}


def _escaped(tree: object) -> bytes:
    """Each character of each text as an escape."""
    match tree:
        case str():
            units = tree.encode("utf-16-be", "surrogatepass").hex()
            return b'"%b"' % "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4)).encode()
        case dict():
            return b"{%b}" % b",".join(_escaped(name) + b": " + _escaped(value) for name, value in tree.items())
    return json.dumps(tree).encode()


def _with(tree: Any, member: bytes, chance: random.Random) -> bytes:  # noqa: ANN401  # JSON
    """The object with one more member, at its beginning or its end."""
    text = compact(tree)
    if text == b"{}":
        return b"{%b}" % member
    return b"{%b,%b" % (member, text[1:]) if chance.random() < 0.5 else b"%b,%b}" % (text[:-1], member)


def _twice(tree: Any, chance: random.Random) -> bytes:  # noqa: ANN401  # JSON
    """The object with a member twice, with the same value, perhaps spelled with escapes."""
    name = chance.choice(list(tree))
    spell = chance.choice((_escaped, compact))
    return _with(tree, spell(name) + b":" + chance.choice((compact, _plain))(tree[name]), chance)


def _two_values(tree: Any, chance: random.Random) -> bytes:  # noqa: ANN401  # JSON
    name = chance.choice(list(tree))
    return _with(tree, chance.choice((_escaped, compact))(name) + b':"another"', chance)


def _nested(levels: int, chance: random.Random) -> bytes:
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")))
    levels = levels // 2 if opening.startswith(b"[{") else levels
    return b'"x-deep":' + opening * levels + b"0" + closing * levels


def _more(member: bytes) -> Form:
    return lambda tree, chance: _with(tree, member, chance)


#: Spellings of any tree that keep its meaning.
ANY_FORMS: dict[str, Form] = {
    "compact": lambda t, _: compact(t),
    "with blanks": lambda t, c: json.dumps(t, indent=c.choice((None, 0, 2, "\t"))).encode(),
    "not escaped": lambda t, _: _plain(t),
    "escaped": lambda t, _: _escaped(t),
    "blanks around": lambda t, c: c.choice((b" ", b"\n", b"\r\n\t")) + compact(t) + c.choice((b"\n", b" \r\n\t")),
}
#: Spellings of an object that keep its meaning, also within an array.
FORMS: dict[str, Form] = {
    "shuffled": lambda t, c: compact(_shuffled(t, c)),
    "a member twice": _twice,
    "half a surrogate pair": _more(_LONE.encode()),
    "no text": lambda t, c: _with(t, b'"x-bytes": "' + c.choice((b"\xff", b"\xed\xa0\x80", b"Espa\xf1a")) + b'"', c),
    "a line break in text": _more(b'"x-text": "two\nlines"'),
    "no number": _more(b'"x-numbers": [NaN, Infinity, -Infinity]'),
    "numbers too large": _more(b'"x-numbers": [1e999, -1e999, ' + b"9" * 400 + b"]"),
    "nested": lambda t, c: _with(t, _nested(_DEEP, c), c),
    "many members": lambda t, c: compact(t | {f"x-{n}": c.choice((None, [], {}, "", 1, 1.5)) for n in range(100)}),
}
#: Spellings of an object that keep its meaning, but not within an array: another encoding of the whole body.
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
ENCODED: dict[str, Form] = {
    name: lambda t, _, name=name: _plain(t).decode().encode(name)  # type: ignore[misc]
    for name in ENCODINGS
}
#: Spellings of an object on which readers disagree, though it is one element of an array.
UNREAD: dict[str, Form] = {
    "two values": _two_values,
    "two values within": lambda t, c: _with(t, b'"x-more":[{"a":{"":1,"":true}}]', c),
    "nested too deeply": lambda t, c: _with(t, _nested(c.choice(_TOO_DEEP[:1]), c), c),
}
#: Bytes that are no JSON, or JSON without a notification.
NO_JSON: dict[str, Form] = {
    "cut off": lambda t, c: compact(t)[: c.randrange(1, len(compact(t)))],
    "nested far too deeply": lambda t, c: _with(t, _nested(c.choice(_TOO_DEEP), c), c),
    "a comma too many": lambda t, _: compact(t)[:-1] + b",}",
    "two bodies": lambda t, c: compact(t) + c.choice((b"", b" ", b"\n")) + compact(t),
    "something behind": lambda t, c: compact(t) + c.choice((b"\0", b"}", b"x", b"\x1a", b"]")),
    "a comment": lambda t, _: b"/* */ " + compact(t),
    "single quotes": lambda t, _: repr(t).encode(errors="replace"),
    "no escape": lambda t, c: _with(t, b'"x-text": "\\x53"', c),
    "no number": lambda t, c: _with(t, b'"x-number": ' + c.choice((b"01", b"+1", b".5", b"1.", b"0x1", b"1_0")), c),
    "half UTF-16": lambda t, _: compact(t).decode().encode("utf-16-le")[:-1],
    "empty": lambda _t, _c: b"",
    "blanks": lambda _t, c: c.choice((b" ", b"\r\n", b"\t" * 100)),
    "no object": lambda _t, c: c.choice((b"null", b"17", b"true", b'"text"', b"[]", b"[[]]", b'"{}"', b"{}")),
    "a form": lambda t, _: "&".join(f"{name}={value!r}" for name, value in t.items()).encode(errors="replace"),
    "XML": lambda _t, c: b"<event id='%x'/>" % c.getrandbits(40),
    "random bytes": lambda _t, c: b"\x00" + c.randbytes(c.randrange(1, 200)),
}


def written(tree: object, chance: random.Random, *, within: bool = False) -> Text:
    """The bytes of a tree. `within`: as an element of an array."""
    forms = dict(ANY_FORMS)
    if isinstance(tree, dict):
        forms |= FORMS
    if not within:
        forms |= ENCODED
    if chance.random() < 0.6:
        return Text(compact(tree), "JSON: compact")
    if isinstance(tree, dict) and chance.random() < 0.2:
        unread: Mapping[str, Form] = UNREAD if within else UNREAD | NO_JSON
        name = chance.choice(list(unread))
        return Text(unread[name](tree, chance), f"no JSON: {name}", is_read=False)
    name = chance.choice(list(forms))
    return Text(forms[name](tree, chance), f"JSON: {name}")
