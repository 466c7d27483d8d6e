"""The window of a supervisor against OTP's own way of counting, for any sequence of falls.

All other guarantees of the tree are played by the simulation (civitas_shm/simulation, tests/sim).
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.supervision import ChildFailed, ChildReady, Escalated, Start, StartChild, Tree, step
from civitas_shm.topology.model import AgentSpec, SupervisorSpec


@given(
    falls=st.lists(st.tuples(st.integers(0, 8), st.sampled_from("abc")), max_size=40),
    max_restarts=st.integers(0, 6),
    window_s=st.integers(1, 20),
)
def test_a_supervisor_gives_up_exactly_when_otp_would(
    falls: list[tuple[int, str]], max_restarts: int, window_s: int
) -> None:
    children: list[AgentSpec | SupervisorSpec] = [AgentSpec(name=name, type="m:A") for name in "abc"]
    spec = SupervisorSpec(max_restarts=max_restarts, restart_window_s=window_s, backoff_base_s=0.0, children=children)
    tree = Tree.from_spec(spec)
    now_s = 0
    otp: list[int] = []
    tree, _ = step(tree, Start(), now_s)
    for event in (ChildReady("a", 1), ChildReady("b", 1), ChildReady("c", 1)):
        tree, _ = step(tree, event, now_s)
    for gap_s, name in falls:
        now_s += gap_s
        otp = [now_s, *(then for then in otp if then >= now_s - window_s)]
        tree, actions = step(tree, ChildFailed(name, tree.children[name].incarnation, "boom"), now_s)
        gave_up = any(isinstance(action, Escalated) for action in actions)
        assert gave_up == (len(otp) > max_restarts)
        if gave_up:
            break
        assert actions == [StartChild(name, tree.children[name].incarnation)]
        tree, _ = step(tree, ChildReady(name, tree.children[name].incarnation), now_s)
