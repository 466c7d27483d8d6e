"""Implementations of the contracts in `civitas_shm.transport`: one module or package for each transport.

They import the words and contracts of the core (layers 0 and 1), never the rest of it and never each other.
`civitas_shm.transport.load_transport` finds them by name; nothing is imported here, so that a transport that this
system cannot have costs nothing.
"""
