"""The control socket of a running host: what may be asked of a run from outside, and by whom.

- `protocol`: requests and replies, data only, with the version of both;
- `decide`: a request and the state of a run -> what to answer and what to do, pure;
- `server`: the socket in the run directory, on the host's loop;
- `client`: the blocking other end, for the command line.

Guarantees: only processes of the host's own user (or root) get an answer, whatever the modes of files say; no client,
however slow, silent, numerous or wrong, blocks the host, makes it grow beyond a bound, or ends it, except by the one
request that says so. Nothing here is on a message's path.
"""
