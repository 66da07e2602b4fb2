"""The dialects of the engines, sans-io, one file each; `base` is the contract, `registry` finds the files.

A new engine is one new file here. Knows the wire formats; knows no socket, clock, database or client.
"""
