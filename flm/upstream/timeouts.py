"""How long one exchange with an engine may take, step by step.

Does not know where the numbers come from (settings, or an engine of its own mind), nor who measures.
"""

from __future__ import annotations

import msgspec


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds. `connect`: until the engine accepts. `first_byte`: until its answer's head. `between_bytes`: between
    two pieces, either way. `total`: the whole exchange from the first attempt to connect; 0 is none."""

    connect: float
    first_byte: float
    between_bytes: float
    total: float = 0
