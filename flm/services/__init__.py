"""What a person can do with FLM, as importable async calls: `ConfigService`, `SecurityService`, `EngineService`,
`ProxyService`. The CLI only parses, calls these and prints.

Knows the rooms below; knows no argument parser and no terminal.
"""
