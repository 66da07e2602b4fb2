"""The table of closed routes in docs/engines.md, from the dialects: `python -m tests.engines.closed_routes` writes it.

Registry-driven: a new dialect is in it by itself. Does not check that a list is complete.
"""

from __future__ import annotations

from pathlib import Path

from flm.engines.closed import ClosedRoute
from flm.engines.registry import DIALECTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
BEGIN = "<!-- closed routes: `make docs` writes this table from flm/engines -->\n"
END = "<!-- end of closed routes -->\n"


def table() -> str:
    """The whole block, its two marks included."""
    rows = ["| kind | closed | it |", "|---|---|---|"]
    for kind, dialect in DIALECTS.items():
        rows += [_row(kind, route) for route in dialect.closed_routes]
    return "\n".join([BEGIN, *rows, "", END])


def _row(kind: str, route: ClosedRoute) -> str:
    method = "any" if route.method == "*" else route.method
    return f"| `{kind}` | {method} `{route.path}` | {route.why} |"


def written(page: str) -> str:
    """`page` with the table as it should be."""
    head, _, rest = page.partition(BEGIN)
    return head + table() + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
