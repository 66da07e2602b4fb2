"""The pepper: 32 random bytes in a 0600 file, mixed into the hash of every API key.

Whoever gets hold of the database alone cannot test guesses against it. Made once and never replaced: another pepper
makes every key invalid.

Blocking.
"""

from __future__ import annotations

import os
from typing import Final

from flm.disk.private import read_file, write_new_file
from flm.errors import CommandCode, CommandError
from flm.store.folder import Folder

PEPPER_BYTES: Final = 32  # as long as the hash (SHA-256): RFC 2104 §3


def load_pepper(folder: Folder, *, create: bool) -> bytes:
    """The pepper; made first if it is not there and `create` says that no key depends on it.

    Raises IO_ERROR if it is missing though keys exist, or is not what was written.
    """
    pepper = read_file(folder.pepper, PEPPER_BYTES + 1)
    if pepper is None:
        if not create:
            raise CommandError(
                CommandCode.IO_ERROR,
                f"{folder.pepper} is missing, so no key can be verified; restore it from a copy. It was not made anew, "
                "for that would make every key invalid for good",
            )
        write_new_file(folder.pepper, os.urandom(PEPPER_BYTES))
        pepper = read_file(folder.pepper, PEPPER_BYTES + 1) or b""
    if len(pepper) != PEPPER_BYTES:
        raise CommandError(
            CommandCode.IO_ERROR,
            f"{folder.pepper} is damaged: it has not its {PEPPER_BYTES} bytes; restore it from a copy",
        )
    return pepper
