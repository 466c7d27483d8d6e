"""The bridge of a host: an agent whose mailbox is the outbox (`outbox`), and what comes from other hosts (`inbox`).

Rules of this package: the link is one by contract only (`bridge.link`); the agent (`agent`) puts the parts together.
"""
