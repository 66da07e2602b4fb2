"""FLM: the secure, fast front door of the LLM engines people run themselves.

Rooms and who may import whom stand in docs/architecture.md; `tests/structure/` holds the code to it.
"""

__version__ = "0.1.0"
