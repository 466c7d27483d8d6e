"""Defects that the original has, brought back: one entry for each, sorted by its number.

How to write an entry: what stands in the sources (exactly once), what is put there instead, and the test that must
fail then, which is named `test_defect_NUMBER_...` and has an assertion or an exception that `says` (a regular
expression) finds in the lines in which pytest tells the error (`E ...`). A test that fails because the changed module
cannot be imported has not seen the defect, nor has one that only hangs, unless the defect is that somebody waits for
ever.

The numbers are those of the list of weaknesses that this project was begun with.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    defect: int
    words: str
    """What was wrong there, in the original."""
    file: str
    """Below the root of the repository."""
    before: str
    after: str
    test: str
    """`path::name` below tests/."""
    says: str

    @property
    def id(self) -> str:
        return f"defect {self.defect}: {self.words}"


MUTANTS = (
    Mutant(
        1,
        "an agent reaches only those of its own process",
        "civitas_shm/runner.py",
        "        self.bus = PortBus(port) if bus is None else bus\n",
        "        self.bus = PortBus(port) if bus is None else bus\n"
        "        lookup = self.bus.directory.lookup\n"
        '        self.bus.directory.lookup = lambda to: lookup(to if not self._seats or to in self._seats else "")\n',
        "contract/test_defects.py::test_defect_1_an_agent_in_any_process_reaches_those_in_every_other",
        r"MessageRoutingError: No agent is named ''",
    ),
    Mutant(
        2,
        "one message that cannot be decoded ends its reader",
        "civitas_shm/seat.py",
        "                            await self._failures.reject(delivery, error)\n"
        "                            continue\n",
        "                            raise\n",
        "unit/test_runner.py::test_defect_2_an_undecodable_payload_becomes_a_dead_letter_and_nothing_else_is_harmed",
        r"Timeout",
    ),
    Mutant(
        3,
        "an agent with many messages holds up all the others of its process",
        "civitas_shm/seat.py",
        'if left == 0 or alone.closed or self._draining == "current" or now() >= batch_end:',
        'if alone.closed or self._draining == "current":',
        "contract/test_agents.py::test_defect_3_a_neighbour_of_a_flooded_agent_is_served_after_a_few_batches",
        r"the flood was over too early|assert \(",
    ),
    Mutant(
        7,
        "the first replica that stops takes the name with it",
        "civitas_shm/host/homes.py",
        "        slots = self._readers(agent, without=child)\n        if slots:\n",
        "        slots = self._readers(agent, without=child)\n        if False:\n",
        "contract/test_defects.py::test_defect_7_a_replica_that_stops_does_not_take_the_name_from_those_that_live",
        r"AgentStopped",
    ),
    Mutant(
        8,
        "each replica handles every message",
        "civitas_shm/port_bus.py",
        "            outcome = self.port.post("
        "mailbox, data, message_type, sender, cause, lane, priority, expires_ns)\n",
        "            outcome = self.port.post(mailbox, data, message_type, sender, cause, lane, priority, expires_ns)\n"
        "            for _ in self.port.stats(mailbox).readers[1:]:\n"
        "                self.port.post(mailbox, data, message_type, sender, cause, lane, priority, expires_ns)\n",
        "contract/test_defects.py::test_defect_8_replicas_share_what_comes_and_handle_each_message_once",
        r"assert \[0, 0, 1, 1, ",
    ),
    Mutant(
        11,
        "a message is acknowledged when it is handed over, so a death in its handler loses it",
        "civitas_shm/seat.py",
        "                        payload = decode(data)\n",
        "                        payload = decode(data)\n                        port.release(mailbox, done)\n",
        "process/test_run.py::test_defect_11_an_ask_survives_the_death_of_who_answers_it",
        r"Timeout",
    ),
    Mutant(
        12,
        "an agent that crashed in another process stays crashed",
        "civitas_shm/host/driver.py",
        "            self._failed(seat, resident, event)\n",
        "            pass\n",
        "contract/test_defects.py::"
        "test_defect_12_an_agent_of_another_process_is_supervised_without_a_word_in_the_topology",
        r"Timeout",
    ),
    Mutant(
        16,
        "an agent of another process is built here as well, and both answer",
        "civitas_shm/topology/build.py",
        "            process=block.process,\n            replicas=block.replicas,\n",
        "            process=None,\n            replicas=block.replicas + (block.process is not None),\n",
        "contract/test_defects.py::test_defect_16_an_agent_of_another_process_is_there_once_and_not_in_this_one_too",
        r"== \[1, 2, 3, |an idle copy counts as well",
    ),
    Mutant(
        17,
        "`run --transport` is taken and has no effect",
        "civitas_shm/cli/prepare.py",
        "    spec = with_environment(spec, os.environ, transport, nats_url)\n",
        "    spec = with_environment(spec, os.environ, None, nats_url)\n",
        "unit/cli/test_run.py::test_defect_17_options_arrive",
        r"assert 'in_process' == 'shm'",
    ),
    Mutant(
        22,
        "nobody answers for an agent that crashed",
        "civitas_shm/failures.py",
        "                self._answer_failed(message, error, text)\n                await self._gives_up()\n",
        "                await self._gives_up()\n",
        "contract/test_defects.py::test_defect_22_who_asks_an_agent_that_crashes_hears_so_before_its_successor_answers",
        r"the successor answers, and who asked before still waits",
    ),
    Mutant(
        23,
        "the timeout of an ask does not cover the wait for room",
        "civitas_shm/port_bus.py",
        "            async with asyncio.timeout((deadline_ns - began_ns) / 1e9 if deadline_ns else None):\n",
        "            async with asyncio.timeout(None):\n",
        "contract/test_ask.py::test_defect_23_the_deadline_of_an_ask_covers_the_wait_for_room_and_then_nothing_was_committed",
        r"its deadline has passed, and it still waits for room",
    ),
    Mutant(
        24,
        "who has stopped for good can still be sent to",
        "civitas_shm/local_driver.py",
        "                self.requests.given_up(child)\n"
        "                self._close_mailbox(child, reason, given_up=True)\n",
        "                self.requests.given_up(child)\n",
        "contract/test_defects.py::test_defect_24_nobody_waits_for_an_agent_that_is_gone_for_good",
        r"DID NOT RAISE .*AgentStopped",
    ),
    Mutant(
        25,
        "any agent can send the order to stop",
        "civitas_shm/port_bus.py",
        "        if is_system_type(message_type):\n",
        "        if False:\n",
        "unit/test_port_bus.py::test_defect_25_types_of_the_runtime_cannot_be_sent_by_agents",
        r"DID NOT RAISE .*MessageValidationError",
    ),
    Mutant(
        25,
        "what a payload says is the type of the answer, whatever it is",
        "civitas_shm/talking.py",
        "    if is_system_type(named):\n",
        "    if False:\n",
        "contract/test_talking.py::test_defect_25_no_answer_can_bear_a_type_of_the_runtime",
        r"DID NOT RAISE .*AgentError",
    ),
    Mutant(
        26,
        "a supervisor that gives up below ONE_FOR_ONE stays down",
        "civitas_shm/supervision/tree.py",
        "            self._fall(parent, [supervisor.name], Ending.FAILED, gave_up)\n",
        '            self._rest(supervisor.name, "taken down")\n',
        "contract/test_defects.py::test_defect_26_a_supervisor_that_gives_up_is_restarted_with_all_below_it",
        r"Timeout",
    ),
    Mutant(
        27,
        "an agent whose start fails at a restart is dead, and nobody says so",
        "civitas_shm/supervision/tree.py",
        "            if child is None or child.incarnation != incarnation or not child.lives:\n"
        "                continue\n",
        "            if child is None or child.incarnation != incarnation or not child.lives:\n"
        "                continue\n"
        "            if child.status is ChildStatus.STARTING and incarnation > 1:\n"
        "                continue\n",
        "contract/test_defects.py::test_defect_27_crashes_at_one_moment_and_a_restart_that_fails_once_are_all_mended",
        r"Timeout",
    ),
    Mutant(
        28,
        "the object that crashed goes on",
        "civitas_shm/runtime.py",
        "                agent = originals[spec.name].reborn()\n",
        "                agent = originals[spec.name]\n",
        "contract/test_defects.py::test_defect_28_a_restart_makes_a_new_object_and_keeps_only_what_was_saved",
        r"assert \(3, \d\) == \(1, 1\)",
    ),
    Mutant(
        29,
        "a restart forgets capabilities",
        "civitas_shm/loading.py",
        "    if spec.capabilities:\n",
        "    if False:\n",
        "contract/test_capabilities.py::test_defect_29_capabilities_survive_a_restart_and_go_with_their_agent",
        r"assert \[\] == \['special'\]",
    ),
    Mutant(
        30,
        "a retry puts the message behind all that wait",
        "civitas_shm/seat.py",
        "            self._answer(message, await self._code.handle(message))\n",
        "            await self.agent.send(self.agent.name, message.payload, message.type)\n",
        "unit/test_runner.py::test_defect_30_retry_runs_again_in_place_before_any_other_message",
        r"\{'handled': 2\} == \{'handled': 4\}",
    ),
    Mutant(
        31,
        "the store in memory copies shallowly, so nested changes leak into the checkpoint",
        "civitas_shm/state.py",
        "        self._states[agent_name] = copy.deepcopy(state)\n",
        "        self._states[agent_name] = dict(state)\n",
        "unit/test_state.py::test_defect_31_the_store_in_memory_keeps_deep_copies_and_gives_copies",
        r"'nested': \[1, 2\]",
    ),
    Mutant(
        32,
        "int keys are accepted, and refused where they arrive",
        "civitas_shm/serializer.py",
        "_decoder: Final = msgspec.msgpack.Decoder(ext_hook=_extension)\n",
        "_decoder: Final = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=_extension)\n",
        "unit/test_messages.py::"
        "test_defect_32_int_keys_tuples_nan_and_large_ints_are_sent_whole_or_refused_by_the_sender",
        r"DeserializationError: .* are not a payload: ValidationError: Expected `str`, got `int`",
    ),
    Mutant(
        32,
        "tuples arrive as lists",
        "civitas_shm/serializer.py",
        "        return msgspec.msgpack.Ext(EXT_TUPLE, _encoder.encode(_wrapped_items(value, depth, strict)))\n",
        "        return _wrapped_items(value, depth, strict)\n",
        "unit/test_messages.py::"
        "test_defect_32_int_keys_tuples_nan_and_large_ints_are_sent_whole_or_refused_by_the_sender",
        r"assert <class 'list'> is tuple",
    ),
    Mutant(
        34,
        "an installed OpenTelemetry SDK prints every span",
        "civitas_shm/observability/tracer.py",
        '    trace = sys.modules.get("opentelemetry.trace")\n',
        "    from opentelemetry import trace\n"
        "    from opentelemetry.sdk.trace import TracerProvider\n"
        "    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor\n\n"
        "    if not isinstance(trace.get_tracer_provider(), TracerProvider):\n"
        "        trace.set_tracer_provider(TracerProvider())\n"
        "        trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))\n",
        "unit/observability/test_tracer.py::test_defect_34_an_installed_opentelemetry_sdk_prints_nothing",
        r"assert \(1, '\{\\n",
    ),
    Mutant(
        36,
        "agents that ask each other wait until their timeouts",
        "civitas_shm/deadlock.py",
        "        now = {_key(deadlock): deadlock for deadlock in cycles(waits)}\n",
        "        now = {_key(deadlock): deadlock for deadlock in cycles([])}\n",
        "unit/test_waits.py::test_defect_36_two_that_ask_each_other_get_an_error_for_the_younger_ask_that_names_both",
        r"Timeout",
    ),
    Mutant(
        37,
        "a stop drops what waits",
        "civitas_shm/local_driver.py",
        '        if drain == "all" and not self.ended.done():\n            await self.runner.drained(timeout_s)\n',
        "",
        "contract/test_defects.py::test_defect_37_a_stop_that_drains_handles_all_that_waits",
        r"Right contains \d+ more items",
    ),
    Mutant(
        37,
        "each agent has its own time to stop, and nothing bounds the sum",
        "civitas_shm/local_driver.py",
        "            deadline_s = min(deadline_s, self._stop_by_s)\n",
        "            pass\n",
        "contract/test_defects.py::test_defect_37_a_stop_has_one_deadline_however_many_agents_do_not_end",
        r"Timeout",
    ),
    Mutant(
        38,
        "a broadcast goes from one to the next, and ends at the first that cannot take it",
        "civitas_shm/port_bus.py",
        "        results = await asyncio.gather(*map(one, names), return_exceptions=True)\n",
        "        results = [await one(name) for name in names]\n",
        "unit/test_port_bus.py::test_defect_38_one_full_target_neither_stops_nor_delays_the_others_and_is_reported_at_the_end",
        r"assert \[\] == \[\{'n': 1\}\]",
    ),
    Mutant(
        39,
        "backoff grows with all restarts there ever were",
        "civitas_shm/supervision/policy.py",
        "if now_s - restart.at_s <= restart_window_s)",
        "if now_s >= restart.at_s)",
        "unit/supervision/test_tree.py::test_defect_39_backoff_begins_anew_when_the_window_has_passed",
        r"assert \[SetTimer",
    ),
    Mutant(
        41,
        "a start that fails leaves running what had started before",
        "civitas_shm/supervision/tree.py",
        "        self.actions.append(Escalated(spec.name, name, reason))\n",
        "        self.actions.append(Escalated(spec.name, name, reason))\n"
        "        if supervisor.parent is None:\n"
        '            return self._end("failed", Failed(reason, spec.name, name))\n',
        "unit/test_runtime.py::test_defect_41_a_run_that_cannot_start_stops_what_has_started",
        r"assert False",
    ),
    Mutant(
        42,
        "who asked an agent that is despawned waits for its deadline",
        "transports/civitas_shm_transports/in_process.py",
        '            self._answer(entry[0], "", box.index, b"", failed=True)\n        box.redeliver.clear()\n',
        "            pass\n        box.redeliver.clear()\n",
        "contract/test_ask.py::"
        "test_defect_42_askers_in_a_mailbox_that_is_closed_hear_at_once_that_the_agent_has_stopped",
        r"Timeout",
    ),
    Mutant(
        43,
        "a spawned agent does not get its config",
        "civitas_shm/loading.py",
        "    if spec.config:\n",
        "    if False:\n",
        "contract/test_runtime.py::test_defect_43_a_spawned_agent_gets_its_config_and_a_name_that_is_taken_is_refused_"
        "and_harms_nobody",
        r"assert \{\} == \{'n': 1\}",
    ),
    Mutant(
        44,
        "unknown keys below the top are accepted in silence",
        "civitas_shm/topology/schema.py",
        'extra="forbid"',
        'extra="ignore"',
        "unit/topology/test_load.py::test_defect_44_an_unknown_key_is_refused_at_every_level",
        "DID NOT RAISE",
    ),
    Mutant(
        44,
        "the documented config of a dynamic supervisor is ignored",
        "civitas_shm/topology/build.py",
        "        block = block.model_copy(update={key: getattr(nested, key) for key in nested.model_fields_set})\n",
        "",
        "unit/topology/test_load.py::test_defect_44_quotas_below_config_are_quotas",
        r"max_children: None != 2",
    ),
    Mutant(
        45,
        "a store in SQLite breaks with several writers",
        "civitas_shm/plugins/sqlite_store.py",
        "if not _is_locked(error) or time.monotonic() >= until_s or all(job.abandoned for job in batch):",
        "if True:",
        "unit/plugins/test_sqlite_store.py::test_defect_45_many_processes_write_one_file_and_none_of_them_fails_or_loses_a_write",
        r"assert|IndexError",
    ),
    Mutant(
        46,
        "what a handler cannot finish is gone without a trace",
        "civitas_shm/failures.py",
        '                await self._bury(message, token, f"its handler raised {_brief(error)}", text)\n',
        "                self._port.release(self._mailbox, token)\n",
        "unit/test_runner.py::test_defect_46_a_crash_releases_its_message_to_the_dead_letters_and_leaves_the_others_waiting",
        r"Timeout",
    ),
)
