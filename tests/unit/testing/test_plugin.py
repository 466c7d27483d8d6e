"""The plug-in as a user's project meets it: sessions of pytest inside of this one (`pytester`)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from civitas_shm.testing import plugin

AGENTS = """
    import pytest
    from civitas_shm import AgentProcess
    from civitas_shm.testing import Probe

    class Echo(AgentProcess):
        async def handle(self, message):
            return self.reply(message.payload)
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project whose configuration says nothing of civitas_shm; strict about marks."""
    pytester.makeini("[pytest]\naddopts = -p civitas_shm.testing.plugin -p no:cacheprovider --strict-markers\n")
    return pytester


def run(session: pytest.Pytester, source: str, *arguments: str) -> pytest.RunResult:
    session.makepyfile(AGENTS + source)
    return session.runpytest_inprocess(*arguments)


def test_async_tests_with_a_runtime_run_without_any_other_plug_in(session: pytest.Pytester) -> None:
    result = run(
        session,
        """
    async def test_async(runtime, tmp_path):
        await runtime.start(Echo("echo"))
        assert (await runtime.ask("echo", {"n": 1})).payload == {"n": 1}
        assert tmp_path.is_dir()

    def test_plain(runtime):
        async def scene():
            await runtime.start(Echo("echo"))
            return (await runtime.ask("echo", {"n": 2})).payload
        assert runtime.run(scene()) == {"n": 2}

    class TestMethods:
        async def test_method(self, runtime):
            await runtime.start(Echo("echo"))
            await runtime.stop()
            await runtime.start(Echo("other"))
            assert runtime.runtime.agent_names() == ["other"]
    """,
        "-p", "no:asyncio", "-p", "no:anyio",
    )  # fmt: skip
    result.assert_outcomes(passed=3)


def test_a_test_that_names_transports_runs_once_on_each(session: pytest.Pytester) -> None:
    result = run(
        session,
        """
    @pytest.mark.civitas(transport=["in_process", "shm"])
    def test_it(civitas_transport, runtime):
        print("on", runtime.transport)
        assert runtime.transport == civitas_transport
    """,
        "-v", "-s",
    )  # fmt: skip
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it[[]in_process]*on in_process*", "*test_it[[]shm]*on shm*"])


def test_what_a_test_leaves_behind_fails_it_unless_its_mark_lets_it(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("civitas_shm.testing.left_behind.GRACE_S", 0.1)
    result = run(
        session,
        """
    import os
    kept = []

    async def test_leaves_a_pipe(runtime):
        kept.extend(os.pipe())

    @pytest.mark.civitas(leaks=False)
    async def test_may_leave_a_pipe(runtime):
        kept.extend(os.pipe())

    def test_does_not_ask_for_a_runtime():
        kept.extend(os.pipe())

    def test_tidies_up():
        for fd in kept:
            os.close(fd)
    """,
    )
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaves_a_pipe*", "*left behind: descriptor *pipe*"])


def test_a_run_that_fails_fails_its_test_unless_the_test_has_waited_for_it(session: pytest.Pytester) -> None:
    result = run(
        session,
        """
    from civitas_shm import RunFailed

    async def fail(runtime):
        await runtime.start(Probe("fragile").answer(ValueError("no more")), max_restarts=0)
        await runtime.send("fragile", {})
        await runtime.until(lambda: not runtime.runtime.alive)

    async def test_silent(runtime):
        await fail(runtime)

    async def test_waited_for(runtime):
        await fail(runtime)
        with pytest.raises(RunFailed, match="no more"):
            await runtime.wait()
    """,
    )
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_silent*", "*RunFailed*"])


def test_a_word_that_the_mark_does_not_know_is_refused_with_those_it_knows(session: pytest.Pytester) -> None:
    result = run(
        session,
        """
    @pytest.mark.civitas(transports="shm")
    async def test_it(runtime):
        pass
    """,
    )
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*unknown: transports*transport: in_process or shm*"])


def test_on_anothers_loop_the_runtime_says_what_to_change(session: pytest.Pytester) -> None:
    result = run(
        session,
        """
    import asyncio

    def test_it(runtime):
        with pytest.raises(RuntimeError, match="loop of its own"):
            asyncio.run(runtime.start(Echo("echo")))
    """,
    )
    result.assert_outcomes(passed=1)


def test_one_process_has_nobody_to_kill_and_many_have_no_clock_of_their_own(session: pytest.Pytester) -> None:
    result = run(
        session,
        """
    async def test_kill(runtime):
        await runtime.start(Echo("echo"))
        with pytest.raises(Exception, match='transport="shm"'):
            await runtime.kill("echo")

    @pytest.mark.civitas(transport="shm", clock="manual")
    async def test_clock(runtime):
        pass
    """,
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the clock of one process*"])


def test_pytest_finds_the_plug_in_where_the_package_is_installed() -> None:
    """Under the name of its module: then `-p civitas_shm.testing.plugin` beside it registers nothing twice."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {plugin.__name__: plugin.__name__}


def test_a_session_without_a_runtime_imports_nothing_of_the_runtime(session: pytest.Pytester) -> None:
    session.makepyfile(
        """
    import sys

    def test_nothing():
        assert not {"civitas_shm.runtime", "civitas_shm.process", "psutil"} & sys.modules.keys()
    """
    )
    session.runpytest_subprocess().assert_outcomes(passed=1)
