"""Which dialects the demo engine speaks. A new one is one file beside this one and one line here."""

from __future__ import annotations

from flm.demo.dialect import Dialect
from flm.demo.llamacpp import LlamaCpp
from flm.demo.lmstudio import LMStudio
from flm.demo.ollama import Ollama
from flm.demo.openai import OpenAI
from flm.demo.vllm import VLLM

DIALECTS: dict[str, type[OpenAI]] = {dialect.name: dialect for dialect in (OpenAI, LlamaCpp, LMStudio, Ollama, VLLM)}


def create(name: str, models: tuple[str, ...], version: str | None, api_key: str | None) -> Dialect:
    """The dialect `name`, serving `models` (empty: its own default ones). Raises KeyError for an unknown name."""
    return DIALECTS[name](models, version, api_key)
