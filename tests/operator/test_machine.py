"""Random histories of a job: whatever happens in whatever order, what must hold holds.

The world checks its invariants in every tick: no rank twice, no round below minReplicas, members
that live, numbers that grow, charges that equal incidents, nothing created after the end, a status
that the CRD accepts. Here events come in random order, the operator dies in the middle of some, and
when they stop the job has to come to its end. REKINDLE_NIGHTLY=1 looks at many
more histories (REKINDLE_EXAMPLES of them).
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from rekindle.contract import AgentPhase
from rekindle_operator import status

NIGHTLY = os.environ.get("REKINDLE_NIGHTLY") == "1"
pick = st.integers(0, 9)


class Histories(RuleBasedStateMachine):
    """One job, and everything that can happen to it."""

    World = None

    @initialize(
        replicas=st.integers(1, 4),
        least=st.integers(1, 4),
        nodes=st.integers(1, 6),
        spares=st.integers(0, 2),
        warms_for=st.sampled_from([0.0, 4.0]),
    )
    def begin(self, replicas, least, nodes, spares, warms_for):
        self.w = self.World(
            replicas=replicas,
            nodes=nodes,
            elastic={"minReplicas": min(replicas, least), "spares": spares},
            restart={"user": {"max": 3, "window": "1h"}},
            deadlines={"startup": None},
            save_every=7,
        )
        self.w.warms_for = warms_for
        self.over = False

    def a_pod(self, number, *, running=False):
        pods = [p for p in self.w.alive if not running or p.agent and not p.terminated]
        return pods[number % len(pods)].name if pods else None

    def on_a_pod(self, number, event, *args, running=False, **more):
        name = self.a_pod(number, running=running)
        if name is not None:
            event(name, *args, **more)

    # What happens.

    @rule(seconds=st.sampled_from([0, 1, 1, 3, 10, 70]))
    def time_passes(self, seconds):
        self.w.run(seconds, pace=5.0)

    @rule()
    def one_tick(self):
        self.w.kubernetes()
        self.w.act()
        if self.w.up:
            self.w.tick()

    @rule(number=pick, code=st.sampled_from([137, 1, 139]))
    def kill(self, number, code):
        self.on_a_pod(number, self.w.kill, code, running=True)

    @rule(number=pick)
    def out_of_memory(self, number):
        self.on_a_pod(number, self.w.kill, 137, "OOMKilled", running=True)

    @rule(number=pick)
    def cannot_start(self, number):
        self.on_a_pod(number, self.w.kill, 128, "StartError")

    @rule(number=pick)
    def delete(self, number):
        self.on_a_pod(number, self.w.delete)

    @rule(number=pick)
    def vanish(self, number):
        self.on_a_pod(number, self.w.vanish)

    @rule(number=pick)
    def evict(self, number):
        self.on_a_pod(number, self.w.evict)

    @rule(
        number=pick,
        key=st.sampled_from(
            [
                "karpenter.sh/disrupted",
                "node.kubernetes.io/unreachable",
                "node.kubernetes.io/not-ready",
                "aws-node-termination-handler/rebalance-recommendation",
                "aws-node-termination-handler/spot-itn",
            ]
        ),
    )
    def taint(self, number, key):
        pods = [p for p in self.w.alive if p.node in self.w.nodes]
        if pods:
            self.w.taint(pods[number % len(pods)].name, key)

    @rule()
    def taints_go(self):
        for body in self.w.nodes.values():
            body["spec"].pop("taints", None)

    @rule(number=pick)
    def node_dies(self, number):
        pods = [p for p in self.w.alive if p.node in self.w.nodes]
        if pods:
            self.w.lose_node(pods[number % len(pods)].name)

    @rule(number=pick)
    def node_comes(self, number):
        self.w.nodes.setdefault(f"spare-{number}", {"spec": {}, "status": {}})

    @rule(number=pick, cause=st.sampled_from(["UserError", "PeerLost", "PeerLost"]))
    def workers_fail(self, number, cause):
        agents = self.w.group()
        if agents:
            self.w.fail(agents[number % len(agents)].pod.name, cause=cause)

    @rule(number=pick)
    def one_is_done(self, number):
        agents = self.w.group()
        if agents and agents[0].round_steps:
            self.w.finish(agents[number % len(agents)].pod.name)

    @rule(number=pick)
    def falls_silent(self, number):
        name = self.a_pod(number, running=True)
        if name:
            self.w.pod(name).agent.quiet = True

    @rule()
    def all_speak(self):
        for pod in self.w.alive:
            if pod.agent:
                pod.agent.quiet = False

    @rule(hold=st.booleans())
    def saves_are_held_up(self, hold):
        self.w.hold_saves = hold

    @rule(number=pick, broken=st.booleans())
    def images(self, number, broken):
        self.w.broken_image = (
            {f"digits-{number % 4}", f"digits-{number % 4}r1"} if broken else set()
        )

    @rule(late=st.sets(pick, max_size=2))
    def operator_restarts(self, late):
        names = [p.name for p in self.w.alive]
        self.w.restart_operator(quiet=[names[n % len(names)] for n in late if names])

    @rule()
    def operator_is_away(self):
        self.w.stop_operator()

    @rule(where=st.sampled_from(["children", "status"]))
    def operator_dies_in_the_middle(self, where):
        if self.w.up:
            self.w.kubernetes()
            self.w.act()
            self.w.tick(die_after=where)

    @rule(replicas=st.integers(1, 4))
    def scale(self, replicas):
        self.w.change(replicas=max(replicas, self.w.job.min_replicas))

    @rule(suspend=st.booleans())
    def suspend(self, suspend):
        self.w.change(suspend=suspend)

    @rule(image=st.sampled_from(["a", "b"]))
    def new_template(self, image):
        self.w.change(template={"spec": {"containers": [{"name": "trainer", "image": image}]}})

    # What holds, besides what the world checks in every tick.

    @invariant()
    def pods_are_bounded(self):
        if hasattr(self, "w"):
            assert len(self.w.pods) <= 4 * (4 + 2) + 6

    @invariant()
    def names_are_not_used_twice(self):
        if hasattr(self, "w"):
            names = [name for name in self.w.created if name not in self.w.unrecorded]
            assert len(set(names)) == len(names)

    def finish_like_the_others(self, current):
        """Nobody trains alone while a member of the same round is done."""
        inside = [p for p in self.w.pods.values() if p.uid in {m.uid for m in current.members}]
        done = any(p.phase == "Succeeded" for p in inside)
        agents = [p.agent for p in inside if p.agent and not p.over]
        if done or any(agent.phase is AgentPhase.DONE for agent in agents):
            for agent in agents:
                if agent.phase is AgentPhase.RUNNING and agent.round.key == current.key:
                    self.w.finish(agent.pod.name)

    def teardown(self):
        """Events stop and there is room: the job comes to its end."""
        if not hasattr(self, "w"):
            return
        w = self.w
        w.restart_operator()
        w.change(suspend=False)
        w.hold_saves, w.broken_image = False, set()
        w.nodes = {name: {"spec": {}, "status": {}} for name in w.nodes}
        w.nodes |= {f"fresh-{n}": {"spec": {}, "status": {}} for n in range(6)}
        w.run(30, pace=2.0)
        for _ in range(80):
            if w.phase in status.TERMINAL:
                break
            for current in w.rounds[-1:]:
                self.finish_like_the_others(current)
            w.total_steps = min([w.total_steps, *[a.step + 30 for a in w.group()]])
            w.run(20, pace=5.0)
        assert w.phase in status.TERMINAL, w.status
        made = list(w.created)
        w.run(60, pace=10.0)
        assert w.created == made


SETTINGS = settings(
    max_examples=int(os.environ.get("REKINDLE_EXAMPLES", "2000")) if NIGHTLY else 25,
    stateful_step_count=60 if NIGHTLY else 20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_whatever_happens_the_job_keeps_its_promises_and_ends(world):
    class InThisWorld(Histories):
        World = staticmethod(world)

    run_state_machine_as_test(InThisWorld, settings=SETTINGS)
