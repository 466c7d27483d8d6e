"""Agent classes by import path: how a class is named for another process, and how an agent is built from that name.

A class has one of two names: `package.module.Class`, or `__main__:/path/script.py:Class` for a class of the script that
was started. A script is executed in each process that needs a class of it, as the module `__civitas_main__`; where it
starts a Runtime, with or without a `__main__` guard in front, the import has what it came for and ends.

Rules of this file: the user's code runs here (imports, constructors), so whatever it raises becomes an AgentImportError
that names the agent, the class and the way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, Final

from .errors import AgentImportError
from .process import AgentProcess
from .redaction import keep_secret, redacted
from .topology.model import AgentSpec
from .topology.secrecy import secrets_of_agent
from .topology.suggest import did_you_mean
from .tracebacks import format_exception

__all__ = [
    "MainImportEnds",
    "apply_settings",
    "argv_handed_down",
    "build_agent",
    "class_path",
    "construct",
    "end_main_import",
    "load_class",
]

MAIN_PREFIX: Final = "__main__:"
MAIN_MODULE: Final = "__civitas_main__"

ARGV_VARIABLE: Final = "CIVITAS_SHM_ARGV"
"""Environment variable with the program's `sys.argv` as JSON, for scripts that read it at their top level."""

_scripts: dict[str, ModuleType] = {}
"""By path: executed once per process."""
_importing: str | None = None
"""The script that is being executed just now."""


class MainImportEnds(BaseException):
    """Ends the import of a script where it starts its Runtime. Private: a BaseException so that scripts let it pass."""


def end_main_import() -> None:
    """To be called before a Runtime starts: inside of the import of a script, nothing may be started."""
    if _importing is not None:
        raise MainImportEnds(f"{_importing} is being imported for its classes; its Runtime is running elsewhere")


@contextlib.contextmanager
def argv_handed_down() -> Iterator[None]:
    """Processes that are started inside of this will execute scripts with the arguments of this one."""
    os.environ[ARGV_VARIABLE] = json.dumps(sys.argv)
    try:
        yield
    finally:
        del os.environ[ARGV_VARIABLE]


# --- a class's name -----------------------------------------------------------------------------------------------


def class_path(cls: type[AgentProcess]) -> str:
    """The name by which another process can import the class. AgentImportError when it has none."""
    module, qualname = cls.__module__, cls.__qualname__
    if "<locals>" in qualname:
        raise _nameless(cls, "it is defined inside of a function. Move it to the top level of a module")
    if module in ("__main__", MAIN_MODULE):
        return _main_path(cls, module)
    if _walk(sys.modules.get(module), qualname) is not cls:
        raise _nameless(cls, f"the module {module!r} has no such class under that name. Give it one at its top level")
    return f"{module}.{qualname}"


def _main_path(cls: type[AgentProcess], module: str) -> str:
    main = sys.modules[module]
    if _walk(main, cls.__qualname__) is not cls:
        raise _nameless(cls, "the script has another object under that name. Give each class its own name")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return f"{spec.name}.{cls.__qualname__}"  # started by `python -m`
    path = getattr(main, "__file__", None)
    if path is None or not os.path.isfile(path):
        raise _nameless(cls, "it was typed into a prompt or a notebook. Put it into a file and import it from there")
    return f"{MAIN_PREFIX}{os.path.abspath(path)}:{cls.__qualname__}"


def _nameless(cls: type[AgentProcess], why: str) -> AgentImportError:
    return AgentImportError(
        f"Class {cls.__module__}.{cls.__qualname__} cannot be imported by other processes: {why}, or use "
        'transport="in_process".'
    )


def _walk(module: ModuleType | None, qualname: str) -> Any:
    found: Any = module
    for name in qualname.split("."):
        found = getattr(found, name, None)
    return found


# --- from a name to a class ---------------------------------------------------------------------------------------


def load_class(path: str) -> type[AgentProcess]:
    """The class of that name, imported here and now."""
    if path.startswith(MAIN_PREFIX):
        file, _, qualname = path.removeprefix(MAIN_PREFIX).rpartition(":")
        module, rest = _script(file), qualname
    else:
        module, rest = _module_of(path)
    found = _walk(module, rest)
    if found is None:
        names = [name for name, value in vars(module).items() if isinstance(value, type)]
        where = getattr(module, "__file__", None) or module.__name__
        raise AgentImportError(f"{path!r}: {where} has no class {rest!r}{did_you_mean(rest, names)}.")
    if not (isinstance(found, type) and issubclass(found, AgentProcess)):
        raise AgentImportError(f"{path!r} is no agent: it must be a class derived from civitas_shm.AgentProcess.")
    return found


