"""The part of the build that pyproject.toml cannot say: the C extension exists on Linux only.

- Linux: `civitas_shm_transports.shm._shm` is built on the limited API, so one `cp311-abi3` wheel serves 3.11 and later.
  A compile error is an error: a quiet install without shared memory would be found out only at the first `run`.
- Linux without a compiler: `CIVITAS_SHM_NATIVE=no pip install …` leaves the extension out, everything else works.
- Other systems: nothing is compiled; `transport: shm` says there which system it needs.
- Free-threaded Python has no limited API (before 3.15): its wheel is bound to one version.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

SHM = Path("transports/civitas_shm_transports/shm")
LIMITED_API = "0x030B0000"  # CPython 3.11: the oldest Python that is supported
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

native = Extension(
    "civitas_shm_transports.shm._shm",
    sources=sorted(str(source) for source in SHM.glob("_shm*.c")),
    # Headers named here are put into the sdist, and a change of one of them rebuilds the extension.
    depends=sorted(str(header) for header in [SHM / "_shm.h", *SHM.glob("native/*.h")]),
    include_dirs=[str(SHM / "native")],
    define_macros=[("Py_LIMITED_API", LIMITED_API)] if limited else [],
    py_limited_api=limited,
    extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
)

if sys.platform == "linux" and os.environ.get("CIVITAS_SHM_NATIVE") != "no":
    setup(ext_modules=[native], options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {})
else:
    setup()
