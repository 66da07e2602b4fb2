"""The security policy as a row. What a document may say is `flm.policy.document`'s business."""

from __future__ import annotations

from flm.errors import CommandCode, CommandError
from flm.policy.document import Policy, parse_policy
from flm.store.database import Reader, Transaction

_ONLY = "default"  # the one policy there is
_GONE = (
    "the stored policy cannot be read: somebody deleted it while it was in force; "
    "`flm security policy set --json F` sets one again, and `{}` is the one that shuts nobody out"
)


async def document(reader: Reader) -> bytes | None:
    """The stored document as it stands, whatever it is; None if no policy was ever set. Raises DB_ERROR."""
    # As bytes: text that is no UTF-8 is the document's fault, to be told as such, and not the database's.
    rows = await reader.rows("SELECT CAST(document AS BLOB) FROM security_policies WHERE id = ?", (_ONLY,))
    return bytes(rows[0][0] or b"") if rows else None


async def current(reader: Reader, in_force: Policy | None = None) -> Policy:
    """The policy that holds: the stored one, or the default if none was ever set.

    `in_force`: the one that holds so far. If it is not the default, one was set: a row that is gone does not open what
    it had shut. Raises POLICY_INVALID, with what mends it, then and if the stored one cannot be read; DB_ERROR.
    """
    stored = await document(reader)
    if stored is None and in_force not in (None, Policy()):
        raise CommandError(CommandCode.POLICY_INVALID, _GONE)
    try:
        return Policy() if stored is None else parse_policy(stored)
    except CommandError as error:
        raise CommandError(
            error.code,
            f"the stored policy cannot be read, and without one FLM lets nobody in: {error.message}; "
            "`flm security policy set --json F` replaces it",
        ) from None


async def put(transaction: Transaction, text: bytes, at: int) -> None:
    """Replace the policy by `text` (UTF-8) at `at` (Unix seconds)."""
    await transaction.change(
        "INSERT INTO security_policies VALUES (?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET document = excluded.document, updated_at = excluded.updated_at",
        (_ONLY, text.decode(), at),
    )
