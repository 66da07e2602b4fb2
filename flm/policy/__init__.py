"""Pure decisions about one request: whose key (`keys`), from where (`access`), to which engine (`routing`).

Facts and time are arguments, the outcome is a value or a `RequestError`. Knows no socket, database, engine or wire
format, and keeps no state of its own.
"""
