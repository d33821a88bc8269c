"""Random histories of a job: whatever happens in whatever order, what must hold holds.

The world checks its invariants in every tick: no rank twice, no round below minReplicas, members
that live and are ready, nobody left out without need, numbers that grow, children that their job
owns, nothing created after the end, a status that the CRD accepts. Here events come in random
order, and the operator dies in the middle of some. The machine keeps its own books, which are not
made from the operator's code: which pod something has happened to that may be charged, and by when
who was told to go has to be gone. When the events stop the job has to be whole again in bounded
time, and then to come to its end. In half of the histories the script is right: then whatever pods,
nodes, ways and operators do, that end is a good one.

REKINDLE_MACHINE=deep looks at many more histories, other ones each time and longer
(REKINDLE_EXAMPLES of them).
"""

import math
import os
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from rekindle.api import AgentPhase, Rollback
from rekindle_operator.observed import run_claims
from rekindle_operator.status import status

DEEP = os.environ.get("REKINDLE_MACHINE") == "deep"
pick = st.integers(0, 9)
EVER = math.inf
UNREACHABLE = "node.kubernetes.io/unreachable"
TAINTS = {
    "karpenter.sh/disrupted": 30,
    "cloud.google.com/impending-node-termination": 15,
    "aws-node-termination-handler/spot-itn": 120,
    "aws-node-termination-handler/rebalance-recommendation": EVER,
    "node.kubernetes.io/not-ready": EVER,
    UNREACHABLE: EVER,
}
"""Seconds that each of them leaves. That a node is unreachable is said of healthy ones, too."""
CONDITIONS = {
    ("PreemptScheduled", "True"): 30,
    ("TerminateScheduled", "True"): 300,
    ("VMEventScheduled", "True"): EVER,
    ("Ready", "False"): EVER,
    ("Ready", "Unknown"): EVER,
}
ENDS = [(137,), (1,), (139,), (137, "OOMKilled")]
"""Exit code, and what the kubelet makes of it."""
CHARGED = {"user", "infrastructure", "preemption"}
OF_PROGRAMS = {"UserError", "PeerLost", "Hung", "WorkerKilled", "Crashed"}
BY_OTHERS = [(137,), (139,), (143,)]
"""How a pod ends of which the script is innocent."""
WHOLE_AGAIN = 450.0
"""Seconds: the longest pause after losses in a row, and the longest patience of a start."""


