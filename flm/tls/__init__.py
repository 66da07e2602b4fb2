"""Certificates: pairs of a key and a chain and what may be served of them, FLM's own local root, a CA's issuance, and
the plain port that answers its challenges.

Floor 3: does I/O, knows no database, no worker and no engine. Blocking where a file says so.
"""
