"""Segments by name: the one place that knows posix_ipc, which has no wheels for Python 3.14 and later.

On Linux a POSIX shared memory object is a file of /dev/shm (shm_open(3)), so without posix_ipc it is opened there.
"""

from __future__ import annotations

import errno
import os

__all__ = ["open_named", "remove_named"]

try:
    import posix_ipc  # type: ignore[import-not-found, unused-ignore]  # it ships no types
except ImportError:  # Python 3.14 and later
    posix_ipc = None


def open_named(name: str, *, create: bool) -> int:
    """A descriptor of the segment, close-on-exec, mode 0600. FileExistsError or FileNotFoundError as for files."""
    if posix_ipc is None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if create else 0)
        return os.open(f"/dev/shm/{name}", flags, 0o600)
    try:
        segment = posix_ipc.SharedMemory(f"/{name}", flags=posix_ipc.O_CREX if create else 0, mode=0o600)
    except posix_ipc.ExistentialError as error:
        kind = FileExistsError if create else FileNotFoundError
        raise kind(errno.EEXIST if create else errno.ENOENT, str(error), name) from error
    os.set_inheritable(segment.fd, False)
    fd: int = segment.fd
    return fd


def remove_named(name: str) -> None:
    """Remove it if it is there. Mappings of it stay valid."""
    try:
        os.unlink(f"/dev/shm/{name}")
    except FileNotFoundError:
        return
