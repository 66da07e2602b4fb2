"""`python -m flm`: the same program as the `flm` command."""

from flm.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
