"""The data path: one client request from the ASGI server to an engine and back.

`app` is the route table and the only broad except; `inference` one translated request; `respond` what goes to the
client; `recorder` what is remembered of it. Knows no database, no file, no process: what it shares with others is
handed to it.
"""
