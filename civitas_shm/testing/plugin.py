"""The pytest plug-in: a `runtime` for tests of agents, in this process or in many, with nothing left behind.

    @pytest.mark.civitas(transport=["in_process", "shm"])
    async def test_it_squares(runtime):
        await runtime.start(Squarer("squarer"))
        assert (await runtime.ask("squarer", {"number": 7})).payload == {"square": 49}

Rules of this file: pytest loads it in every session of every project that has civitas_shm installed, so it imports
nothing of it before a test asks for `runtime`, and changes nothing for tests that do not; `async def` tests that ask
for it are run here, on its loop, without any other plug-in.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from .under_test import RuntimeUnderTest

MARK: Final = "civitas"

_MARK_HELP: Final = (
    'civitas(transport="in_process", clock="machine", leaks=True): how the `runtime` of this test runs. transport: '
    'in_process or shm, or a list, for once each; clock: "manual" is moved by the test; leaks: fail the test that '
    "leaves a process, a descriptor or a segment."
)

_DEFAULTS: Final[dict[str, Any]] = {"transport": "in_process", "clock": "machine", "leaks": True}


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", _MARK_HELP)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that names several transports runs once on each."""
    if "civitas_transport" not in metafunc.fixturenames:
        return
    transport = _options(metafunc.definition)["transport"]
    if not isinstance(transport, str):
        metafunc.parametrize("civitas_transport", list(transport))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests that have a `runtime`, on its loop."""
    runtime: Any = pyfuncitem.funcargs.get("runtime")
    if runtime is None or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    runtime.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def civitas_transport(request: pytest.FixtureRequest) -> str:
    """The transport of this test's `runtime`: what its mark says."""
    transport: str = _options(request.node)["transport"]
    return transport


@pytest.fixture
def runtime(
    request: pytest.FixtureRequest, civitas_transport: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RuntimeUnderTest]:
    """Starts agents, asks them, kills their processes: a `civitas_shm.testing.RuntimeUnderTest`."""
    from ..errors import TransportUnavailable
    from ..transport import load_transport
    from .left_behind import Left, session_mark, tidy, what_is_left
    from .under_test import RuntimeUnderTest, run_directory

    try:
        load_transport(civitas_transport)
    except TransportUnavailable as error:
        pytest.skip(str(error))

    options = _options(request.node)
    runs = tmp_path_factory.mktemp("runs")
    with session_mark() as mark, run_directory(runs):
        before = Left(mark, runs, tmp_path_factory.getbasetemp())
        under_test = RuntimeUnderTest(civitas_transport, runs=runs, manual_clock=options["clock"] == "manual")
        try:
            yield under_test
        finally:
            under_test.close()
        said, processes, segments = what_is_left(before, None if options["leaks"] else 0.0)
        tidy(processes, segments)
        if said and options["leaks"]:
            pytest.fail(f"The test left behind: {'; '.join(said)}. `civitas(leaks=False)` lets it.", pytrace=False)


def _options(node: Any) -> dict[str, Any]:
    """What the marks of a test say, the nearest first."""
    options: dict[str, Any] = {}
    for mark in node.iter_markers(MARK):
        if mark.args or (unknown := set(mark.kwargs) - set(_DEFAULTS)):
            what = f"unknown: {', '.join(sorted(unknown))}" if not mark.args else "it takes keywords only"
            raise pytest.UsageError(f"@pytest.mark.{MARK}: {what}. {_MARK_HELP}")
        options = {**mark.kwargs, **options}
    return {**_DEFAULTS, **options}
