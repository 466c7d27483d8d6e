"""The XSUB/XPUB proxy, in a process of its own: `python -m civitas_shm_transports.zmq.proxy --pub-addr … --sub-addr …`.

It keeps nothing: whoever kills it delays what is on its way (PROTOCOL.md). It says `ready` on its standard output when
both addresses are bound; a line `stats` on its standard input is answered by one line of JSON; when its standard input
ends, it ends: so it never outlives who started it, however that died.

Exit codes: 0 in good order, 2 wrong usage, 3 an address is taken, which often means that another proxy is there.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import os
import struct
import sys
import threading
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.utils import z85

from civitas_shm.errors import ConfigurationError

from .settings import Keys, read_keys, read_settings

__all__ = ["EXIT_TAKEN", "HWM", "MESSAGE_BYTES_MAX", "Proxy", "main"]

HWM: Final = 100_000
"""Frames that are kept for one connection; beyond it they are dropped, and sent again (lanes.WINDOW is a hundredth)."""
MESSAGE_BYTES_MAX: Final = 65 << 20
"""Of one frame: the bridge's largest (bridge.link.FRAME_BYTES_MAX) and what goes with it. Who sends more is cut off."""
HEARTBEAT_MS: Final = 1000
HEARTBEAT_TIMEOUT_MS: Final = 5000
"""A connection that is silent for so long is closed, and its subscriptions are gone: a machine that lost its power."""
EXIT_TAKEN: Final = 3

_ZAP: Final = "inproc://zeromq.zap.01"
_FIELDS: Final = tuple(
    f"{side}_{what}_{how}" for side in ("pub", "sub") for how in ("in", "out") for what in ("frames", "bytes")
)


class Proxy:
    """Bound when it is made; it runs until `stop`. Both sockets belong to a thread of its own."""

    def __init__(self, pub_addr: str, sub_addr: str, keys: Keys | None = None) -> None:
        """zmq.ZMQError (EADDRINUSE and others) when an address cannot be bound; nothing is left then."""
        self._context = zmq.Context()
        self._threads: list[threading.Thread] = []
        self._sockets: list[zmq.Socket[bytes]] = []
        """Not those that a thread has alone."""
        self._locks: list[int | None] = []
        try:
            if keys is not None:
                self._start(self._authorise, self._bound(zmq.REP, _ZAP), z85.decode(keys.client_public_key))
            for address in (pub_addr, sub_addr):
                self._locks.append(_lock(address))
            self._pub_side = self._socket(zmq.XSUB, keys)
            self._sub_side = self._socket(zmq.XPUB, keys)
            self._pub_side.bind(pub_addr)
            self._sub_side.bind(sub_addr)
            self._control: zmq.Socket[bytes] = self._context.socket(zmq.REQ)
            self._sockets.append(self._control)
            self._control.connect("inproc://control")
            self._start(self._run, self._bound(zmq.REP, "inproc://control"))
        except BaseException:
            self._close()
            raise

    def statistics(self) -> dict[str, int]:
        """Frames and bytes since the start: from links `pub_…_in`, to links `sub_…_out`; others: subscriptions."""
        self._control.send(b"STATISTICS")
        return {
            name: struct.unpack("<Q", part)[0]
            for name, part in zip(_FIELDS, self._control.recv_multipart(), strict=True)
        }

    def stop(self) -> None:
        """Unbind, and end the threads."""
        self._control.send(b"TERMINATE")
        self._threads[-1].join()
        self._close()

    def _close(self) -> None:
        """The proxy's thread does not run (any more); the other one ends with the context."""
        for made in self._sockets:
            made.close(0)
        self._context.term()
        for thread in self._threads:
            thread.join()
        for descriptor in self._locks:
            if descriptor is not None:
                os.close(descriptor)

    def _run(self, control: zmq.Socket[bytes]) -> None:
        zmq.proxy_steerable(self._pub_side, self._sub_side, None, control)
        control.close(0)

    def _authorise(self, questions: zmq.Socket[bytes], allowed: bytes) -> None:
        """ZAP (RFC 27): links with the system's client key, and nobody else."""
        while True:
            try:
                version, request, _, _, _, mechanism, *credentials = questions.recv_multipart()
                known = mechanism == b"CURVE" and credentials == [allowed]
                verdict = [b"200", b"", b"link", b""] if known else [b"400", b"this key is not known here", b"", b""]
                questions.send_multipart([version, request, *verdict])
            except zmq.ZMQError:  # ContextTerminated
                questions.close(0)
                return

    def _socket(self, kind: int, keys: Keys | None) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = self._context.socket(kind)
        self._sockets.append(made)
        made.set(zmq.SNDHWM, HWM)
        made.set(zmq.RCVHWM, HWM)
        made.set(zmq.MAXMSGSIZE, MESSAGE_BYTES_MAX)
        made.set(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        made.set(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        made.set(zmq.IPV6, 1)
        if keys is not None:
            made.set(zmq.CURVE_SERVER, 1)
            made.set(zmq.CURVE_SECRETKEY, keys.server_secret_key.encode())
        return made

    def _bound(self, kind: int, address: str) -> zmq.Socket[bytes]:
        made: zmq.Socket[bytes] = self._context.socket(kind)
        made.bind(address)
        return made

    def _start(self, run: Any, *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, name=f"zmq-proxy-{run.__name__}", daemon=True)
        self._threads.append(thread)
        thread.start()


def _lock(address: str) -> int | None:
    """Of an ipc address: ZeroMQ takes one that another process is bound to without asking. EADDRINUSE: it is held."""
    if not address.startswith("ipc://"):
        return None
    descriptor = os.open(address.removeprefix("ipc://") + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise zmq.ZMQError(errno.EADDRINUSE) from None
    return descriptor


def main(arguments: list[str] | None = None) -> int:
    """The process."""
    parser = argparse.ArgumentParser(
        prog="python -m civitas_shm_transports.zmq.proxy", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--pub-addr", required=True, help="where links send to, tcp://HOST:PORT or ipc://PATH")
    parser.add_argument("--sub-addr", required=True, help="where links are sent from")
    parser.add_argument("--keys", metavar="DIRECTORY", help="CURVE keys; needed beyond this machine")
    parser.add_argument("--kept", action="store_true", help="by a link: that another proxy is there is no news")
    given = parser.parse_args(arguments)
    os.umask(0o077)  # the socket of an ipc address is its owner's
    try:
        curve = {} if given.keys is None else {"curve": {"directory": given.keys}}
        read_settings({"pub_addr": given.pub_addr, "sub_addr": given.sub_addr, **curve})
        keys = None if given.keys is None else read_keys(Path(given.keys))
        if keys is not None and not keys.server_secret_key:
            raise ConfigurationError(f"zmq: there is no server_secret_key in {given.keys}; the proxy needs it.")
        proxy = Proxy(given.pub_addr, given.sub_addr, keys)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"zmq: {error}", file=sys.stderr)
        return 1
    except zmq.ZMQError as error:
        if given.kept and error.errno == errno.EADDRINUSE:
            return EXIT_TAKEN
        print(f"zmq: the proxy cannot bind {given.pub_addr} and {given.sub_addr}: {error}", file=sys.stderr)
        return EXIT_TAKEN if error.errno == errno.EADDRINUSE else 1
    print("ready", flush=True)
    try:
        for line in sys.stdin:
            if line.strip() == "stats":
                print(json.dumps(proxy.statistics()), flush=True)
    except KeyboardInterrupt:
        pass
    proxy.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
