"""The `flm` command: argparse, one file per noun. Parses, calls a service, prints. Loads only what the verb needs.

Holds no logic of its own and is imported by nothing.
"""
