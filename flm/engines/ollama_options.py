"""The `options` of Ollama's native requests: how the next token is chosen, and how many there are.

Chat and text completion have them in common. What the caller left out stays out, so that the model's own defaults
hold. Knows no route and no answer.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class Sampling(Protocol):
    """The fields of a caller's request that become options."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def min_p(self) -> float | None: ...
    @property
    def repeat_penalty(self) -> float | None: ...
    @property
    def presence_penalty(self) -> float | None: ...
    @property
    def frequency_penalty(self) -> float | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def num_ctx(self) -> int | None: ...
    @property
    def stop(self) -> str | tuple[str, ...] | None: ...


class Options(msgspec.Struct, frozen=True, omit_defaults=True):
    """The native names."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    num_predict: int | None = None
    num_ctx: int | None = None
    stop: tuple[str, ...] | None = None


def options(wanted: Sampling, num_predict: int | None) -> Options | None:
    """The options of a request that asks for `num_predict` tokens at most; None if it has none."""
    found = Options(
        temperature=wanted.temperature,
        top_p=wanted.top_p,
        top_k=wanted.top_k,
        min_p=wanted.min_p,
        repeat_penalty=wanted.repeat_penalty,
        presence_penalty=wanted.presence_penalty,
        frequency_penalty=wanted.frequency_penalty,
        seed=wanted.seed,
        num_predict=num_predict,
        num_ctx=wanted.num_ctx,
        stop=(wanted.stop,) if isinstance(wanted.stop, str) else wanted.stop,
    )
    return None if found == Options() else found
