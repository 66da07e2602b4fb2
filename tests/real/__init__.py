"""Tests that run FLM end to end against real engines: real processes, built by `make engines`, run by `make test-real`.

They know no engine's wire format; they know what the scripted model must say. `make test` does not collect them.
"""
