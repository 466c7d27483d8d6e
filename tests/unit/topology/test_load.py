"""What a topology file may say, and what is said about it when it is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices

from civitas_shm.errors import TopologyError
from civitas_shm.topology import schema
from civitas_shm.topology.load import load_topology, load_topology_data, load_topology_text
from civitas_shm.topology.model import AgentSpec, DynamicSpec, ProcessSpec, SupervisorSpec, TopologySpec

FULL = """\
name: atlas
transport: {type: shm, arena_mb: 16, segments: memfd, options: {a: 1}}
processes:
  w1: {cpus: [0, 1], nice: 5, gpu: [0], env: {OMP: "1"}, memory_limit_mb: 512, numa: 0}
  w2:
pool: {size: 2, standby: 0, pin: false}
stop: {drain: all, timeout_s: 5}
logging: {level: debug, agents: {walker: error}, format: json}
supervision:
  name: top
  strategy: rest_for_one
  max_restarts: 7
  restart_window: 30
  backoff: exponential
  backoff_base: 0.5
  backoff_max_s: 8
  backoff_reset: 4
  auto_shutdown: all_significant
  children:
    - agent:
        name: walker
        type: agents.Walker
        process: w1
        config: {path: no, depth: 012, nested: {list: [1, {a: ~}]}}
        args: [1]
        kwargs: {verbose: true}
        mailbox_size: 5
        overflow: drop_oldest
        max_retries: 0
        restart: never
        significant: true
        start_timeout: 3
        shutdown_timeout_s: 4
        state: shm
        capabilities: [walk]
        capability_metadata: {walk: {cost: 1}}
    - {type: agents.Analyser, name: analyser, replicas: 2}
    - {type: gen_server, name: store, module: agents, class: Store}
    - {type: dynamic_supervisor, name: pool, max_children: 2, max_total_spawns: 3, max_children_per_class: {m.A: 1},
       max_children_per_spawner: 4, max_total_spawns_per_spawner: 5, spawner_allowlist: [walker], restart: never,
       process: w2, max_restarts: 6, restart_window: 7, backoff: linear, backoff_base: 8, backoff_max: 9}
    - supervisor:
        name: inner
        restart: transient
        significant: true
        children:
          - agent: {name: report, type: agents.Report, process: main}
