"""Tests of the native crate through Python: what one process can see, and several processes at once."""
