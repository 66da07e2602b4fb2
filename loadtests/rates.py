"""How much the streaming load test asks: read by locust's users and by the gate that counts them."""

from __future__ import annotations

from typing import Final

REQUESTS_PER_MINUTE: Final = 100
USERS: Final = 20  # each asks every 12 s
USERS_STARTED_PER_SECOND: Final = 4  # so that they do not ask all at once
