"""Processes: the supervisor, its workers, their sockets, lock, control socket and log. The composition root.

The only room that constructs and wires the others together, and the only one that names the ASGI server.
"""