"""

MINIMAL = "supervision: {children: [agent: {name: a, type: m.A}]}\n"


def problems_of(text: str, *settings: str, **environment: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        load_topology_text(text, "t.yaml", settings, environment=environment)
    return caught.value.problems


def agent_yaml(keys: str) -> str:
    return f"supervision:\n  children:\n    - agent: {{{keys}}}\n"


def test_every_key_arrives_in_the_model() -> None:
    spec = load_topology_text(FULL)
    walker = AgentSpec(
        name="walker",
        type="agents.Walker",
        args=[1],
        kwargs={"verbose": True},
        config={"path": "no", "depth": 12, "nested": {"list": [1, {"a": None}]}},
        process="w1",
        mailbox_size=5,
        overflow="drop_oldest",
        max_retries=0,
        restart="temporary",
        significant=True,
        start_timeout_s=3,
        shutdown_timeout_s=4,
        state="shm",
        capabilities=["walk"],
        capability_metadata={"walk": {"cost": 1}},
    )
    assert spec.supervision == SupervisorSpec(
        name="top",
        strategy="REST_FOR_ONE",
        max_restarts=7,
        restart_window_s=30,
        backoff="EXPONENTIAL",
        backoff_base_s=0.5,
        backoff_max_s=8,
        backoff_reset_s=4,
        auto_shutdown="all_significant",
        children=[
            walker,
            AgentSpec(name="analyser", type="agents.Analyser", replicas=2),
            AgentSpec(name="store", type="agents.Store"),
            SupervisorSpec(
                name="pool",
                max_restarts=6,
                restart_window_s=7,
                backoff="LINEAR",
                backoff_base_s=8,
                backoff_max_s=9,
                dynamic=DynamicSpec(2, 3, {"m.A": 1}, 4, 5, ["walker"], "temporary", "w2"),
            ),
            SupervisorSpec(
                name="inner",
                restart="transient",
                significant=True,
                children=[AgentSpec(name="report", type="agents.Report", process="main")],
            ),
        ],
    )
    w1 = ProcessSpec("w1", cpus=[0, 1], nice=5, env={"OMP": "1"}, gpu=[0], numa=0, memory_limit_mb=512)
    assert spec.processes == [w1, ProcessSpec("w2")]
    assert (spec.pool.size, spec.pool.standby, spec.pool.pin) == (2, 0, False)
    assert (spec.stop.drain, spec.stop.timeout_s) == ("all", 5)
    assert (spec.logging.level, spec.logging.agents, spec.logging.format) == ("DEBUG", {"walker": "ERROR"}, "json")
    assert (spec.transport.type, spec.transport.segments, spec.transport.arena_mb) == ("shm", "memfd", 16)
    assert spec.name == "atlas"


def test_the_example_in_the_documents_is_a_topology_with_every_key() -> None:
    text = (Path(__file__).parents[3] / "docs" / "cli.md").read_text().split("```yaml\n")[1].split("```")[0]
    spec = load_topology_text(text)
    assert [agent.name for agent in spec.supervision.agents()] == ["walker", "analyser", "report", "x", "guard"]
    for block in (
        schema.Agent,
        schema.Supervisor,
        schema.DynamicSupervisor,
        schema.Process,
        schema.Pool,
        schema.Stop,
        schema.Watch,
        schema.Logging,
        schema.Plugins,
        schema.Plugin,
        schema.ModelConfig,
        schema.Price,
        schema.Top,
    ):
        for name, field in block.model_fields.items():
            alias = field.validation_alias
            names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else [name]
            assert name == "supervisor" or any(f"{key}:" in text for key in names), f"{block.__name__}.{name}"


def test_what_is_left_out_has_the_defaults_of_the_model() -> None:
    spec = load_topology_text(MINIMAL)
    assert spec == TopologySpec(supervision=SupervisorSpec(children=[AgentSpec(name="a", type="m.A")]))


def test_the_model_goes_through_json_unchanged() -> None:
    spec = load_topology_text(FULL)
    assert TopologySpec.from_plain(json.loads(json.dumps(spec.to_plain()))) == spec


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL.replace("{children", "{max_restart: 9, children"),
        agent_yaml("name: a, type: m.A, mailbox: 9"),
        "supervision: {children: [supervisor: {name: s, max_restart: 9, children: [agent: {name: a, type: m.A}]}]}",
        "supervision: {children: [{type: dynamic_supervisor, name: d, max_childs: 2}]}",
        "supervision: {children: [{type: dynamic_supervisor, name: d, config: {max_childs: 2}}]}",
        "plugins: {models: [{type: openai, config: {max_token: 2}}]}\n" + MINIMAL,
        "transport: {type: shm, arena: 2}\n" + MINIMAL,
    ],
)
def test_defect_44_an_unknown_key_is_refused_at_every_level(text: str) -> None:
    (problem,) = problems_of(text)
    assert "unknown key 'm" in problem or "unknown key 'arena'" in problem


def test_defect_44_quotas_below_config_are_quotas() -> None:
    flat = "supervision: {children: [{type: dynamic_supervisor, name: d, max_children: 2, backoff: linear}]}"
    nested = (
        "supervision: {children: [{type: dynamic_supervisor, name: d, backoff: linear, config: {max_children: 2}}]}"
    )
    (below,) = load_topology_text(nested).supervision.dynamic_supervisors()
    assert below.dynamic == DynamicSpec(max_children=2)
    assert load_topology_text(nested) == load_topology_text(flat)


def test_each_form_of_a_node_is_an_agent() -> None:
    forms = (
        "agent: {name: a, type: m.A}",
        "{name: a, type: m.A}",
        "{type: agent, name: a, module: m, class: A}",
        "{type: gen_server, name: a, module: m, class: A}",
    )
    for form in forms:
        assert load_topology_text(f"supervision:\n  children:\n  - {form}\n") == load_topology_text(MINIMAL), form


def test_an_eval_agent_is_an_agent_with_the_arguments_of_its_node() -> None:
    node = (
        "{type: eval_agent, name: e, max_corrections_per_window: 3, window_seconds: 5, process: w, "
        "exporters: [{type: m.X, config: {api_key: '${K}'}}]}"
    )
    (agent,) = load_topology_text(f"supervision: {{children: [{node}]}}", environment={"K": "k"}).supervision.agents()
    assert agent.type == "civitas_shm.evalloop.EvalAgent"
    exporters = [{"type": "m.X", "config": {"api_key": "k"}}]
    assert agent.kwargs == {"max_corrections_per_window": 3, "window_seconds": 5.0, "exporters": exporters}
    assert agent.process == "w"


def test_supervisor_at_the_top_is_supervision() -> None:
    assert load_topology_text(MINIMAL.replace("supervision", "supervisor")) == load_topology_text(MINIMAL)


def test_a_transport_may_be_a_word() -> None:
    assert load_topology_text("transport: shm\n" + MINIMAL).transport.type == "shm"


def test_a_transport_of_the_user_is_an_import_path() -> None:
    assert load_topology_text("transport: my.transport\n" + MINIMAL).transport.type == "my.transport"


def test_without_a_processes_block_any_name_makes_a_process() -> None:
    spec = load_topology_text(agent_yaml("name: a, type: m.A, process: worker"))
    assert spec.supervision.agents()[0].process == "worker"


def test_a_known_word_may_stand_for_a_class() -> None:
    text = agent_yaml("name: a, type: Walker")
    assert load_topology_text(text, agent_types=["Walker"]).supervision.agents()[0].type == "Walker"


def test_the_directory_of_the_file_is_the_first_import_path(tmp_path: Path) -> None:
    file = tmp_path / "topology.yaml"
    file.write_text(MINIMAL)
    assert load_topology(file).import_paths == [str(tmp_path.resolve())]


# --- problems: each at its place ---------------------------------------------------------------------------------

TABLE = [
    # the top level
    ("", "1:1: the file is empty; it needs at least supervision: {children: [...]}"),
    ("[]", "1:1: should be a mapping with the key 'supervision', not a list"),
    ("transport: shm", "1:1: the key 'supervision' is missing"),
    (MINIMAL + "suprvision: 1", "2:1: suprvision: unknown key 'suprvision'; did you mean 'supervision'?"),
    (MINIMAL + "1: 2", "2:1: [1]: unknown key '1'; allowed: bridge, logging, name, plugins, pool, processes, stop, "),
    (MINIMAL + "gateway: {}", "2:1: gateway: 'gateway' is not supported yet; remove it"),
    (MINIMAL + "security: {}", "2:1: security: 'security' is not supported yet; remove it"),
    (MINIMAL + "supervisor: {}", "2:1: supervisor: 'supervision' and 'supervisor' are the same block"),
    (MINIMAL + "name: My Run", "2:7: name: 'My Run' cannot name a run; it needs a-z, 0-9 and '-' only"),
    # supervision
    ("supervision:", "1:13: supervision: the supervisor has no children; give it at least one agent"),
    ("supervision: []", "1:14: supervision: should be a mapping (key: value), not a list"),
    ("supervision: {children: {}}", "1:25: supervision.children: should be a list of agents and supervisors, not "),
    ("supervision: {children: [5]}", "1:26: supervision.children[0]: should be a mapping with the key agent or "),
    ("supervision: {children: [{agnt: {}}]}", "1:27: supervision.children[0].agnt: unknown key 'agnt'; did you mean "),
    ("supervision: {children: [{name: a, module: b}]}", "1:26: supervision.children[0]: a child needs the key 'agent'"),
    (
        "supervision: {children: [{type: http_gateway, name: g}]}",
        "1:33: supervision.children[0].type: 'http_gateway' is not supported yet; remove the node",
    ),
    (
        "supervision: {children: [{type: topology_server, name: g}]}",
        "1:33: supervision.children[0].type: 'topology_server' is not supported yet; remove the node",
    ),
    (
        "supervision: {children: [{type: dynamic_supervisor, name: d, process: host}]}",
        "1:71: supervision.children[0].process: the process 'host' runs no agents",
    ),
    (
        "processes: {w: {}}\nsupervision: {children: [{type: dynamic_supervisor, name: d, process: x}]}",
        "2:71: supervision.children[0].process: the process 'x' is not declared under processes",
    ),
    (
        "supervision: {children: [{type: eval_agent, name: e, max_corections_per_window: 1}]}",
        "1:54: supervision.children[0].max_corections_per_window: unknown key",
    ),
    (
        "supervision: {children: [{type: eval_agent, name: e, exporters: [{type: arize}]}]}",
        "1:73: supervision.children[0].exporters[0].type: 'arize' is not built in; it is of Civitas's contrib package",
    ),
    (
        "supervision: {children: [{type: agent, name: g, module: m}]}",
        "1:26: supervision.children[0]: a node of type agent needs the key 'class' as text",
    ),
    (
        "supervision:\n  children:\n  - agent: {name: a, type: m.A}\n    replicas: 2\n",
        "4:5: supervision.children[0].replicas: 'replicas' stands beside 'agent'; indent it below",
    ),
    (
        MINIMAL.replace("{children", "{stratgy: x, children"),
        "1:15: supervision.stratgy: unknown key 'stratgy'; did you mean 'strategy'?",
    ),
    (
        MINIMAL.replace("{children", "{strategy: one_for_al, children"),
        "1:25: supervision.strategy: the text 'ONE_FOR_AL' is not allowed here; did you mean 'ONE_FOR_ALL'?",
    ),
    (
        MINIMAL.replace("{children", "{max_restarts: -1, children"),
        "1:29: supervision.max_restarts: should be greater than or equal to 0; it is the number -1",
    ),
    (
        MINIMAL.replace("{children", "{backoff_max: .inf, children"),
        "1:28: supervision.backoff_max: should be a finite number, not the number inf",
    ),
    (
        MINIMAL.replace("{children", "{restart_window: 1, restart_window_s: 1, children"),
        "1:15: supervision.restart_window: 'restart_window' and 'restart_window_s' are the same setting",
    ),
    (
        "supervision: {children: [supervisor: {children: [agent: {name: a, type: m.A}]}]}",
        "1:38: supervision.children[0].supervisor: the key 'name' is missing",
    ),
    # agents
    (agent_yaml("name: a"), "3:14: supervision.children[0].agent: the key 'type' is missing"),
    (agent_yaml("name: a, type: m.A, typ: x"), "3:35: supervision.children[0].agent.typ: unknown key 'typ'; did you "),
    (agent_yaml("name: a, type: A"), "3:30: supervision.children[0].agent.type: 'A' is no import path; it needs"),
    (agent_yaml("name: _a, type: m.A"), "3:21: supervision.children[0].agent.name: '_a' begins with '_'; such names"),
    (
        agent_yaml("name: a b, type: m.A"),
        "3:21: supervision.children[0].agent.name: 'a b' is no name; it needs letters",
    ),
    (
        agent_yaml("name: 5, type: m.A"),
        "3:21: supervision.children[0].agent.name: should be text, not the number 5; put",
    ),
    (agent_yaml(f"name: {'a' * 101}, type: m.A"), "3:21: supervision.children[0].agent.name: the name has 101 char"),
    (
        agent_yaml("name: a, type: m.A, config: [1]"),
        "3:43: supervision.children[0].agent.config: should be a mapping, ",
    ),
    (agent_yaml("name: a, type: m.A, config: {1: 2}"), "3:44: supervision.children[0].agent.config[1]: a key here "),
    (agent_yaml("name: a, type: m.A, replicas: 0"), "3:45: supervision.children[0].agent.replicas: should be greater "),
    (
        agent_yaml('name: a, type: m.A, replicas: "2"'),
        "3:45: supervision.children[0].agent.replicas: should be a whole ",
    ),
    (
        agent_yaml("name: a, type: m.A, mailbox_size: 1.5"),
        "3:49: supervision.children[0].agent.mailbox_size: should be",
    ),
    (
        agent_yaml("name: a, type: m.A, overflow: drop"),
        "3:45: supervision.children[0].agent.overflow: the text 'drop' ",
    ),
    (
        agent_yaml("name: a, type: m.A, restart: always"),
        "3:44: supervision.children[0].agent.restart: the text 'always'",
    ),
    (
        agent_yaml("name: a, type: m.A, state: sqlite"),
        "3:42: supervision.children[0].agent.state: 'sqlite' is a store, which all agents share: name it once",
    ),
    (
        agent_yaml("name: a, type: m.A, start_timeout_s: 0"),
        "3:52: supervision.children[0].agent.start_timeout_s: should",
    ),
    (
        agent_yaml("name: a, type: m.A, credentials: {anthropic: 5}"),
        "3:60: supervision.children[0].agent.credentials.anthropic: should be text, not the number 5",
    ),
    (
        agent_yaml("name: a, type: m.A, capabilities: [1]"),
        "3:50: supervision.children[0].agent.capabilities[0]: should",
    ),
    (
        agent_yaml("name: a, type: m.A, replicas: 2, state: shm"),
        "3:55: supervision.children[0].agent.state: state: shm belongs to one reader",
    ),
    (
        agent_yaml("name: a, type: m.A, replicas: 2, process: w"),
        "3:57: supervision.children[0].agent.process: 2 replicas run in 2 processes of the pool; leave out process",
    ),
    (
        agent_yaml("name: a, type: m.A, process: host"),
        "3:44: supervision.children[0].agent.process: the process 'host' runs no agents; use 'main' for the caller's",
    ),
    (
        "processes: {worker: {}}\n" + agent_yaml("name: a, type: m.A, process: wroker"),
        "4:44: supervision.children[0].agent.process: the process 'wroker' is not declared under processes; did",
    ),
    (
        "supervision:\n  children:\n  - {name: a, type: m.A}\n  - {name: a, type: m.B}\n",
        "4:12: supervision.children[1].name: the name 'a' is already taken by the agent in line 3",
    ),
    (
        "supervision:\n  children:\n  - {name: root, type: m.A}\n",
        "3:12: supervision.children[0].name: the name 'root' is already taken by the supervisor in line 2",
    ),
    # the other blocks
    ("transport: smh\n" + MINIMAL, "1:12: transport: the transport 'smh' is unknown; did you mean 'shm'?"),
    (
        "transport: {type: nats, servers: x}\n" + MINIMAL,
        "1:34: transport.servers: 'x' is no address of a server; it looks like nats://host:4222 or tls://host:4222",
    ),
    ("transport: {type: nats, server: x}\n" + MINIMAL, "1:25: transport.server: unknown key 'server'; did you mean"),
    (
        "transport: {type: nats, jetstream: true}\n" + MINIMAL,
        "1:25: transport.jetstream: 'jetstream: true' is not supported yet; remove it",
    ),
    ("transport: {type: zmq, pub_adr: x}\n" + MINIMAL, "1:24: transport.pub_adr: unknown key 'pub_adr'; did you mean"),
    (
        "transport: {type: zmq, pub_addr: 'tcp://10.0.0.1:1'}\n" + MINIMAL,
        "1:34: transport.pub_addr: 'tcp://10.0.0.1:1' is",
    ),
    ("bridge: {type: zmq, sub_addr: 'tcp://127.0.0.1:5559'}\n" + MINIMAL, "1:9: bridge: pub_addr and sub_addr are one"),
    ("bridge: {type: zmq, curve: {}}\n" + MINIMAL, "1:28: bridge.curve: give a directory, or server_public_key"),
    ("bridge: {type: zmq, curve: {directory: d, client_secret_key: k}}\n" + MINIMAL, "1:28: bridge.curve: a directory"),
    *(
        (f"transport: {{type: shm, {key}: 1}}\n" + MINIMAL, f"1:24: transport.{key}: unknown key {key!r}")
        for key in ("pub_addr", "sub_addr", "start_proxy", "servers", "jetstream", "stream_name")
    ),
    ("bridge: {servers: 'nats://a'}\n" + MINIMAL, "1:9: bridge: the key 'type' is missing"),
    ("bridge: {type: nast}\n" + MINIMAL, "1:16: bridge.type: the bridge 'nast' is unknown; did you mean 'nats'?"),
    ("transport: nats\nbridge: nats\n" + MINIMAL, "2:1: bridge: transport names a bridge already; keep one of them"),
    ("bridge: {type: nats, embedded: true}\n" + MINIMAL, "1:22: bridge.embedded: 'embedded' is not supported yet"),
    ("bridge: {type: nats, user: u}\n" + MINIMAL, "1:9: bridge: user and password belong together"),
    ("bridge: {type: nats, token: t, nkey: f}\n" + MINIMAL, "1:9: bridge: token and nkey are different ways to log in"),
    ("bridge: {type: nats, tls: {cert: f}}\n" + MINIMAL, "1:27: bridge.tls: cert and key belong together"),
    ("bridge: {type: nats, servers: ['nats://a', 1]}\n" + MINIMAL, "1:31: bridge.servers: should be an address or a"),
    *(
        (MINIMAL + f"{key}: {{}}", f"2:1: {key}: {key!r} is not supported yet; remove it")
        for key in ("mcp", "audit", "nats", "deploy", "telemetry", "presidium")
    ),
    (MINIMAL + "plugins: {exporters: []}", "2:11: plugins.exporters: 'exporters' is not supported yet; remove it"),
    ("transport: {tpye: shm}\n" + MINIMAL, "1:13: transport.tpye: unknown key 'tpye'; did you mean 'type'?"),
    ("transport: [shm]\n" + MINIMAL, "1:12: transport: should be a mapping (key: value), not a list"),
    ("processes: {w: {cpu: [0]}}\n" + MINIMAL, "1:17: processes.w.cpu: unknown key 'cpu'; did you mean 'cpus'?"),
    ("processes: {w: {cpus: [0, 0]}}\n" + MINIMAL, "1:23: processes.w.cpus: [0, 0] names a number twice"),
    ("processes: {w: {cpus: 0}}\n" + MINIMAL, "1:23: processes.w.cpus: should be a list, not the number 0"),
    (
        "processes: {w: {env: {A: 1}}}\n" + MINIMAL,
        "1:26: processes.w.env.A: should be text, not the number 1; put it in",
    ),
    ("processes: {w: {nice: 99}}\n" + MINIMAL, "1:23: processes.w.nice: should be less than or equal to 19; it is"),
    ("processes: {main: {cpus: [0]}}\n" + MINIMAL, "1:13: processes.main: main is not started by the pool: pin and "),
    ("processes: {host: {nice: 5}}\n" + MINIMAL, "1:13: processes.host: host is not started by the pool: pin and "),
    ("processes: {_w: {}}\n" + MINIMAL, "1:13: processes._w: '_w' begins with '_'; such names are reserved"),
    ("processes: [w]\n" + MINIMAL, "1:12: processes: should be a mapping (key: value), not a list"),
    ("pool: {size: 0}\n" + MINIMAL, "1:14: pool.size: should be auto or a whole number from 1 to 126, not 0"),
    ("pool: {pin: yes}\n" + MINIMAL, "1:13: pool.pin: should be true or false, not the text 'yes'"),
    ("stop: {drain: al}\n" + MINIMAL, "1:15: stop.drain: the text 'al' is not allowed here; did you mean 'all'?"),
    ("stop: {timeout_s: 1:30}\n" + MINIMAL, "1:19: stop.timeout_s: should be a number, not the text '1:30'"),
    ("logging: {level: LOUD}\n" + MINIMAL, "1:18: logging.level: 'LOUD' is no level; allowed: DEBUG, INFO, WARNING"),
    ("logging: {agents: {b: INFO}}\n" + MINIMAL, "1:20: logging.agents.b: there is no agent 'b'; allowed: a"),
    # text
    ("a: [", "2:1: not valid YAML"),
    (
        "supervision: {children: [agent: {name: a, type: m.A, significant: true}]}",
        "1:67: supervision.children[0].agent.significant: significant: true needs restart: transient or temporary",
    ),
    (
        "supervision: {children: [agent: {name: a, type: m.A, significant: true, restart: never}]}",
        "1:67: supervision.children[0].agent.significant: significant: true has no effect here",
    ),
    (
        "supervision: {significant: true, children: [agent: {name: a, type: m.A}]}",
        "1:15: supervision.significant: the root has no supervisor above it; remove 'significant'",
    ),
    (
        "supervision: {restart: transient, children: [agent: {name: a, type: m.A}]}",
        "1:15: supervision.restart: the root has no supervisor above it; remove 'restart'",
    ),
    (
        "supervision: {auto_shutdown: any, children: [agent: {name: a, type: m.A}]}",
        "1:30: supervision.auto_shutdown: ",
    ),
    (
        "supervision: {children: [{type: dynamic_supervisor, name: d, config: {max_childern: 2}}]}",
        "1:71: supervision.children[0].config.max_childern: unknown key 'max_childern'; did you mean 'max_children'?",
    ),
    (
        "supervision: {children: [{type: dynamic_supervisor, name: d, max_children: 1, config: {max_children: 2}}]}",
        "1:87: supervision.children[0].config: 'max_children' is set beside 'config' too; keep one of them",
    ),
    (
        "supervision: {children: [{type: dynamic_supervisor, name: d, config: [max_children]}]}",
        "1:70: supervision.children[0].config: should be a mapping (key: value), not a list",
    ),
    (
        agent_yaml("name: a, type: m.A, heartbeat_interval: 5"),
        "3:35: supervision.children[0].agent.heartbeat_interval: 'heartbeat_interval' says nothing here: there are no ",
    ),
    (
        "supervision: {children: [{type: dynamic_supervisor, name: d, max_children: -1}]}",
        "1:76: supervision.children[0].max_children: ",
    ),
    (
        "supervision: {children: [{type: dynamic_supervisor}]}",
        "1:26: supervision.children[0]: the key 'name' is missing",
    ),
    (
        "supervision: {children: [{type: dynamic_supervisor, name: root}]}",
        "1:59: supervision.children[0].name: the name 'root' is already taken by the supervisor in line 1",
    ),
    (MINIMAL + MINIMAL, "2:1: supervision: the key 'supervision' is set twice; first in line 1"),
    (MINIMAL + 'name: "${X}"', "2:7: name: the environment variable 'X' is not set; export X=..."),
    (MINIMAL + 'name: "${X-y}"', "2:7: name: '${X-y}' is no variable; write ${NAME}, or $${ for the characters"),
    (MINIMAL + 'name: "${X"', "2:7: name: '${X' is no variable"),
    (MINIMAL + 'name: "${X:?oops}"', "2:7: name: '${X:?oops}' is no variable"),
    (MINIMAL + "name: !ENV X", "2:7: name: the environment variable 'X' is not set; export X=..."),
    (MINIMAL + "name: !ENV X Y", "2:7: name: '${X Y}' is no variable"),
]


@pytest.mark.parametrize(("text", "problem"), TABLE, ids=[problem[:50] for _, problem in TABLE])
def test_a_problem_is_said_once_at_its_place(text: str, problem: str) -> None:
    (only,) = problems_of(text)
    assert only.startswith(f"t.yaml:{problem}")


def test_all_problems_are_said_at_once_in_the_order_of_the_text() -> None:
    text = "pol: {}\ntransport: smh\nsupervision:\n  stratgy: x\n  children:\n  - {name: a, type: A}\n  - {}\n  - 5\n"
    places = [problem.split(": ")[0] for problem in problems_of(text)]
    assert places == [f"t.yaml:{place}" for place in ("1:1", "2:12", "4:3", "6:21", "7:5", "8:5")]


def test_broken_yaml_ends_the_reading_with_one_problem() -> None:
    assert len(problems_of("a: 1\na: 2\nb: [")) == 1


# --- variables ------------------------------------------------------------------------------------------------------


def test_variables_are_put_into_every_string_value_and_dollars_can_be_kept() -> None:
    text = agent_yaml("name: a, type: m.A, config: {p: '${D}/x', q: ['${D}${D}', '$${D}', '$D'], '${D}': 1}")
    config = load_topology_text(text, environment={"D": "/d"}).supervision.agents()[0].config
    assert config == {"p": "/d/x", "q": ["/d/d", "${D}", "$D"], "${D}": 1}
    assert type(config["p"]) is str


def test_a_variable_is_a_number_where_the_schema_wants_one_and_text_in_a_config() -> None:
    text = agent_yaml("name: a, type: m.A, mailbox_size: '${N}', config: {n: '${N}'}")
    agent = load_topology_text(text, environment={"N": "7"}).supervision.agents()[0]
    assert agent.mailbox_size == 7
    assert agent.config == {"n": "7"}


def test_a_variable_that_is_no_number_is_refused_where_one_is_wanted() -> None:
    (problem,) = problems_of(agent_yaml("name: a, type: m.A, mailbox_size: '${N}'"), N="many")
    assert problem == (
        "t.yaml:3:49: supervision.children[0].agent.mailbox_size: should be a whole number, not the text 'many'"
    )


def test_a_default_stands_where_the_variable_is_unset_or_empty() -> None:
    text = agent_yaml("name: a, type: m.A, mailbox_size: '${N:-7}', config: {p: '${P:-/x:y}', q: '${Q:-}${R:-r}'}")
    agent = load_topology_text(text, environment={"P": "", "R": "set"}).supervision.agents()[0]
    assert agent.mailbox_size == 7
    assert agent.config == {"p": "/x:y", "q": "set"}


def test_the_env_tag_is_a_variable_by_its_name_or_a_text_with_some_in_it() -> None:
    text = agent_yaml(
        "name: a, type: m.A, mailbox_size: !ENV N, config: {p: !ENV P, q: !ENV '${P}-${N}', r: !ENV '${X:-d}'}"
    )
    agent = load_topology_text(text, environment={"N": "7", "P": "p"}).supervision.agents()[0]
    assert agent.mailbox_size == 7
    assert agent.config == {"p": "p", "q": "p-7", "r": "d"}
    assert type(agent.config["p"]) is str


def test_unset_variables_can_be_let_pass_and_then_nothing_is_said_about_their_values(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text(agent_yaml("name: a, type: m.A, mailbox_size: '${N}', credentials: {x: '${KEY}'}") + "pol: {}\n")
    with pytest.raises(TopologyError) as caught:
        load_topology(file, environment={}, may_be_unset=True)
    assert [problem.split(":", 1)[1] for problem in caught.value.problems] == [
        "4:1: pol: unknown key 'pol'; did you mean 'pool'?"
    ]


def test_what_came_from_the_environment_is_known_as_secret_by_its_names_or_its_place() -> None:
    text = agent_yaml(
        "name: a, type: m.A, credentials: {x: '${ONE}'}, config: {p: '${TWO}', db_password: '${THREE}', b: '${A_KEY}'}"
    )
    values = {"ONE": "v-one", "TWO": "v-two", "THREE": "v-three", "A_KEY": "v-key"}
    spec = load_topology_text(text, environment=values)
    assert spec.secrets == ["v-key", "v-one", "v-three"]
    assert spec.private_variables == ["ONE"], "what nothing but credentials use, no process has to have"
    assert "v-one" not in repr(spec)


# --- data of a program ----------------------------------------------------------------------------------------------


def test_a_dict_is_read_as_a_file_is() -> None:
    data = yaml.safe_load(MINIMAL.replace("m.A", "'${CLASS}'"))
    assert load_topology_data(data, environment={"CLASS": "m.A"}) == load_topology_text(MINIMAL)


def test_problems_of_a_dict_have_paths_and_no_lines() -> None:
    with pytest.raises(TopologyError) as caught:
        load_topology_data(
            {"supervision": {"children": [{"agent": {"name": "a", "type": "m.A", "replicsa": 2}}]}, "pol": 1}
        )
    assert caught.value.problems == [
        "pol: unknown key 'pol'; did you mean 'pool'?",
        "supervision.children[0].agent.replicsa: unknown key 'replicsa'; did you mean 'replicas'?",
    ]


def test_what_a_file_could_not_have_said_is_refused_in_a_dict() -> None:
    endless: dict[str, object] = {"name": "a", "type": "m.A"}
    endless["config"] = endless
    for value, said in (
        ((1,), "not tuple"),
        (object(), "not object"),
        ({(): 1}, "a key is"),
        (endless, "nests deeper"),
    ):
        data = {"supervision": {"children": [{"agent": {"name": "a", "type": "m.A", "config": {"x": value}}}]}}
        with pytest.raises(TopologyError, match=said):
            load_topology_data(data)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_a_topology_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"there is no such file; `civitas-shm init NAME`"):
        load_topology(tmp_path / "topology.yaml")


def test_a_directory_is_no_topology(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match="cannot be read: Is a directory"):
        load_topology(tmp_path)


def test_bytes_that_are_not_utf_8_are_named_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_bytes(b"a: 1\nb: \xe4\n")
    with pytest.raises(TopologyError, match=r"t\.yaml:2:4: byte 0xe4 is not UTF-8"):
        load_topology(file)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_topology(file).supervision.agents()[0].name == "a"


# --- whatever comes -------------------------------------------------------------------------------------------------

_FRAGMENTS = """name type agent supervisor supervision children config processes cpus pool size transport shm stop
${X} $${ &a *a !!int << ~ 1 -1 .nan m.A _x [ ] { } , " ' #"""
_WORDS = st.sampled_from([*_FRAGMENTS.split(), ": ", "- ", "\n", "\n  ", "\n    ", "\t"])


def problems_or_agents(text: str) -> tuple[list[str], list[AgentSpec]]:
    try:
        return [], load_topology_text(text, environment={}).supervision.agents()
    except TopologyError as error:
        return error.problems, []


@given(st.one_of(st.text(max_size=60), st.lists(_WORDS, max_size=40).map("".join)))
def test_nothing_but_a_topology_error_comes_out_whatever_the_text_is(text: str) -> None:
    problems, agents = problems_or_agents(text)
    assert bool(problems) != bool(agents)


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["m.A", "a"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.integers(0, 3).map(str), st.sampled_from(["name", "type", "agent"])), inner),
    ),
    max_leaves=8,
)
_KEYS = "name transport supervision processes pool stop logging strategy children agent supervisor type config cpus env"


@given(st.data(), _VALUES)
def test_any_value_at_any_key_is_taken_or_named(data: st.DataObject, value: object) -> None:
    agent: dict[str, object] = {"name": "a", "type": "m.A"}
    supervision: dict[str, object] = {"children": [{"agent": agent}]}
    process: dict[str, object] = {}
    tree: dict[str, object] = {"supervision": supervision, "processes": {"w": process}}
    data.draw(st.sampled_from([tree, supervision, agent, process]))[data.draw(st.sampled_from(_KEYS.split()))] = value
    problems, agents = problems_or_agents(json.dumps(tree))
    assert bool(problems) != bool(agents)
    assert all(problem.startswith("<text>:1:") for problem in problems)


def test_the_model_can_be_had_without_yaml_and_pydantic() -> None:
    code = "import civitas_shm.topology.model, sys; print([m for m in ('yaml', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
