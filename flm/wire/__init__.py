"""Wire formats, sans-io: OpenAI JSON (`openai`), SSE and NDJSON (`framing`), HTTP/1.1 towards engines (`http1`).

Bytes in, bytes and values out. Knows no engine, no socket, no clock, no policy.
"""
