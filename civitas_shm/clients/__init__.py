"""Programs outside of a run that talk with its agents: `civitas_shm.connect` and its blocking twin. docs/clients.md.

- `protocol`: what goes over the connection;
- `server`: the run's side, in the program that started it;
- `dial`: how a run is found and a connection to it made;
- `client`, `blocking`: the other side, for programs with an event loop and for those without.
"""
