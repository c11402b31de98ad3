"""The faults of a site: each part has its own, in an order and at times that follow from a seed."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from random import Random

import httpx2
from aiokafka import TopicPartition

from tests.killing.site import Receiver, Site
from tests.proxy import END_TXN, PRODUCE, Proxy

Deed = Callable[[], Awaitable[None]]

#: The number of each fault in a deck. All faults of a deck come before any comes again.
_EDGE_DECK = {"killed": 10, "paused": 1, "ended in order": 2}
_ROUTER_DECK = {"killed": 6, "paused": 2, "stuttering": 2, "ended in order": 2}
_GUEST_DECK = {"killed": 1, "ended in order": 1}
_BROKER_DECK = {"ended in order": 1, "killed": 1, "paused": 1}
_BROKERS_DECK = {"ended in order": 3, "killed": 3, "paused": 3, "killed with transactions open": 2}
_NETWORK_DECK = {"delayed": 1, "cut": 2, "held": 1, "black hole": 2, "answers lost": 3, "refused": 1}

#: Seconds between the faults of one part.
_EDGE_SECONDS = (0.3, 3.5)
_ROUTER_SECONDS = (0.2, 8.0)
_GUEST_SECONDS = (5.0, 25.0)
_BROKER_SECONDS = (40.0, 90.0)
#: Of several parts of a kind, the others stay unharmed meanwhile.
_BROKERS_SECONDS = (4.0, 16.0)
_EDGE_NETWORK_SECONDS = (2.0, 15.0)
_ROUTER_NETWORK_SECONDS = (10.0, 40.0)
#: A router is left alone for up to this long until it has a lane; after a kill that takes the group's session time-out.
_LANE_SECONDS_MAX = 45.0

#: A router that is paused for longer than the group's session time-out (10 s) wakes up while others open its lanes, or
#: have them. Longer than a transaction's time-out (15 s), its transaction was ended too.
_ROUTER_PAUSE_SECONDS = (9.0, 20.0)
#: A stuttering router runs for moments and uses them, while others count it as dead and open its lanes.
_STUTTER_PAUSE_SECONDS = (10.0, 12.0)
_STUTTERS = 30
_STUTTER_AWAKE_SECONDS = (0.02, 0.2)
_STUTTER_ASLEEP_SECONDS = (0.05, 0.3)
_EDGE_PAUSE_SECONDS = (1.0, 6.0)
_BROKER_AWAY_SECONDS = (0.0, 6.0)
#: A router gives up a commit after 10 s, and a transaction ends by its time limit after 15 s.
_EXPIRY_SECONDS = (17.0, 20.0)
_WRITTEN_SECONDS_MAX = 30.0
_NETWORK_FAULT_SECONDS = (0.3, 7.0)
_BLACK_HOLE_SECONDS = (1.0, 25.0)

#: The faults that a long run must have had.
HAPPENED = (
    *(f"edge {name}" for name in _EDGE_DECK),
    *(f"router {name}" for name in _ROUTER_DECK),
    "third router joined",
    *(f"third router {name}" for name in _GUEST_DECK),
    *(f"broker {name}" for name in _BROKER_DECK),
    *(f"network {name}" for name in _NETWORK_DECK),
)
#: The faults that a long run with several brokers must have had too.
HAPPENED_TO_BROKERS = (*(f"broker {name}" for name in _BROKERS_DECK), "transactions hung")


class _Deck:
    """Faults in a random order, shuffled anew when all are drawn."""

    def __init__(self, random: Random, cards: Mapping[str, int]) -> None:
        self._random = random
        self._cards = [name for name, count in cards.items() for _ in range(count)]
        self._left: list[str] = []

    def draw(self) -> str:
        """The next fault."""
        if not self._left:
            self._left = self._random.sample(self._cards, len(self._cards))
        return self._left.pop()


class Chaos:
    """Makes faults until `stop`. `tally` counts them. A `pace` of 2 is twice as fast."""

    def __init__(self, site: Site, seed: int, pace: float = 1) -> None:
        self.tally: Counter[str] = Counter()
        self._site = site
        self._random = Random(seed)
        self._pace = pace
        self._stopping = asyncio.Event()

    @property
    def kills(self) -> int:
        """The number of SIGKILLs of edges and routers so far."""
        return sum(count for name, count in self.tally.items() if name.endswith("killed") and "broker" not in name)

    async def run(self) -> None:
        """Make faults until `stop`; then let everything run again. Raises if a process fails by itself."""
        site = self._site
        async with asyncio.TaskGroup() as tasks:
            for edge in site.edges:
                deeds = self._deeds_to(edge, _EDGE_PAUSE_SECONDS)
                rest = self._resting(_EDGE_SECONDS)
                tasks.create_task(self._befall("edge", _EDGE_DECK, deeds, rest))
            *routers, guest = site.routers
            for router in routers:
                deeds = self._deeds_to(router, _ROUTER_PAUSE_SECONDS)
                tasks.create_task(self._befall("router", _ROUTER_DECK, deeds, self._resting(_ROUTER_SECONDS, router)))
            tasks.create_task(self._entertain(guest))
            several = site.cluster.count > 1
            deck, seconds = (_BROKERS_DECK, _BROKERS_SECONDS) if several else (_BROKER_DECK, _BROKER_SECONDS)
            tasks.create_task(self._befall("broker", deck, self._deeds_to_broker(), self._resting(seconds)))
            for receiver in [*site.edges, *site.routers]:
                seconds = _EDGE_NETWORK_SECONDS if receiver in site.edges else _ROUTER_NETWORK_SECONDS
                for proxy in site.proxies[receiver.name]:
                    deeds = self._deeds_to_network(proxy)
                    tasks.create_task(self._befall("network", _NETWORK_DECK, deeds, self._resting(seconds)))
        await site.heal()

    def stop(self) -> None:
        """Begin no more faults."""
        self._stopping.set()

    async def _befall(self, what: str, cards: Mapping[str, int], deeds: Mapping[str, Deed], rest: Deed) -> None:
        deck = _Deck(self._random, cards)
        while True:
            await rest()
            if self._stopping.is_set():
                return
            name = deck.draw()
            await deeds[name]()
            self.tally[f"{what} {name}"] += 1

    async def _entertain(self, guest: Receiver) -> None:
        """A router that comes and goes."""
        deck = _Deck(self._random, _GUEST_DECK)
        while True:
            await self._rest(*_GUEST_SECONDS)
            if self._stopping.is_set():
                return
            await self._site.start(guest)
            self.tally["third router joined"] += 1
            await self._rest(*_GUEST_SECONDS)
            name = deck.draw()
            if name == "killed":
                guest.kill()
            else:
                await asyncio.to_thread(guest.end)
            self.tally[f"third router {name}"] += 1

    def _deeds_to(self, receiver: Receiver, pause_seconds: tuple[float, float]) -> Mapping[str, Deed]:
        async def kill() -> None:
            receiver.kill()
            await self._site.start(receiver)

        async def end() -> None:
            await asyncio.to_thread(receiver.end)
            await self._site.start(receiver)

        async def pause() -> None:
            receiver.pause()
            await self._rest(*pause_seconds, hurried=False)
            receiver.resume()

        async def stutter() -> None:
            receiver.pause()
            await self._rest(*_STUTTER_PAUSE_SECONDS, hurried=False)
            for _ in range(_STUTTERS):
                receiver.resume()
                await self._rest(*_STUTTER_AWAKE_SECONDS, hurried=False)
                receiver.pause()
                await self._rest(*_STUTTER_ASLEEP_SECONDS, hurried=False)
            receiver.resume()

        return {"killed": kill, "ended in order": end, "paused": pause, "stuttering": stutter}

    def _deeds_to_broker(self) -> Mapping[str, Deed]:
        cluster = self._site.cluster

        def broker() -> int:
            return self._random.randrange(cluster.count)

        async def kill() -> None:
            number = broker()
            await asyncio.to_thread(cluster.kill, number)
            await self._rest(*_BROKER_AWAY_SECONDS)
            await asyncio.to_thread(cluster.restart, number)

        async def end() -> None:
            await asyncio.to_thread(cluster.restart, broker())

        async def pause() -> None:
            number = broker()
            cluster.pause(number)
            await self._rest(*_BROKER_AWAY_SECONDS, hurried=False)
            cluster.resume(number)

        return {
            "killed": kill,
            "ended in order": end,
            "paused": pause,
            "killed with transactions open": self._strand,
        }

    async def _strand(self) -> None:
        """Let transactions end by their time limits, or by their owners' successors, while the leader of some
        partitions is away.
        """
        site = self._site
        proxies = [proxy for router in site.routers for proxy in site.proxies[router.name]]
        written = sum(proxy.passed[PRODUCE] for proxy in proxies)
        for proxy in proxies:
            proxy.hold_back(END_TXN, when=lambda: sum(each.passed[PRODUCE] for each in proxies) > written)
        deadline = asyncio.get_running_loop().time() + _WRITTEN_SECONDS_MAX
        written_to: Sequence[TopicPartition] = ()
        while not written_to and asyncio.get_running_loop().time() < deadline:
            await self._rest(0.5, 0.5, hurried=False)
            if any(proxy.held[END_TXN] for proxy in proxies):
                written_to = await site.open_partitions()
        leaders = [each for each in (site.cluster.leader(*where) for where in written_to) if each >= 0]
        broker = self._random.choice(leaders or range(site.cluster.count))
        await asyncio.to_thread(site.cluster.kill, broker)
        await self._rest(*_EXPIRY_SECONDS, hurried=False)
        await asyncio.to_thread(site.cluster.restart, broker)
        self.tally["transactions hung"] += bool(await site.open_partitions())
        for proxy in proxies:
            await proxy.heal()

    def _deeds_to_network(self, proxy: Proxy) -> Mapping[str, Deed]:
        async def heal(seconds: tuple[float, float] = _NETWORK_FAULT_SECONDS) -> None:
            await self._rest(*seconds)
            await proxy.heal()

        async def delay() -> None:
            proxy.delay(self._random.uniform(0, 0.2), self._random.choice((0, 0.1, 1)))
            await heal()

        async def cut() -> None:
            proxy.cut()

        async def hold() -> None:
            proxy.hold()
            await heal()

        async def swallow() -> None:
            proxy.black_hole()
            await heal(_BLACK_HOLE_SECONDS)

        async def lose_answers() -> None:
            proxy.lose_answers(self._random.choice((0, 0, 1, 3)))
            await heal()

        async def refuse() -> None:
            await proxy.down()
            await heal()

        return {
            "delayed": delay,
            "cut": cut,
            "held": hold,
            "black hole": swallow,
            "answers lost": lose_answers,
            "refused": refuse,
        }

    def _resting(self, seconds: tuple[float, float], router: Receiver | None = None) -> Deed:
        """Leave a part alone for a while; a router, until it has a lane."""

        async def rest() -> None:
            deadline = asyncio.get_running_loop().time() + _LANE_SECONDS_MAX
            async with httpx2.AsyncClient(timeout=5) as client:
                while router is not None and asyncio.get_running_loop().time() < deadline:
                    with suppress(httpx2.HTTPError):
                        if self._stopping.is_set() or await router.has_lanes(client):
                            break
                    await self._rest(1, 1)
            await self._rest(*seconds)

        return rest

    async def _rest(self, least: float, most: float, *, hurried: bool = True) -> None:
        """Wait for some seconds, shortened by the pace unless a time-out sets them, and not beyond `stop`."""
        seconds = self._random.uniform(least, most) / (self._pace if hurried else 1)
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass
