"""A run under a host: what agents may rely on, what the user is told, and that nothing is lost or left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from civitas_shm.errors import AgentImportError, AgentStopped, RunFailed, RunHasMessages
from civitas_shm.host.protocol import Chaos
