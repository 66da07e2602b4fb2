"""Which keeper provides the certificate of which mode. Loads what a mode needs only when that is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flm.config import Mode

if TYPE_CHECKING:
    from flm.runtime.front import Keeper
    from flm.store.folder import Folder
    from flm.tls.plain import Site


def keeper_of(folder: Folder, mode: Mode, site: Site) -> Keeper:
    """The keeper of `mode` in `folder`, which answers challenges on `site`."""
    if mode == "https-acme":
        from flm.runtime.acme import AcmeKeeper

        return AcmeKeeper(folder, site)
    from flm.runtime.local import LocalKeeper

    return LocalKeeper(folder)
