"""The built-in demo engine: a real process on a real socket that answers deterministically.

Speaks the OpenAI dialect for people and load tests, and for tests every engine's own dialect with scripted delays
and failures. Knows nothing of the proxy in front of it.

`script` says what it answers, `directives` how a test makes it slow or wrong, `admin` how a test watches it, `process`
how it is started in the background.
"""
