"""The engines' model lists, each fetched by a task of its own: an engine that takes long for it keeps nobody waiting.

Strategy: one fetch at a time for each engine, bounded by `detect.LISTING_TIMEOUT_SECONDS`; who asks again meanwhile
gets the one under way. A fetch ends early when its engine stops serving or is another one. A list that cannot be had
leaves the last one standing, and what was wrong with it is logged once.

Knows no kind of engine by name, and neither when to ask nor what becomes of a list: `tell` is called with each.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from flm.engines.base import ListingError
from flm.engines.registry import DIALECTS
from flm.snapshot import Model
from flm.upstream.detect import Detected, KeyWantedError, list_models

Place = tuple[str, str, str]  # id, kind, url: the same engine, as far as its models are concerned

log = logging.getLogger("flm.engines")


def place(engine: Detected) -> Place:
    return engine.id, engine.kind, engine.url


class ModelLists:
    """What is known of the models of each engine. `tell` must not raise."""

    def __init__(self, tell: Callable[[], Awaitable[None]]) -> None:
        self._tell = tell
        self._models: dict[Place, tuple[Model, ...]] = {}
        self._asked: set[Place] = set()  # for its models, since it serves, and it has answered in some way
        self._complaints: dict[Place, str] = {}
        self._wanting: dict[Place, str] = {}
        self._fetching: dict[Place, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # those above, and those that are being cancelled
        self._resting = False

    def recall(self, engine: Detected, models: tuple[Model, ...]) -> None:
        """Begin with these, known from before."""
        self._models[place(engine)] = models
        if engine.state.serving:
            self._asked.add(place(engine))

    def keep(self, engines: Sequence[Detected]) -> None:
        """These are the engines that there are now: forget the others, and do not go on asking those that are down."""
        places = {place(each) for each in engines}
        serving = {place(each) for each in engines if each.state.serving}
        self._models = {each: models for each, models in self._models.items() if each in places}
        self._complaints = {each: said for each, said in self._complaints.items() if each in places}
        self._wanting = {each: said for each, said in self._wanting.items() if each in serving}
        self._asked &= serving
        for gone in self._fetching.keys() - serving:
            self._fetching.pop(gone).cancel()

    def models(self, engine: Detected) -> tuple[Model, ...]:
        return self._models.get(place(engine), ())

    def known(self, engine: Detected) -> bool:
        """Whether it was asked for its models since it serves."""
        return place(engine) in self._asked

    def wanting(self, engine: Detected) -> str | None:
        """What the engine wants before it gives its list; None if nothing."""
        return self._wanting.get(place(engine))

    def fetch(self, engine: Detected, credential: str | None, ca: str | None) -> list[asyncio.Task[None]]:
        """Ask for the list, if that is not going on; the task that does so, to be waited for or not. None at rest."""
        if self._resting:
            return []
        task = self._fetching.get(place(engine))
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch(engine, credential, ca))
            self._fetching[place(engine)] = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return [task]

    async def end(self) -> None:
        """Nothing is fetched afterwards, until `resume`."""
        self._resting = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fetching.clear()

    def resume(self) -> None:
        self._resting = False

    async def _fetch(self, engine: Detected, credential: str | None, ca: str | None) -> None:
        here = place(engine)
        remarks: list[str] = []
        wanting: dict[Place, str] = {}
        try:
            models = await list_models(
                engine.url, DIALECTS[engine.kind], credential=credential, ca=ca, remark=remarks.append
            )
            self._models[here] = models
        except ListingError as error:
            remarks = [str(error)]
            if isinstance(error, KeyWantedError):
                wanting = {here: str(error)}
        except Exception as error:  # a fault of FLM's own must not leave the engine unlisted for ever
            if self._complaints.get(here) != repr(error):
                log.exception("asking %s for its models failed", engine.id)
            remarks, self._complaints[here] = [repr(error)], repr(error)
        self._wanting.pop(here, None)
        self._wanting |= wanting
        self._complain(engine, "; ".join(remarks))
        self._asked.add(here)
        del self._fetching[here]  # from here on the next one may begin
        await self._tell()

    def _complain(self, engine: Detected, said: str) -> None:
        if said and self._complaints.get(place(engine)) != said:
            log.warning("the models of %s: %s", engine.id, said)
        if said:
            self._complaints[place(engine)] = said
        else:
            self._complaints.pop(place(engine), None)
