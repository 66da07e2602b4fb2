"""I/O towards engines: connections (`connection`), their pool (`pool`), detection (`detect`) and health (`health`).

A thin loop around the sans-io wire formats and dialects. Knows no client, no database, no key but the credential of
an engine it is handed.
"""
