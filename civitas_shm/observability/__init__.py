"""Where a piece of work belongs in a trace, and spans that cost nothing while nobody wants them.

`context` says which trace and parent; `spans` is what a finished span is and who may receive it; `tracer` makes them.
Exporters, sampling and the spans of messages themselves are not here yet.
"""
