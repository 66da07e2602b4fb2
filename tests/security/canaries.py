"""Texts that stand for secrets: each is unlike anything else, so that whoever finds one has found a leak."""

from __future__ import annotations

from typing import Final

PROMPT: Final = "canary-prompt-5f1c0a"
ANSWER: Final = "canary-answer-9b7e42"
CREDENTIAL: Final = "sk-canary-credential-3d8f61"
PASSPHRASE: Final = "canary-passphrase-77ac10"
COOKIE: Final = "canary-cookie-c2e955"