class Histories(RuleBasedStateMachine):
    """One job, and everything that can happen to it."""

    World = None

    @initialize(
        replicas=st.integers(1, 4),
        least=st.integers(1, 4),
        nodes=st.integers(1, 6),
        spares=st.integers(0, 2),
        warms_for=st.sampled_from([0.0, 4.0]),
        ttl=st.sampled_from([None, 40]),
        plain=st.booleans(),
        useful=st.sampled_from([None, None, 1, 2, 3]),
        right=st.booleans(),
        rival=st.sampled_from([None, None, "older", "suspended"]),
    )
    def begin(self, replicas, least, nodes, spares, warms_for, ttl, plain, useful, right, rival):
        self.right = right
        self.w = self.World(
            replicas=replicas,
            nodes=nodes,
            elastic={"minReplicas": min(replicas, least), "spares": spares},
            restart={"user": {"max": 3, "window": "1h"}},
            deadlines={"startup": None},
            ttlSecondsAfterFinished=ttl,
            save_every=7,
            plain=plain,
        )
        self.w.warms_for = warms_for
        if rival:
            self.another_job_comes()
            suspended, made = rival == "suspended", self.w.job.created_at - 1.0
            self.w.rival = replace(self.w.rival, created_at=made, suspended=suspended)
        self.w.useful = None if plain else useful
        self.place, self.w.kubernetes = self.w.kubernetes, self.pods_are_placed
        self.failed: set[str] = set()
        """Pods in which something has failed that nothing was charged for."""
        self.told: set[str] = set()
        """Pods that were told to go and that nothing was charged for."""
        self.due: dict[str, float] = {}
        """By uid of the pod or name of the node: when it has to be gone."""
        self.signed: dict[str, float] = {}
        """The same by what is written on the node, which stays when a silent one is back."""
        self.came: set[str] = set()
        """Pods that are or were on a node that has to be gone."""
        self.cut: set[str] = set()
        """Pods that are dead, and of which only their lifelines have told."""
        self.owed: set[str] = set()
        """Members that were taken away while all trained: an incident has to tell of each."""
        self.named: set[str] = set()
        """Pods that incidents have told of."""
        self.read = self.settled = 0
        self.unpaid = set()
        """So many incidents have been held against these books."""

    def pods_are_placed(self):
        """As the world does it, and whoever comes to a node that has to go is in trouble."""
        self.place()
        for pod in self.w.pods.values():
            if pod.node in self.due and pod.name not in self.came:
                self.told.add(pod.name)
                self.came.add(pod.name)

    # Who is concerned.

    def a_pod(self, number, *, running=False):
        pods = [p for p in self.w.alive if not running or p.agent and not p.terminated]
        return pods[number % len(pods)].name if pods else None

    def a_member(self, number):
        agents = self.w.group()
        return agents[number % len(agents)].pod.name if agents else None

    def a_placed_pod(self, number):
        pods = [p for p in self.w.alive if p.node in self.w.nodes]
        return pods[number % len(pods)].name if pods else None

    def happens_to(self, name, event, *args, seconds=None, **more):
        """Something happens to a pod; `seconds`: it was told to be gone after so many."""
        if name is None:
            return
        (self.failed if seconds is None else self.told).add(name)
        if seconds is not None:
            uid = self.w.pod(name).uid
            self.due[uid] = min(self.due.get(uid, EVER), self.w.now + seconds)
        event(name, *args, **more)

    def happens_to_node(self, name, seconds, event, *args, sign=True):
        if name is None:
            return
        node, end = self.w.pod(name).node, self.w.now + seconds
        self.told |= {p.name for p in self.w.alive if p.node == node}
        self.due[node] = min(self.due.get(node, EVER), end)
        if sign:
            self.signed[node] = min(self.signed.get(node, EVER), end)
        event(name, *args)

    def is_taken_away(self, name, event, *args):
        """One that trains in the newest round has to be told of when it is dead, in any case.

        Of a round that nobody is left of, the next operator knows what the status says.
        """
        trains = self.w.phase == "Running" and not self.w.job.suspend
        if trains and name in {agent.pod.name for agent in self.w.group()}:
            self.owed.add(name)
        self.happens_to(name, event, *args)

    # What happens.

    @rule(seconds=st.sampled_from([0, 1, 1, 3, 10, 40]))
    def time_passes(self, seconds):
        self.w.run(seconds, pace=5.0)
        self.nobody_trains_past_its_end()

    @rule()
    def one_tick(self):
        self.w.kubernetes()
        self.w.act()
        if self.w.up:
            self.w.tick()

    @rule(
        number=pick,
        end=st.sampled_from([*ENDS, (128, "StartError")]),
    )
    def kill(self, number, end):
        if self.right:
            end = BY_OTHERS[number % len(BY_OTHERS)]
        starts = end[-1] == "StartError"
        self.is_taken_away(self.a_pod(number, running=not starts), self.w.kill, *end)

    @rule(number=pick, later=st.sampled_from([None, 1, 5, 20]), end=st.sampled_from(ENDS))
    def lifeline_breaks(self, number, later, end):
        """A pod is known to be lost before the kubelet tells, if that does not die, too."""
        name = self.a_pod(number, running=True)
        if name is None:
            return
        if self.right:
            end = BY_OTHERS[number % len(BY_OTHERS)]
        self.cut.add(name)
        self.is_taken_away(name, self.w.cut)
        if later is not None:
            self.w.run(later)
            self.kubelet_tells(*end)

    def kubelet_tells(self, *end):
        """What is said of a pod that is known to be lost is no second event."""
        for name in self.cut & {p.name for p in self.w.alive}:
            self.w.kill(name, *end)
        self.cut.clear()

    @rule(number=pick)
    def vanish(self, number):
        self.is_taken_away(self.a_pod(number), self.w.vanish)

    @rule(number=pick, seconds=st.sampled_from([2, 30]))
    def object_vanishes_first(self, number, seconds):
        """Deleted by force, and the kubelet gives the processes time all the same."""
        self.is_taken_away(self.a_pod(number, running=True), self.w.vanish_first, seconds)

    @rule(number=pick, grace=st.sampled_from([5, 30]))
    def delete(self, number, grace):
        self.happens_to(self.a_pod(number), self.w.delete, grace, seconds=grace)

    @rule(number=pick, reason=st.sampled_from(["EvictionByEvictionAPI", "PreemptionByScheduler"]))
    def evict(self, number, reason):
        self.happens_to(self.a_pod(number), self.w.evict, reason, seconds=30)

    @rule(number=pick, source=st.sampled_from([("file: spot", 120), ("HTTP call: drain", 10)]))
    def tell(self, number, source):
        name = self.a_pod(number, running=True)
        if name and not self.w.pod(name).agent.notice:
            self.happens_to(name, self.w.tell, *source, seconds=source[1])

    @rule(number=pick, key=st.sampled_from(sorted(TAINTS)))
    def taint(self, number, key):
        self.happens_to_node(self.a_placed_pod(number), TAINTS[key], self.w.taint, key)

    @rule(number=pick, sign=st.sampled_from(sorted(CONDITIONS)))
    def node_condition(self, number, sign):
        name, seconds = self.a_placed_pod(number), CONDITIONS[sign]
        self.happens_to_node(name, seconds, self.w.condition_of_node, *sign)
        if name and sign[0] == "Ready":  # Kubernetes adds the taint that says the same
            kind = "unreachable" if sign[1] == "Unknown" else "not-ready"
            self.w.taint(name, f"node.kubernetes.io/{kind}")

    @rule()
    def nodes_are_well_again(self):
        self.w.nodes = {name: {"spec": {}, "status": {}} for name in self.w.nodes}
        self.due = {name: at for name, at in self.due.items() if name not in self.w.nodes}
        self.signed.clear()

    @rule(number=pick)
    def node_goes(self, number):
        self.happens_to_node(self.a_placed_pod(number), 0, self.w.lose_node)

    @rule(number=pick)
    def machine_dies(self, number):
        """First the pods that stay lose contact, and only much later somebody says why."""
        name = self.a_placed_pod(number)
        self.happens_to_node(name, EVER, self.w.die_unnoticed, sign=False)
        for agent in self.w.group():
            self.happens_to(agent.pod.name, self.w.fall)

    @rule(number=pick)
    def machine_falls_silent(self, number):
        """It has lost its power, or its network: nobody tells, and no connection breaks."""
        name = self.a_placed_pod(number)
        self.happens_to_node(name, EVER, self.w.die_unnoticed, sign=False)

    @rule()
    def machines_are_back(self):
        """Only their network was away, or they stood still."""
        kept = {name: at for name, at in self.due.items() if name not in self.w.dead}
        self.due = kept | {n: at for n, at in self.signed.items() if n in self.w.dead}
        self.w.dead.clear()

    @rule(blind=st.booleans(), tell=st.booleans())
    def operator_sees_less(self, blind, tell):
        """It may not read nodes; launchers of before tell nothing of their peers."""
        self.w.blind, self.w.peers_tell = blind, tell

    @rule()
    def dead_machines_are_noticed(self):
        for pod in self.w.alive:
            if pod.node in self.w.dead and pod.node in self.w.nodes:
                self.signed.setdefault(pod.node, EVER)  # as long as it may only be the way to it
                self.happens_to_node(pod.name, 0, self.w.taint, UNREACHABLE, sign=False)

    @rule(number=pick)
    def node_comes(self, number):
        if f"other-{number}" not in self.due:  # else it is one that has gone
            self.w.nodes.setdefault(f"other-{number}", {"spec": {}, "status": {}})

    @rule(number=pick, cause=st.sampled_from(["UserError", "PeerLost", "WorkerKilled", "Crashed"]))
    def workers_fail(self, number, cause):
        if self.right and cause in {"UserError", "Crashed"}:
            cause = "WorkerKilled"
        self.happens_to(self.a_member(number), self.w.fail, cause=cause)

    @rule(number=pick, stacks=st.sampled_from([None, "net.py:17 forward"]))
    def workers_hang(self, number, stacks):
        blamed = self.a_member(number)
        for agent in self.w.group():
            name = agent.pod.name
            self.happens_to(name, self.w.hang, waits=name != blamed, stacks=stacks)
        self.w.trains = True

    @rule()
    def what_hangs_gets_on(self):
        for agent in self.w.group():
            agent.more.pop("hang", None)

    @rule()
    def trainer_goes_back(self):
        agents = self.w.group()
        if agents and agents[0].round_steps and not self.w.plain:
            step = agents[0].step
            back = Rollback(at_step=step, to_step=max(0, step - 5), reason="nan", at=self.w.now)
            for agent in agents:
                agent.more["rollback"] = back

    @rule(number=pick)
    def one_is_done(self, number):
        agents = self.w.group()
        if agents and agents[0].round_steps:
            self.w.finish(self.a_member(number))

    @rule(number=pick)
    def falls_silent(self, number):
        name = self.a_pod(number, running=True)
        if name is None:
            return
        pod = self.w.pod(name)
        pod.agent.quiet = True
        signs = self.w.nodes.get(pod.node, {"spec": {}})["spec"].get("taints", ())
        if any(sign["key"] == UNREACHABLE for sign in signs):
            self.told.add(name)  # the way to it is broken for everybody who could tell

    @rule(number=pick, count=st.sampled_from([1, 3, 10]))
    def reports_are_lost(self, number, count):
        name = self.a_pod(number, running=True)
        if name:
            self.w.dropped[self.w.pod(name).uid] = count

    @rule(index=st.integers(0, 4), seconds=st.sampled_from([5, 70, 300]))
    def pods_come_late(self, index, seconds):
        """From now on containers of one index start later than those of the others."""
        self.w.late[index] = self.w.now + seconds

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

    def operator_is_new(self, *, quiet=()):
        """It does not know which pods the one before has asked to go, nor which lifelines broke."""
        self.w.cut_off.clear()
        self.told |= {*self.w.deleted}
        self.w.restart_operator(quiet=quiet)

    @rule(late=st.sets(pick, max_size=2))
    def operator_restarts(self, late):
        names = [p.name for p in self.w.alive]
        self.operator_is_new(quiet=[names[n % len(names)] for n in late if names])

    @rule(number=pick, loss=st.sampled_from(["kill", "vanish", "cut"]))
    def a_pod_and_the_operator_die(self, number, loss):
        """The next one sees what is left of the pod before any agent tells it of a round."""
        name, speak = self.a_pod(number, running=True), [a.pod.agent for a in self.w.group()]
        speak = [agent for agent in speak if not agent.quiet]
        if name is None:
            return
        if loss == "cut":
            self.cut.add(name)
        self.is_taken_away(name, getattr(self.w, loss))
        self.operator_is_new(quiet=[agent.pod.name for agent in speak])
        self.w.kubernetes()
        self.w.tick()
        for agent in speak:
            agent.quiet = False

    @rule()
    def operator_is_away(self):
        self.w.stop_operator()

    @rule(where=st.sampled_from(["children", "status"]))
    def operator_dies_between_writes(self, where):
        if self.w.up:
            self.w.kubernetes()
            self.w.act()
            self.w.tick(die_after=where)
            self.operator_is_new()

    @rule(number=pick)
    def operator_dies_when_one_has_heard_of_a_round(self, number):
        if self.w.up:
            self.w.kubernetes()
            self.w.act()
            self.w.tick()
            agents = [p.agent for p in self.w.alive if p.agent and not self.w.unreachable(p)]
            if agents:
                self.w.obey(agents[number % len(agents)])
            self.operator_is_new()

    @rule(replicas=st.integers(1, 4), spares=st.integers(0, 2))
    def scale(self, replicas, spares):
        least = self.w.job.min_replicas
        self.owed.clear()  # it may be one that nobody wants any more
        self.w.change(
            replicas=max(replicas, least), elastic={"minReplicas": least, "spares": spares}
        )

    @rule()
    def another_job_comes(self):
        """With the same place for its checkpoints."""
        if self.w.rival is None:
            own, record = self.w.job, status.read({})
            use = run_claims.use_of(own, record, ended=False)
            self.w.rival = replace(use, key=("ml", "other"), created_at=self.w.now + 1.0)

    @rule()
    def the_other_job_ends(self):
        self.w.rival = None

    @rule(suspend=st.booleans())
    def the_other_job_is_suspended(self, suspend):
        if self.w.rival is not None:
            self.w.rival = replace(self.w.rival, suspended=suspend)

    @rule(held=st.booleans())
    def somebody_holds_the_run(self, held):
        """A script, or a job of another operator: only workers find that out, as they begin."""
        words = "s3://bucket/run is in use by bob on b2 (pid 8)"
        self.w.held_by = words if held and not self.w.group() else None

    @rule(suspend=st.booleans())
    def suspend(self, suspend):
        self.owed.clear()
        self.w.change(suspend=suspend)

    @rule(image=st.sampled_from(["a", "b"]))
    def new_template(self, image):
        self.owed.clear()
        self.w.change(template={"spec": {"containers": [{"name": "trainer", "image": image}]}})

    # What holds, besides what the world checks in every tick.

    @invariant()
    def what_holds(self):
        assert len(self.w.pods) <= 4 * (4 + 2) + 6
        names = [name for name in self.w.created if name not in self.w.unrecorded]
        assert len(set(names)) == len(names)
        self.nothing_is_charged_twice()
        self.one_job_uses_the_run()
        for told in self.w.status.get("incidents", ()):
            self.named |= {*told["victims"], *told["collateral"]}
        if self.w.phase in status.TERMINAL:
            self.owed.clear()

    def one_job_uses_the_run(self):
        """Who has begun goes on until its end; the other one has no pods meanwhile."""
        w, rival = self.w, self.w.rival
        if rival is not None and rival.began_at is not None:
            begun = w.status.get("startTime") and w.phase not in status.TERMINAL
            assert not begun, "both have begun"
            assert not w.alive, "pods beside those of the job that has begun"

    def nothing_is_charged_twice(self):
        """Each charge is for a pod that something has happened to since the last one."""
        fresh, self.read = self.w.incidents[self.read :], len(self.w.incidents)
        for one in self.w.resolved[self.settled :]:
            if "before anybody had stopped" in one.action:  # given back; it may be lost yet
                self.failed |= set(one.victims)
        self.settled = len(self.w.resolved)
        for incident in fresh:
            if incident.klass not in CHARGED:
                continue
            named = {*incident.victims, *incident.collateral}
            paid = not incident.action.startswith("training goes on without it")
            # Told once when nobody had to pay, it may have come back, and be lost in a round.
            before = self.failed | self.told | (self.unpaid if paid else set())
            if incident.victims:
                assert before & set(incident.victims), f"what for? {incident}"
            else:
                assert before, f"what for? {incident}"
            for ended in self.w.rounds:
                if ended.number == incident.round and not self.anybody_left_of(ended):
                    self.owed -= {m.pod for m in ended.members}  # nobody can say who was in it
            self.unpaid = self.unpaid - named if paid else self.unpaid | named
            self.failed -= named
            if incident.cause not in OF_PROGRAMS:  # such a pod may have been told to go, too
                self.told -= named
        # Others may have been added to its victims since.
        unfounded = [(i.at, set(i.victims)) for i in self.w.resolved if not i.round]
        ended = [
            i.round
            for i in self.w.incidents
            if i.round
            and not any(i.at == at and set(i.victims) <= victims for at, victims in unfounded)
        ]
        assert len(set(ended)) == len(ended), "a round has ended twice"
        moments = [i.at for i in self.w.incidents if i.cause == "RolledBack"]
        assert len(set(moments)) == len(moments), "one rollback is told twice"

    def anybody_left_of(self, ended):
        pods = [self.w.pods.get(m.uid) for m in ended.members]
        agents = [pod.agent for pod in pods if pod and pod.agent and not pod.over]
        return any(
            a.round and a.round.key == ended.key for a in agents if not self.w.unreachable(a.pod)
        )

    def nobody_trains_past_its_end(self):
        w = self.w
        agents = w.group()
        if not w.up or w.hold_saves or w.stand(agents) or any(a.quiet for a in agents):
            return
        for agent in agents:
            pod = agent.pod
            # Who may not read nodes has no word of their end.
            of_node = EVER if w.blind else self.due.get(pod.node, EVER)
            end = min(self.due.get(pod.uid, EVER), of_node)
            assert w.now < end, f"{pod.name} had to be gone {w.now - end} s ago"

    # The end.

    def finish_like_the_others(self, current):
        """Nobody trains alone while a member of the same round is done."""
        inside = [p for p in self.w.pods.values() if p.uid in {m.uid for m in current.members}]
        done = any(p.phase == "Succeeded" for p in inside)
        agents = [p.agent for p in inside if p.agent and not p.over]
        if done or any(agent.phase is AgentPhase.DONE for agent in agents):
            for agent in agents:
                if agent.phase is AgentPhase.RUNNING and agent.round.key == current.key:
                    self.w.finish(agent.pod.name)

    def whole(self):
        """All train whose share is not complete; or all is over."""
        w = self.w
        wanted = [p for p in w.pods.values() if p.index < w.job.pods]
        done = {
            p.index
            for p in wanted
            if p.phase == "Succeeded" or p.agent and p.agent.phase is AgentPhase.DONE
        }
        room = min(w.job.replicas, w.useful or w.job.replicas)
        everybody = len(w.members) + len(done) >= room and w.training()
        return w.phase in status.TERMINAL or everybody

    def go_on(self, seconds, done):
        """Let time pass until it is done, or all of it is over."""
        end = self.w.now + seconds
        while not done() and self.w.now < end:
            for current in self.w.rounds[-1:]:
                self.finish_like_the_others(current)
            self.w.run(5, pace=5.0)
        assert done(), self.w.status

    def teardown(self):
        """Events stop and there is room: the job is whole again and comes to its end."""
        if not hasattr(self, "w"):
            return
        w = self.w
        self.operator_is_new()
        w.change(suspend=False)
        w.hold_saves, w.broken_image = False, set()
        w.blind, w.peers_tell = False, True
        w.late, w.dropped = {}, {}
        w.rival = w.held_by = None
        self.what_hangs_gets_on()
        self.kubelet_tells(137)
        self.dead_machines_are_noticed()
        gone = {"spec": {"taints": [{"key": UNREACHABLE}]}, "status": {}}
        w.nodes = {n: gone if n in w.dead else {"spec": {}, "status": {}} for n in w.nodes}
        w.nodes |= {f"fresh-{n}": {"spec": {}, "status": {}} for n in range(6)}
        self.go_on(WHOLE_AGAIN, self.whole)
        self.what_holds()
        assert self.owed <= self.named, f"nobody was told of {self.owed - self.named}"
        # A new operator waits a while for a member whose machine has just gone.
        unheard = any(w.unreachable(agent.pod) for agent in w.group())
        self.go_on(30 if unheard else 10, lambda: w.phase in {"Running", *status.TERMINAL})
        w.total_steps = min([w.total_steps, *[a.step + 12 for a in w.group()]])
        self.go_on(120, lambda: w.phase in status.TERMINAL)
        if self.right:
            assert w.phase == "Succeeded", f"no job with a right script fails: {w.status}"
        self.nothing_is_charged_twice()
        made, plans = list(w.created), w.plans
        w.run(90, pace=10.0)
        assert w.created == made
        assert w.plans - plans <= 60, "it does not come to rest"
        assert not [p.name for p in w.alive if p.kill_at is None], "pods of a job that is over"
        assert w.removed == (w.job.ttl_after_finished is not None)


SETTINGS = settings(
    max_examples=int(os.environ.get("REKINDLE_EXAMPLES", "2000")) if DEEP else 55,
    stateful_step_count=70 if DEEP else 55,
    derandomize=not DEEP,  # whoever breaks something is the one who sees it
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_whatever_happens_the_job_keeps_its_promises_and_ends(world):
    class InThisWorld(Histories):
        World = staticmethod(world)

    run_state_machine_as_test(InThisWorld, settings=SETTINGS)


# Too long for the fast part of the suite, like what starts processes; parts for several workers.
@pytest.mark.processes
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", range(4))
def test_hundreds_of_other_histories_keep_them_too(world, number):
    class InThisWorld(Histories):
        World = staticmethod(world)

    # To find the shortest one takes minutes, which REKINDLE_MACHINE=deep is for.
    chosen = settings(
        SETTINGS,
        derandomize=False,
        max_examples=112,
        database=None,
        phases=[Phase.explicit, Phase.generate],
    )
    run_state_machine_as_test(seed(number)(InThisWorld), settings=chosen)
