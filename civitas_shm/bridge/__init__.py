"""Between hosts: what a link must do (`link`), what travels on it (`wire`), what the bridge decides (`outbox`).

Rules of this package: pure, no I/O, no clock, no asyncio. Links live in `civitas_shm_transports`; who runs them is
`bridging`. docs/bridge.md has the guarantees and the format.
"""
