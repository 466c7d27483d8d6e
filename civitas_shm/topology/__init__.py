"""The declaration of a system.

`model` holds the plain values that everyone may import; `load` turns text into them and is imported by the command
line, the host and `Runtime.from_config` only, because it brings yaml and pydantic, which no worker should pay for.
"""
