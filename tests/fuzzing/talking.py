"""The client's side of a conversation: it sends the bytes and reads the answers."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from tests.fuzzing.expected import CLOSED, End, Request
from tests.fuzzing.maker import Conversation
from tests.limits import SECONDS_MAX


class Answer(NamedTuple):
    """One answer as it was received; CLOSED and without headers, if there was none."""

    status: int
    headers: dict[str, str]
    content: bytes


NO_ANSWER = Answer(CLOSED, {}, b"")


class Talker:
    """One connection at a time, made when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def talk(self, conversation: Conversation) -> list[list[Answer]]:
        """The answers to each request: one answer, or all until the end if the request ends the connection."""
        async with asyncio.timeout(SECONDS_MAX):
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            requests = conversation.requests
            if not conversation.pipelined:
                return [await self._ask(request, conversation.pieces) for request in requests]
            await self._say(b"".join(request.raw for request in requests), conversation.pieces)
            if requests[-1].ends is End.SENDING:
                self._end_sending()
            return [await self._answers(request) for request in requests]

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _ask(self, request: Request, pieces: Sequence[int]) -> list[Answer]:
        if request.pause:
            await self._say(request.raw[: request.pause], pieces)
            told = await self._answer("")
            if told.status != 100:
                await self.close()
                return [told]
        await self._say(request.raw[request.pause :], pieces)
        if request.ends is End.SENDING:
            self._end_sending()
        return await self._answers(request)

    async def _answers(self, request: Request) -> list[Answer]:
        if request.ends is End.GONE:
            await self.close()
            return [NO_ANSWER]
        answers = [await self._answer(request.method)]
        if request.ends in {End.CLOSED, End.SENDING}:
            while answers[-1].status != CLOSED:
                answers.append(await self._answer(request.method))
        if request.ends is not End.NOT or answers[-1].status == CLOSED:
            await self.close()
        return answers

    async def _say(self, raw: bytes, pieces: Sequence[int]) -> None:
        if self._streams is None:
            return
        _, writer = self._streams
        at = 0
        with suppress(ConnectionError, RuntimeError):
            for size in pieces:
                writer.write(raw[at : at + size])
                at += size
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(raw[at:])
            await writer.drain()

    def _end_sending(self) -> None:
        if self._streams is not None:
            with suppress(OSError, RuntimeError):  # uvloop's, for a connection that the other side closed
                self._streams[1].write_eof()

    async def _answer(self, method: str) -> Answer:
        if self._streams is None:
            return NO_ANSWER
        reader, _ = self._streams
        try:
            text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = text.split("\r\n")[:-2]
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
            return Answer(int(first.split()[1]), headers, await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return NO_ANSWER
