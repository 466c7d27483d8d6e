"""The part of the build that pyproject.toml cannot say: the C extension exists on Linux only.

- Linux: `civitas_shm_transports.shm._shm` is built on the limited API of the Python that builds it: the `cp311-abi3`
  wheel of 3.11 serves 3.11 and later. Headers promise nothing for older Pythons than their own: those of 3.13 make
  `Py_RETURN_NONE` count no reference, whatever Py_LIMITED_API says, and 3.11 dies of it.
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
MINOR = sys.version_info.minor
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

native = Extension(
    "civitas_shm_transports.shm._shm",
    sources=sorted(str(source) for source in SHM.glob("_shm*.c")),
    # Headers named here are put into the sdist, and a change of one of them rebuilds the extension.
    depends=sorted(str(header) for header in [SHM / "_shm.h", *SHM.glob("native/*.h")]),
    include_dirs=[str(SHM / "native")],
    define_macros=[("Py_LIMITED_API", f"0x03{MINOR:02X}0000")] if limited else [],
    py_limited_api=limited,
    extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
)

if sys.platform == "linux" and os.environ.get("CIVITAS_SHM_NATIVE") != "no":
    setup(ext_modules=[native], options={"bdist_wheel": {"py_limited_api": f"cp3{MINOR}"}} if limited else {})
else:
    setup()