def _module_of(path: str) -> tuple[ModuleType, str]:
    """The longest part of a dotted path that is a module, and the rest."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        try:
            return importlib.import_module(name), ".".join(parts[length:])
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise _import_failed(path, name, error) from error  # the module is there; something it needs is not
        except (Exception, SystemExit) as error:
            raise _import_failed(path, name, error) from error
    raise AgentImportError(f"{path!r}: there is no module {parts[0]!r} on sys.path ({', '.join(sys.path[:4])}, …).")


def _import_failed(path: str, module: str, error: BaseException) -> AgentImportError:
    return AgentImportError(f"{path!r}: importing {module!r} failed:\n{format_exception(error)}")


def _script(file: str) -> ModuleType:
    """The script as a module; the running `__main__` itself where it is that script."""
    main = sys.modules.get("__main__")
    if main is not None and os.path.abspath(getattr(main, "__file__", None) or "") == file:
        return main
    if file not in _scripts:
        _scripts[file] = _execute(file)
    return _scripts[file]


def _execute(file: str) -> ModuleType:
    module = ModuleType(MAIN_MODULE)
    module.__file__ = file
    try:
        with open(file, "rb") as source:
            code = compile(source.read(), file, "exec")
    except (OSError, SyntaxError, ValueError) as error:
        raise _import_failed(MAIN_PREFIX + file, file, error) from error
    directory = os.path.dirname(file)
    if directory not in sys.path:
        sys.path.insert(0, directory)  # as `python script.py` does
    # Known by name before it runs: dataclasses and others look their module up.
    sys.modules[MAIN_MODULE] = module
    raised = _run_here_or_aside(lambda: exec(code, module.__dict__), file)
    if raised is not None and not isinstance(raised, MainImportEnds):
        raise AgentImportError(
            f"Importing the classes of {file} failed. It runs once in each process that needs them; put what is not a "
            f'definition behind `if __name__ == "__main__":`.\n{format_exception(raised)}'
        ) from raised
    return module


def _run_here_or_aside(work: Callable[[], None], file: str) -> BaseException | None:
    """Run a script; its exception. In a thread if a loop runs here, for a script without a guard calls asyncio.run."""
    ended: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - SystemExit of a script must not end this process
            ended.append(error)

    global _importing
    _importing = file
    argv = sys.argv
    sys.argv = json.loads(os.environ.get(ARGV_VARIABLE, "null")) or [file]
    try:
        if asyncio._get_running_loop() is None:
            run()
        else:
            thread = threading.Thread(target=run, name=f"import {os.path.basename(file)}")
            thread.start()
            thread.join()
    finally:
        _importing = None
        sys.argv = argv
    return ended[0] if ended else None


# --- from a specification to an agent -----------------------------------------------------------------------------


def build_agent(spec: AgentSpec, import_paths: Iterable[str] = ()) -> AgentProcess:
    """A new agent. AgentImportError when its class cannot be imported or its constructor fails."""
    sys.path[:0] = [path for path in import_paths if path not in sys.path]
    return construct(load_class(spec.type), spec)


def construct(cls: type[AgentProcess], spec: AgentSpec) -> AgentProcess:
    """Call the constructor as the specification says."""
    keep_secret(secrets_of_agent(spec))
    args = [spec.name, *spec.args] if spec.takes_name else spec.args
    try:
        agent = cls(*args, **spec.kwargs)
    except Exception as error:
        given = [*map(repr, args), *(f"{key}={value!r}" for key, value in spec.kwargs.items())]
        raise AgentImportError(
            redacted(f"Agent {spec.name!r} cannot be built: {cls.__qualname__}({', '.join(given)}) raised\n")
            + format_exception(error)
        ) from error
    name = getattr(agent, "name", None)
    if name != spec.name:
        why = "does not call super().__init__(name)" if name is None else f"named itself {name!r}"
        raise AgentImportError(f"Agent {spec.name!r} cannot be built: {cls.__qualname__} {why}.")
    apply_settings(agent, spec)
    return agent


def apply_settings(agent: AgentProcess, spec: AgentSpec) -> None:
    """What the specification says and the class does not; a setting that was left at its default is the class's."""
    plain = AgentSpec(name=spec.name, type=spec.type)
    if spec.config:
        agent.config = spec.config
    if spec.max_retries != plain.max_retries:
        agent.max_retries = spec.max_retries
    if spec.shutdown_timeout_s != plain.shutdown_timeout_s:
        agent.shutdown_timeout = spec.shutdown_timeout_s
    if spec.capabilities:
        agent.capabilities = spec.capabilities
    if spec.capability_metadata:
        agent.capability_metadata = spec.capability_metadata
    if spec.handle_timeout_s is not None:
        agent.handle_timeout = spec.handle_timeout_s
