"""The host process and everything that runs worker processes; Linux only, used by `transport: shm`.

One file per subject, lower ones import only from upper ones:
`kernel` (prctl, pidfd, death pipe, affinity) · `protocol` (the control messages) · `wire` (framing, descriptors) ·
`events` (JSON lines) · `logs` (output of processes, line by line) · `probes` (psutil) · `forkserver` · `worker` ·
`pool` (spawn, watch, kill) · `leftovers` (what workers leave) · `driver` (performs the supervision tree) ·
`chaos` (`run --chaos`) · `announcer` (what the caller is told) · `main` (the host's entry) · `client` (caller).

Absent on purpose: user code in the host or the fork server, polling for deaths, pids as addresses of signals,
and anything of pydantic, rich or the command line.
"""
