"""The list of our sessions at the operator's QoD API, read page by page, to its end or not at all.

A part of the list proves nothing: a session that is missing from it may be on the next page. The API gives the next
page by a link, or gives the number of sessions or pages (Commonalities, API-design-guidelines.md, 4.1).
"""

import asyncio
import time
from typing import NamedTuple

import httpx2
import orjson

from receiver.qod import model
from receiver.qod.model import ApiSession, Listing, Unread

#: Limits of all pages together.
_BYTES_MAX = 64 * 1024 * 1024
_PAGES_MAX = 1_000
_SECONDS_MAX = 300.0
#: With more unreadable sessions the list itself counts as unreadable.
_UNREAD_MAX = 10_000
#: After this many sessions, a millisecond's work, other tasks get a turn.
_SLICE = 100

_PARTIAL_CONTENT = 206
_DIGITS_MAX = 12


class Paging(NamedTuple):
    """What an answer's head says of pages; None where it says nothing."""

    is_part: bool
    next_url: str | None
    total_count: int | None
    total_pages: int | None


def paging_of(answer: httpx2.Response) -> Paging:
    """Paging by links (RFC 8288), and by CAMARA's X-Total-Count and X-Total-Pages (4.1.4)."""
    return Paging(
        answer.status_code == _PARTIAL_CONTENT,
        answer.links.get("next", {}).get("url"),
        _whole(answer.headers.get("x-total-count", "")),
        _whole(answer.headers.get("x-total-pages", "")),
    )


class Reading:
    """A list that is read page by page, within limits, to its end or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bytes_left = _BYTES_MAX
        self.is_done = False
        self._first_url = url
        self._pages = self._total = self._total_pages = 0
        self._gives_up_at = time.monotonic() + _SECONDS_MAX
        self._sessions: dict[str, ApiSession] = {}
        self._unread: dict[object, Unread] = {}

    def listing(self) -> Listing:
        """The sessions read."""
        return Listing(list(self._sessions.values()), list(self._unread.values()))

    async def read(self, content: bytes, paging: Paging) -> str | None:
        """Read a page, and find the next one's URL. Returns a complaint if the list can't be read to its end."""
        self.bytes_left -= len(content)
        self._pages += 1
        known = self._count()
        page = await self._take(content)
        if isinstance(page, str):
            return f"answers what can't be read: {page}"
        # The latest counts apply, as sessions end meanwhile.
        self._total = max(paging.total_count or 0, page.total_count or 0) or self._total
        self._total_pages = max(paging.total_pages or 0, page.total_pages or 0) or self._total_pages
        total, lacks = self._total, self._total > self._count() or self._total_pages > self._pages
        if not lacks and (paging.next_url is None or not page.elements_count):
            self.is_done = not paging.is_part or 0 < total <= self._count()
            return None if self.is_done else "answers 206, with a part of the list and without a link to the rest"
        complaint = self._go_on(paging.next_url, has_news=self._count() > known)
        return complaint and f"lists only {self._count()}{f' of {total}' if total else ''} sessions: {complaint}"

    def _count(self) -> int:
        return len(self._sessions) + len(self._unread)

    async def _take(self, content: bytes) -> "_Read | str":
        """Read the sessions of a page. Other tasks get turns, as tens of thousands of sessions take a while."""
        count, total_count, total_pages = 0, None, None
        try:
            for tree in model.parts(content):
                page = model.page(tree)
                if page is None:
                    return "it is not a list of sessions"
                _, total_count, total_pages = page
                for at, element in enumerate(page.elements):
                    self._add(element)
                    if len(self._unread) > _UNREAD_MAX:
                        return f"more than {_UNREAD_MAX} of its sessions"
                    if at % _SLICE == _SLICE - 1:
                        await asyncio.sleep(0)
                count += len(page.elements)
                await asyncio.sleep(0)
        except orjson.JSONDecodeError:
            return "it is not JSON"
        return _Read(count, total_count, total_pages)

    def _add(self, element: object) -> None:
        found = model.listed(element)
        if isinstance(found, Unread):
            # An element without an id is kept by its content, so that a repeated page is recognized.
            self._unread[found.session_id or _digest(element)] = found
        else:
            self._sessions[found.session_id] = found

    def _go_on(self, link: str | None, *, has_news: bool) -> str | None:
        """Move on to the next page; a complaint if there is none, or if it must not be asked for."""
        there = f"{self._first_url}?page={self._pages + 1}" if link is None else _joined(self.url, link)
        complaints = (
            (not has_news, f"page {self._pages} has no new sessions"),
            (there is None, "the next page is not on the API's host"),
            (self._pages == _PAGES_MAX, f"there are more than {_PAGES_MAX} pages"),
            (self.bytes_left <= 0, f"there are more than {_BYTES_MAX} bytes"),
            (time.monotonic() > self._gives_up_at, f"the rest did not come within {_SECONDS_MAX:g} s"),
        )
        self.url = there or self.url
        return next((complaint for applies, complaint in complaints if applies), None)


class _Read(NamedTuple):
    """The number of elements on a page, and what it says of the whole list."""

    elements_count: int
    total_count: int | None
    total_pages: int | None


def _digest(element: object) -> int:
    try:
        return hash(orjson.dumps(element))
    except TypeError:  # nested too deeply to be written
        return 0


def _joined(url: str, link: str) -> str | None:
    """The target of a link from a URL; None for another origin, which must not get the token."""
    try:
        here = httpx2.URL(url)
        there = here.join(link)
    except (httpx2.InvalidURL, ValueError):
        return None
    same = all((there.scheme == here.scheme, there.host == here.host, _port(there) == _port(here), not there.userinfo))
    return str(there) if same else None


def _port(url: httpx2.URL) -> int | None:
    return url.port or {"http": 80, "https": 443}.get(url.scheme)


def _whole(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else None
