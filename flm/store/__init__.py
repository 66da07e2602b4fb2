"""The databases, through aiosqlite: opening and migrating (`database`), and one file per kind of row.

Knows no HTTP, engine or process; never on the request path.
"""
