"""A world without clocks, processes or I/O around `reconcile`: pods, nodes, agents and trainers.

The world is a small model of what surrounds the operator, written from the contract and from what
Kubernetes promises, not from the operator's code. Tests break things in it and look at what the
user would see. Whatever a plan says is applied here in the shell's order, and held against what
must always be true, in every tick of every test.
"""

import copy
import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from rekindle.api import (
    LABEL_GENERATION,
    LABEL_INDEX,
    AgentPhase,
    AgentReport,
    CheckpointReport,
    Directive,
    DirectiveKind,
    Hang,
    Outcome,
    Progress,
    RankReport,
    RestoredFrom,
    Round,
    Timings,
    spec,
)
from rekindle_local.apiserver.schemas import schema as schemas
from rekindle_operator.failures.pod_endings import UNEXPLAINED
from rekindle_operator.incidents.incidents import stamp
from rekindle_operator.observed import run_claims
from rekindle_operator.observed.documents import parse_node, parse_pod
from rekindle_operator.observed.observations import AgentState, Observed, gone
from rekindle_operator.pods.manifests import PodAccess
from rekindle_operator.reconcile.reconcile import reconcile
from rekindle_operator.status import status

CRD = Path(__file__).parents[2] / "crds" / "trainingjob.yaml"
START = 1_750_000_000.0
GRACE = 30.0
MARGIN = 3.0
"""Seconds before its end at which a pod that was told to go saves of itself."""
DONE_WAIT = 10.0
"""Seconds that an agent whose workers are done waits for an order before it exits with 0."""
RESYNC = 60.0
FIT: set[tuple[str, str]] = set()
"""Fields of a status that fit the CRD, with their values: most tests come to the same ones."""


@cache
def crd_schema():
    crd = yaml.safe_load(CRD.read_text())
    return schemas.Schema(root=crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


@cache
def status_schema():
    return schemas.Schema(root=crd_schema().at("status"))


def manifest(**changes):
    """A TrainingJob as the API server would hold it: with the defaults of the CRD."""
    wanted = {
        "replicas": 3,
        "template": {"spec": {"containers": [{"name": "trainer", "image": "i", "args": ["t.py"]}]}},
        "checkpoint": {"uri": "s3://bucket/run"},
        **changes,
    }
    body = {
        "apiVersion": "rekindle.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "digits", "namespace": "ml", "uid": "job-uid", "generation": 1},
        "spec": wanted,
    }
    return schemas.fill_defaults(body, crd_schema())


@dataclass
class SimPod:
    """A pod, its kubelet's view of it, and the agent in it."""

    body: dict
    name: str
    uid: str
    index: int
    generation: int
    created_at: float
    phase: str = "Pending"
    node: str | None = None
    conditions: dict = field(default_factory=dict)
    waiting: tuple | None = None
    terminated: dict | None = None
    beside: dict = field(default_factory=dict)
    """More of its status: states of other containers, reason, message, startTime."""
    told_at: float = 0.0
    """When deletion was first asked for."""
    grace: float = 0.0
    """The shortest time to end that was asked for: the API server counts it from ``told_at``."""
    kill_at: float | None = None
    """SIGKILL comes then: the kubelet gives a shorter time from when it hears of it."""
    forced: bool = False
    unlisted: bool = False
    """Its object is gone, and its processes are not: a kubelet gives them time even then."""
    agent: "SimAgent | None" = None
    removed: bool = False
    read: tuple | None = None
    """Its newest document, and what the operator makes of that."""

    @property
    def over(self):
        return self.phase in {"Succeeded", "Failed"}

    @property
    def idle(self):
        return self.over or self.terminated is not None

    def parsed(self):
        document = self.document()
        if self.read is None or self.read[0] != document:
            self.read = document, parse_pod(document)
        return self.read[1]

    def document(self):
        meta = {
            **self.body["metadata"],
            "uid": self.uid,
            "creationTimestamp": stamp(self.created_at),
        }
        if self.kill_at is not None:
            meta["deletionTimestamp"] = stamp(self.told_at + self.grace)
            meta["deletionGracePeriodSeconds"] = 0 if self.forced else self.grace
        state = {}
        if self.terminated:
            state = {"terminated": self.terminated}
        elif self.waiting:
            state = {"waiting": {"reason": self.waiting[0], "message": self.waiting[1]}}
        elif self.phase == "Running":
            state = {"running": {}}
        conditions = [{"type": kind, **rest} for kind, rest in self.conditions.items()]
        if self.phase == "Running":
            conditions.append({"type": "Ready", "status": "True"})
        return {
            "metadata": meta,
            "spec": {**self.body["spec"], **({"nodeName": self.node} if self.node else {})},
            "status": {
                "phase": self.phase,
                "conditions": conditions,
                "containerStatuses": [{"name": "trainer", "state": state}],
                **self.beside,
            },
        }


@dataclass
class SimAgent:
    """PID 1 of a pod: what it reports, and what it has been told."""

    pod: SimPod
    phase: AgentPhase = AgentPhase.WAITING
    round: Round | None = None
    notice: str | None = None
    outcome: Outcome | None = None
    checkpoint: CheckpointReport | None = None
    restored: RestoredFrom | None = None
    waits: str | None = None
    """What its workers wait for before they begin."""
    useful: int | None = None
    """For how many workers there is work, as its own have said at last."""
    least: int | None = None
    """With how few of them its script can go on."""
    round_steps: int = 0
    step: int = 0
    warm_at: float = 0.0
    """When its imports are done."""
    leave_by: float = 0.0
    """When it saves of itself, once it was told to go."""
    quiet: bool = False
    """Nothing that it says arrives, and nothing reaches it."""
    wants_save: bool = False
    done_for: float = 0.0
    joined_at: float = 0.0
    running: float | None = None
    """Of a program that counts no steps: how long after that it counted as running."""
    more: dict = field(default_factory=dict)
    """Other fields of its reports: hang, rollback, ranks, timings."""

    def report(self, world):
        """Made anew only when something in it is new."""
        passes = self.notice or self.running is not None
        made_of = self.known(), world.total_steps, world.now if passes else None
        if world.made.get(self.pod.uid, (None,))[0] != made_of:
            world.made[self.pod.uid] = made_of, self.fresh_report(world)
        return world.made[self.pod.uid][1]

    def fresh_report(self, world):
        progress, more = None, self.more
        if self.running is not None:
            times = Timings(age=world.now - self.joined_at, running=self.running)
            more = {"timings": times, **more}
        if self.round is not None and (self.restored or self.round_steps) and not world.plain:
            progress = Progress(
                step=self.step,
                total_steps=world.total_steps,
                loss=1.0 / (1 + self.step),
                round_steps=self.round_steps,
                productive_seconds=float(self.step),
                samples=self.step * 8,
            )
        if world.plain and world.tells_steps and self.round_steps:
            known = self.step // 100 * 100
            progress = Progress(step=known, round_steps=self.round_steps)
        return AgentReport(
            pod=self.pod.name,
            uid=self.pod.uid,
            address=f"10.0.{self.pod.index}.{self.pod.generation % 250}",
            store_port=29400,
            nproc=1,
            phase=self.phase,
            round=self.round,
            notice=self.notice,
            notice_seconds=max(self.leave_by + MARGIN - world.now, 0.0) if self.notice else None,
            progress=progress,
            checkpoint=self.checkpoint,
            restored=self.restored,
            useful_world=self.useful,
            waits=self.waits,
            least_world=self.least,
            outcome=self.outcome,
            **more,
        )

    def known(self):
        """What its reports are made of, as long as no time passes: cheaper than a report."""
        return {**vars(self), "pod": self.pod.uid, "more": dict(self.more)}


class World:
    """One job and everything around it."""

    def __init__(self, *, nodes=8, total_steps=100_000, save_every=10, plain=False, **changes):
        self.now = START
        self.body = manifest(**changes)
        self.status = {}
        self._job = None
        self.pods: dict[str, SimPod] = {}
        self.nodes = {f"node-{n}": {"spec": {}, "status": {}} for n in range(nodes)}
        self.total_steps = total_steps
        self.save_every = save_every
        self.plain = plain
        """The program is not ours: it counts no steps and saves nothing that we know of."""
        self.useful: int | None = None
        """How many workers the script's batch is work for."""
        self.exact = False
        """The script can go on with as many workers as it began with, and no others."""
        self.turned_away = 0
        """Workers of it that were of another number, and ended as if they had saved."""
        self.tells_steps = False
        """It reports its step now and then, every hundredth."""
        self.quota: int | None = None
        """How many pods may be there at once."""
        self.committed: CheckpointReport | None = None
        self.broken_image: set[str] = set()
        self.hidden: set[str] = set()
        """Nodes that the operator's watch has not shown yet."""
        self.dead: set[str] = set()
        """Nodes that have died although nobody has noticed."""
        self.gone_at: dict[str, float] = {}
        """By name of the node: when the operator has seen that it is no object any more."""
        self.blind = False
        """The operator may not read nodes."""
        self.peers_tell = True
        """Agents are new enough to tell which of their peers they cannot reach."""
        self.warms_for = 0.0
        """Seconds that a pod needs for its imports."""
        self.late: dict[int, float] = {}
        """By index: when containers of its pods start, not before; the kubelet takes its time."""
        self.dropped: dict[str, int] = {}
        """By uid: so many of a pod's next reports do not arrive."""
        self.refuses: str | None = None
        self.trains = True
        self.rival: run_claims.Use | None = None
        """Another job that names the same place for its checkpoints, and has not ended."""
        self.held_by: str | None = None
        """Somebody else writes where the job wants to, as its workers find when they begin."""
        self.hold_saves = False
        """Trainers are in a long step and cannot agree on one."""
        self.skipped = ()
        self.timings: Timings | None = None
        """How every round comes up, as agents measure it."""
        self.tolerant = False
        """Pods tolerate every taint."""
        self.uids = 0
        self.children: dict[str, int] = {}
        self.alarm: float | None = None
        # What the operator holds in memory.
        self.known: dict = {}
        self.up = True
        self.reports: dict[str, AgentState] = {}
        self.made: dict[str, tuple] = {}
        """The newest report of each agent, and of what it was made."""
        self.round: Round | None = None
        self.directives: dict[str, Directive] = {}
        self.retired: set[str] = set()
        self.cut_off: dict[str, float] = {}
        self.gone: list = []
        """Pods that the watch has shown to go in one go, since the last look."""
        self.listening_since = self.now
        self.refused: str | None = None
        self.has_secret = self.has_service = False
        self.hindered: str | None = None
        # For the tests to look at.
        self.rounds: list[Round] = []
        self.created: list[str] = []
        self.unrecorded: set[str] = set()
        """Pods created by an operator that died before it could write that down."""
        self.deleted: list[str] = []
        self.ended: list[str] = []
        """Pods of which what is left was ended."""
        self.events: list = []
        self.incidents: list = []
        self.resolved: list = []
        self.plans = 0
        self.checked = None
        self.removed = False

    # What is there.

    @property
    def job(self):
        if self._job is None or self._job.generation != self.body["metadata"]["generation"]:
            self._job = spec.parse(self.body, START)
        return self._job

    @property
    def phase(self):
        return self.status.get("phase")

    @property
    def alive(self):
        return [p for p in self.pods.values() if not p.over and not p.unlisted]

    def pod(self, name):
        return next(p for p in self.pods.values() if p.name == name)

    def condition(self, kind):
        return next(c for c in self.status["conditions"] if c["type"] == kind)

    @property
    def restarts(self):
        counts = self.status["restarts"]
        return counts["user"], counts["infrastructure"], counts["preemption"]

    @property
    def members(self):
        return [m.pod for m in self.round.members] if self.round else []

    @property
    def step(self):
        return self.status.get("progress", {}).get("step", 0)

    @property
    def last(self):
        """The newest incident that is about the job itself."""
        return self.losses[-1]

    @property
    def losses(self):
        return [i for i in self.status["incidents"] if i["cause"] != "OperatorRestarted"]

    def templates(self):
        """Labels of pods that are made from the template that is wanted now."""
        alias = self.status.get("accounting", {}).get("templateAlias")
        return {self.job.template_hash, alias}

    def training(self):
        """Whether all members of the round run in it and have completed a step."""
        agents = self.group()
        return bool(agents) and all(a.round_steps > 0 for a in agents)

    def group(self):
        """The agents of the newest round that all of its members run in, if there is one.

        The newest of all may have died with its operator before anybody heard of it.
        """
        return next(filter(None, map(self.group_of, self.rounds[:-4:-1])), [])

    def group_of(self, current):
        agents = []
        for member in current.members:
            pod = self.pods.get(member.uid)
            agent = pod.agent if pod and not pod.over else None
            in_it = agent and agent.round and agent.round.key == current.key
            if not in_it or agent.phase is not AgentPhase.RUNNING:
                return []
            agents.append(agent)
        return agents

    # What happens by itself.

    def settle(self):
        """Let everything that needs no time happen, until nothing changes any more."""
        before = self.picture()
        for _ in range(200):
            self.kubernetes()
            self.act()
            if self.up:
                self.tick()
            after = self.picture()
            if after == before:
                return self
            before = after
        raise AssertionError("the world does not come to rest: something is done over and over")

    def picture(self):
        agents = [
            (p.uid, p.phase, p.node, p.kill_at, p.agent and p.agent.known())
            for p in self.pods.values()
        ]
        known = {k: v for k, v in self.status.items() if k != "goodput"}
        return agents, known, self.round, dict(self.directives), self.removed

    def run(self, seconds=0.0, *, until=None, pace=1.0):
        """Let time pass, in paces; stop early once `until` holds."""
        end = self.now + seconds
        self.settle()
        while not (until and until()):
            if self.now >= end:
                assert until is None, f"not within {seconds} s: {self.status.get('message')}"
                return self
            wake = min(self.now + pace, end)
            if self.alarm is not None and self.now < self.alarm < wake:
                wake = self.alarm
            elapsed, self.now = wake - self.now, wake
            self.pass_time(elapsed)
            self.settle()
        return self

    def until(self, condition, seconds=200.0):
        return self.run(seconds, until=condition)

    def start(self):
        """Bring a new job to its first steps."""
        return self.until(self.training)

    def train(self, steps):
        wanted = self.group()[0].step + steps
        return self.until(lambda: self.group() and self.group()[0].step >= wanted, steps + 200.0)

    def pass_time(self, seconds):
        for pod in self.pods.values():
            late = pod.kill_at is not None and self.now >= pod.kill_at and not pod.over
            if late and pod.node not in self.dead:
                self.exit(pod, 137)
        for pod in self.alive:
            agent = pod.agent
            if agent and agent.phase is AgentPhase.DONE:
                agent.done_for += seconds
                if agent.done_for >= DONE_WAIT:
                    self.exit(pod, 0, agent.outcome)
        agents = self.group()
        for agent in agents:
            agent.waits = agent.waits and self.held_by
        if not self.trains or not agents or seconds <= 0 or self.stand(agents):
            return
        if any(agent.waits for agent in agents):
            return
        steps = max(1, int(seconds))
        before = agents[0].step
        for agent in agents:
            agent.step += steps
            agent.round_steps += steps
            if self.plain and agent.running is None:
                agent.running = self.now - agent.joined_at
        if agents[0].step // self.save_every > before // self.save_every:
            self.commit(agents)
        if agents[0].step >= self.total_steps:
            self.commit(agents)
            for agent in agents:
                agent.phase = AgentPhase.DONE
                agent.outcome = Outcome(cause="Completed", code=0, message="done", at=self.now)

    def stand(self, agents):
        """Whether one of these does not get on, and so none of them does."""
        return any("hang" in a.more or self.unreachable(a.pod) for a in agents)

    def commit(self, agents):
        if self.plain:
            return
        self.committed = CheckpointReport(
            step=agents[0].step, committed_at=self.now, uri=f"s3://bucket/run/{agents[0].step}"
        )
        for agent in agents:
            agent.checkpoint = self.committed

    def kubernetes(self):
        """Scheduler, kubelet and garbage collection."""
        taken = {p.node for p in self.pods.values() if not p.over}
        for pod in list(self.pods.values()):
            node = self.nodes.get(pod.node) if pod.node else None
            if pod.over and pod.kill_at is not None:
                pod.removed = True
            alive = pod.kill_at is not None and not pod.over
            if alive and pod.agent is None and (node or pod.node is None):
                pod.removed = True  # nothing runs in it
            if pod.removed:
                del self.pods[pod.uid]
                continue
            if pod.over or pod.kill_at is not None:
                continue
            if pod.node is None and pod.body["spec"].get("schedulingGates"):
                pod.conditions["PodScheduled"] = {"status": "False", "reason": "SchedulingGated"}
                continue
            if pod.node is None:
                free = [n for n in self.nodes if self.fits(n, taken, pod)]
                if not free:
                    pod.conditions["PodScheduled"] = {
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/8 nodes are available",
                    }
                    continue
                since = {"status": "True", "lastTransitionTime": stamp(self.now)}
                pod.conditions["PodScheduled"] = since
                pod.node = free[0]
                taken.add(pod.node)
            if pod.phase == "Pending" and pod.node not in self.dead:
                if self.now < self.late.get(pod.index, 0.0):
                    continue
                if pod.name in self.broken_image or "*" in self.broken_image:
                    pod.waiting = ("ErrImagePull", "no such image")
                    continue
                pod.waiting, pod.phase = None, "Running"
                pod.agent = SimAgent(pod, warm_at=self.now + self.warms_for)
                if self.warms_for:
                    pod.agent.phase = AgentPhase.WARMING

    def fits(self, name, taken, pod):
        if name in taken or name in unwelcome(pod.body["spec"]):
            return False
        return self.tolerant or not taints(self.nodes[name])

    def act(self):
        """Agents look at their view and at their notice, and report."""
        for pod in list(self.pods.values()):
            agent = pod.agent
            if agent is None or pod.over or self.unreachable(pod):
                continue
            if agent.phase is AgentPhase.WARMING and self.now >= agent.warm_at:
                agent.phase = AgentPhase.WAITING
            if self.answers(agent):
                self.obey(agent)
        self.save()
        for pod in list(self.pods.values()):
            agent = pod.agent
            if agent is None or pod.over or self.unreachable(pod):
                continue
            alone = agent.notice and agent.round and not self.group_of(agent.round)
            if alone and agent.phase is AgentPhase.RUNNING and self.now >= agent.leave_by:
                self.fall(pod.name)  # nobody is there to save with
            if agent.notice and agent.phase is not AgentPhase.RUNNING:
                self.leave(agent)
            elif self.answers(agent):
                self.hear(agent)

    def answers(self, agent):
        """Whether an operator talks with this one; not with a pod that is no object any more."""
        return self.up and not agent.quiet and not agent.pod.unlisted

    def obey(self, agent):
        order, offered = self.directives.get(agent.pod.uid), self.round
        if agent.pod.uid not in self.reports:
            return
        if order and order.kind is DirectiveKind.STOP:
            if agent.phase not in {AgentPhase.FAILED, AgentPhase.DONE} or agent.outcome is None:
                agent.outcome = Outcome(
                    cause="UserError", code=order.code, message=order.message, at=self.now
                )
            self.exit(agent.pod, order.code, agent.outcome)
            return
        if offered is None:
            return
        newer = agent.round is None or (
            offered.number >= agent.round.number and offered.key != agent.round.key
        )
        newer = newer and not (agent.notice and agent.wants_save)  # then it only saves and goes
        if newer and offered.first_rank(agent.pod.uid) is not None:
            self.join(agent, offered)
        elif newer and agent.phase is AgentPhase.RUNNING:
            agent.phase, agent.outcome = AgentPhase.WAITING, None
        elif (
            order
            and order.kind is DirectiveKind.SAVE
            and agent.round
            and order.round == agent.round.number
        ):
            agent.wants_save = agent.phase is AgentPhase.RUNNING

    def join(self, agent, offered):
        agent.phase, agent.round, agent.outcome = AgentPhase.RUNNING, offered, None
        agent.step = self.committed.step if self.committed else 0
        agent.round_steps, agent.wants_save, agent.done_for = 0, False, 0.0
        agent.joined_at, agent.running = self.now, None
        agent.more = {"timings": self.timings} if self.timings else {}
        source = self.committed.uri if self.committed else "scratch"
        restored = RestoredFrom(step=agent.step, source=source, skipped=self.skipped)
        agent.restored = None if self.plain or self.held_by else restored
        agent.waits = None if self.plain else self.held_by
        agent.useful = None if self.plain else self.useful
        if self.exact:
            agent.useful = agent.least = size = self.rounds[0].world_size
            if offered.world_size != size:
                self.turned_away += 1
                agent.phase = AgentPhase.WAITING
                agent.outcome = Outcome(cause="Saved", code=75, message="not so many", at=self.now)
        agent.checkpoint = self.committed

    def save(self):
        """Trainers of one round agree on a step as soon as one of them wants to save."""
        rounds = {}
        for pod in self.pods.values():
            if pod.agent and pod.agent.round and not pod.over:
                rounds[pod.agent.round.key] = pod.agent.round
        for current in rounds.values():
            agents = self.group_of(current)
            if self.hold_saves or self.stand(agents):
                continue
            if any(a.wants_save or self.hurries(a) for a in agents):
                if not any(a.waits for a in agents):
                    self.commit(agents)
                for agent in agents:
                    agent.phase, agent.wants_save = AgentPhase.WAITING, False
                    agent.outcome = Outcome(
                        cause="Saved", code=75, message="saved", step=agent.step, at=self.now
                    )
                    if self.plain:
                        words = "not saved: asked to stop"
                        agent.outcome = Outcome(
                            cause="Preempted", code=76, message=words, at=self.now
                        )

    def hurries(self, agent):
        """A notice is answered at once while nobody coordinates, else when time is nearly up."""
        return agent.notice and (not self.answers(agent) or self.now >= agent.leave_by)

    def leave(self, agent):
        """A pod that was told to go and has no running workers."""
        if agent.phase is AgentPhase.DONE:
            self.exit(agent.pod, 0, agent.outcome)
            return
        failed = agent.phase is AgentPhase.FAILED
        own = failed and agent.outcome and agent.outcome.cause != "PeerLost"
        code = agent.outcome.code if own else 76 if failed else 75
        words = agent.outcome if own else Outcome(cause="Saved", code=code, message="leaves")
        agent.phase = AgentPhase.LEAVING
        agent.outcome = replace(words, code=code)
        if self.answers(agent):
            self.hear(agent)
        self.exit(agent.pod, code, agent.outcome)

    def hear(self, agent):
        """The coordinator takes a report."""
        if self.dropped.get(agent.pod.uid, 0) > 0:
            self.dropped[agent.pod.uid] -= 1
            return
        report = agent.report(self)
        if lost := self.cannot_reach():
            report = replace(report, unreachable=lost)
        old = self.reports.get(report.uid)
        key = report.round.key if report.round else None
        old_key = old.report.round.key if old and old.report.round else None
        same = old is not None and old.report.phase is report.phase and key == old_key
        since = old.phase_since if same else self.now
        hung = None
        if report.hang:
            hung = old.hang_since if old and old.hang_since is not None and same else self.now
        self.reports[report.uid] = AgentState(
            report=report,
            seen_at=self.now,
            phase_since=since,
            hang_since=hung,
            leaves_at=self.now + report.notice_seconds if report.notice else None,
            noticed_at=(old and old.noticed_at or self.now) if report.notice else None,
        )
        if report.round and (self.round is None or report.round.number > self.round.number):
            self.round = report.round

    def unreachable(self, pod):
        """Whether nothing runs on its machine any more, whatever Kubernetes says of the node."""
        return pod.node in self.dead or (pod.node is not None and pod.node not in self.nodes)

    def suspects(self):
        """Pods that were not heard for a while, as the coordinator shows them to the others."""
        late = {uid for uid, agent in self.reports.items() if self.now - agent.seen_at >= 2}
        if self.round and self.now - self.listening_since >= 5:
            late |= {m.uid for m in self.round.members} - self.reports.keys()
        return late

    def cannot_reach(self):
        """What a peer says of them."""
        dead = (p.uid for p in map(self.pods.get, self.suspects()) if p and self.unreachable(p))
        return tuple(sorted(dead)) if self.peers_tell else ()

    def exit(self, pod, code, outcome=None, reason=None):
        """The container is through."""
        pod.phase = "Succeeded" if code == 0 else "Failed"
        pod.terminated = {
            "exitCode": code,
            "reason": reason or ("Completed" if code == 0 else "Error"),
            "finishedAt": stamp(self.now),
            "message": json.dumps(outcome.to_json()) if outcome else "",
        }
        if pod.kill_at is not None:
            pod.removed = True

    # What tests make happen.

    def kill(self, name, code=137, reason=None, message=""):
        self.exit(self.pod(name), code, reason=reason)
        self.pod(name).terminated["message"] = message
        return self

    def cut(self, name):
        """All processes of a pod die; its lifeline tells so, the kubelet has not noticed yet."""
        pod = self.pod(name)
        pod.agent, self.cut_off[pod.uid] = None, self.now
        return self

    def delete(self, name, grace=GRACE):
        """As kubectl delete pod does: SIGTERM now, SIGKILL later."""
        self._delete(self.pod(name), grace)
        return self

    def _delete(self, pod, grace):
        if pod.over or grace == 0:
            if pod.kill_at is None and not pod.over and self.up:
                self.gone.append(pod.parsed())
            pod.removed = True
            pod.kill_at = pod.kill_at or self.now
            if not pod.over:
                pod.phase, pod.agent = "Failed", None
            return
        if pod.kill_at is None:
            pod.told_at, pod.grace, pod.kill_at = self.now, grace, self.now + grace
            if pod.agent:
                pod.agent.notice, pod.agent.leave_by = "SIGTERM", pod.kill_at - MARGIN
        elif grace < pod.grace:
            pod.grace, pod.kill_at = grace, min(pod.kill_at, self.now + grace)

    def vanish(self, name):
        """The object is gone in one go, as after a forced deletion by somebody."""
        self._delete(self.pod(name), 0)
        return self

    def vanish_first(self, name, seconds):
        """The same, and its processes are told to go by SIGTERM and killed so much later.

        What has been shown to its agent until then, a round that it is in, that does.
        """
        pod = self.pod(name)
        if pod.agent is None or pod.kill_at is not None:
            return self.vanish(name)
        if self.answers(pod.agent) and not self.unreachable(pod):
            self.obey(pod.agent)
        if self.up:
            self.gone.append(pod.parsed())
        pod.unlisted, pod.kill_at = True, self.now + seconds
        pod.agent.notice, pod.agent.leave_by = "SIGTERM", pod.kill_at - MARGIN
        return self

    def tell(self, name, source, seconds=GRACE):
        """A platform of its own tells the agent, and nobody else, that the pod has to go."""
        agent = self.pod(name).agent
        agent.notice, agent.leave_by = source, self.now + seconds - MARGIN
        return self

    def evict(self, name, reason="EvictionByEvictionAPI"):
        pod = self.pod(name)
        pod.conditions["DisruptionTarget"] = {
            "status": "True",
            "reason": reason,
            "message": "m",
            "lastTransitionTime": stamp(self.now),
        }
        return self.delete(name)

    def taint(self, name, key, **more):
        node = self.nodes[self.pod(name).node]
        taint = {"key": key, "effect": "NoSchedule", **more}
        node["spec"].setdefault("taints", []).append(taint)
        return self

    def untaint(self):
        for body in self.nodes.values():
            body["spec"].pop("taints", None)
        return self

    def condition_of_node(self, name, kind, status="True", **more):
        """A condition of the node that a pod is on."""
        node = self.nodes[self.pod(name).node]
        entry = {"type": kind, "status": status, "lastTransitionTime": stamp(self.now), **more}
        others = [c for c in node["status"].get("conditions", ()) if c["type"] != kind]
        node["status"] = {"conditions": [*others, entry]}
        return self

    def die_unnoticed(self, name):
        """The machine under a pod is gone, and the API server does not know."""
        self.dead.add(self.pod(name).node)
        return self

    def lose_node(self, name):
        self.nodes.pop(self.pod(name).node)
        return self

    def fail(self, name, message="ValueError: no", *, cause="UserError", code=1, **more):
        """The workers of one pod fail; its agent stays."""
        agent = self.pod(name).agent
        agent.phase = AgentPhase.FAILED
        agent.outcome = Outcome(
            cause=cause,
            code=code,
            message=message,
            step=more.pop("step", None if self.plain else agent.step),
            at=more.pop("at", self.now),
            **more,
        )
        return self

    def fall(self, *names):
        """Workers fail because they lost a peer."""
        for name in names:
            self.fail(name, "connection closed by peer", cause="PeerLost", at=self.now + 0.1)
        return self

    def hang(self, name, *, waits=None, stacks=None, idle=65.0):
        """A worker of this pod does not get on, as its agent says."""
        agent = self.pod(name).agent
        agent.more["hang"] = Hang(
            rank=agent.pod.index,
            step=agent.step,
            phase="training",
            idle=idle,
            timeout=60.0,
            waits=waits,
            stacks=stacks,
        )
        self.trains = False
        return self

    def slow(self, name, factor=3.0):
        """A pod needs longer for its part of each step than the others do."""
        for agent in self.group():
            busy = 0.1 * (factor if agent.pod.name == name else 1.0)
            rank = agent.pod.index
            words = RankReport(rank=rank, step=agent.step, phase="training", idle=0.0, busy=busy)
            agent.more["ranks"] = (words,)
        return self

    def take_away_gates(self):
        """A queue admits the pods."""
        for pod in self.pods.values():
            pod.body["spec"].pop("schedulingGates", None)
        return self

    def fail_init(self, name, code=3, message="no such bucket", container="get-data"):
        """A container that has to be through before the trainer starts has failed."""
        pod = self.pod(name)
        state = {"terminated": {"exitCode": code, "reason": "Error", "message": message}}
        pod.phase, pod.agent, pod.waiting = "Failed", None, ("PodInitializing", "")
        pod.beside["initContainerStatuses"] = [{"name": container, "state": state}]
        return self

    def leave_without_a_word(self, name, code=0, message=""):
        """Something else than the launcher has run in a pod, and is through."""
        pod = self.pod(name)
        self.reports.pop(pod.uid, None)
        self.exit(pod, code)
        pod.terminated["message"], pod.agent = message, None
        return self

    def settle_with_broken_image(self, name):
        """The image of one pod cannot be pulled."""
        self.broken_image = {name}
        return self.settle()

    def stop_saved(self, agent):
        agent.phase = AgentPhase.WAITING
        agent.outcome = Outcome(cause="Saved", code=75, message="saved", step=agent.step)
        if agent.notice:
            self.leave(agent)

    def end_trainer_only(self, name, code):
        """The container that trains is through, another one of the pod is not."""
        pod = self.pod(name)
        self.exit(pod, code)
        pod.phase, pod.agent = "Running", None
        pod.body = copy.deepcopy(pod.body)
        return self

    def finish(self, name):
        """All workers of one pod are done, its agent waits for the end."""
        agent = self.pod(name).agent
        agent.phase = AgentPhase.DONE
        agent.outcome = Outcome(cause="Completed", code=0, message="done", step=agent.step)
        return self

    def change(self, **fields):
        """Edit the spec."""
        body = copy.deepcopy(self.body)
        body["spec"].update(fields)
        body["metadata"]["generation"] += 1
        self.body, self.refused = body, None
        return self

    def annotate(self, **annotations):
        """As kubectl annotate does; the generation stays."""
        body = copy.deepcopy(self.body)
        names = {name.replace("_", "-"): value for name, value in annotations.items()}
        found = body["metadata"].setdefault("annotations", {})
        found.update({f"rekindle.dev/{name}": value for name, value in names.items()})
        self.body, self._job = body, None
        return self

    def restart_operator(self, *, quiet=()):
        """The operator's process is replaced; agents named in `quiet` do not find the new one."""
        self.up, self.reports, self.round, self.directives = True, {}, None, {}
        self.known, self.gone = {}, []
        self.retired, self.refused, self.listening_since = set(), None, self.now
        self.has_secret = "Secret/digits-rekindle" in self.children
        self.has_service = "Service/digits-pods" in self.children
        for pod in self.pods.values():
            if pod.agent:
                pod.agent.quiet = pod.name in quiet
        return self

    def stop_operator(self):
        self.up = False
        return self

    # The operator.

    def observed(self):
        pods = [pod.parsed() for pod in self.pods.values() if not pod.unlisted]
        known = {
            *(pod.uid for pod in pods),
            *(m.uid for m in (self.round.members if self.round else ())),
        }
        self.reports = {u: a for u, a in self.reports.items() if u in known}
        self.known = {
            name: self.node(name, body)
            for name, body in self.nodes.items()
            if name not in self.hidden
        }
        nodes = dict(self.known)
        for pod in pods:
            if pod.node and pod.node not in self.nodes:
                at = self.gone_at.setdefault(pod.node, self.now)
                nodes[pod.node] = gone(pod.node, at)
        return Observed(
            pods=tuple(
                replace(pod, vanished_at=self.cut_off[pod.uid]) if pod.uid in self.cut_off else pod
                for pod in sorted(pods, key=lambda p: (p.index, p.generation))
            ),
            nodes=None if self.blind else nodes,
            agents=dict(self.reports),
            round=self.round,
            retired=frozenset(self.retired),
            gone=tuple(self.gone),
            has_secret=self.has_secret,
            has_service=self.has_service,
            listening_since=self.listening_since,
            refused=self.refused,
            hindered=self.hindered,
            now=self.now,
            notice_seconds=self.job.notice_seconds,
            holder=self.holder(),
        )

    def holder(self):
        """The other job, when it is its turn; it begins then, by the same operator."""
        if self.rival is None:
            return None
        pods = [pod.created_at for pod in self.alive]
        over = self.phase in status.TERMINAL and not pods
        known = run_claims.RunClaims(lambda key: None)
        record, first = status.read(self.status), min(pods, default=None)
        own = run_claims.use_of(self.job, record, ended=over, first_pod=first)
        for use in filter(None, (own, self.rival)):
            known.note(use.key, use)
        if self.rival.began_at is None and known.holder(self.rival.key) is None:
            self.rival = replace(self.rival, began_at=self.now)
        return known.holder(own.key) if own else None

    def node(self, name, body):
        before = self.known.get(name)
        if before and not before.signs and body == {"spec": {}, "status": {}}:
            return before
        return parse_node({"metadata": {"name": name}, **body}, self.now, before)

    def tick(self, *, die_after=None):
        """One reconcile. `die_after`: children, status; the operator dies there."""
        if self.removed:
            return None
        observed = self.observed()
        plan = reconcile(
            self.job,
            self.status,
            observed,
            access=PodAccess(token="t0ken-that-nobody-may-see", url="http://rekindle:8430"),
            now=self.now,
        )
        self.plans += 1
        self.gone = self.gone[len(observed.gone) :]
        self.check(plan, observed)
        if self.quota is not None:
            self.hindered = None
        for child in plan.create:
            self.create(child)
        for doomed in plan.delete:
            pod = self.pods.get(doomed.uid)
            self.retired.add(doomed.uid)
            if pod and pod.name == doomed.name:
                self.deleted.append(pod.name)
                self._delete(pod, 0 if doomed.force else GRACE)
        for ended in plan.end:
            pod = self.pods.get(ended.uid)
            if pod and pod.name == ended.name:
                self.ended.append(pod.name)
                pod.body["spec"]["activeDeadlineSeconds"] = 1
                if pod.terminated and not self.unreachable(pod):
                    pod.phase, pod.beside["reason"] = "Failed", "DeadlineExceeded"
        if die_after == "children":
            self.unrecorded |= {c["metadata"]["name"] for c in plan.create}
            return self.restart_operator()
        self.status = json.loads(json.dumps(plan.status, allow_nan=False))
        if die_after == "status":
            return self.restart_operator()
        if plan.publish:
            self.rounds.append(plan.publish)
        self.round = None if plan.forget_round else plan.publish or self.round
        self.directives = dict(plan.directives)
        self.events.extend(plan.events)
        self.incidents.extend(plan.incidents)
        self.resolved.extend(plan.resolved)
        self.removed = plan.remove_job
        self.alarm = None if plan.requeue is None else self.now + plan.requeue
        return None

    def create(self, child):
        kind, name = child["kind"], child["metadata"]["name"]
        owners = [(o["uid"], o["controller"]) for o in child["metadata"]["ownerReferences"]]
        assert owners == [("job-uid", True)], f"{kind} {name} would outlive its job"
        if kind != "Pod":
            self.children[f"{kind}/{name}"] = self.children.get(f"{kind}/{name}", 0) + 1
            assert self.children[f"{kind}/{name}"] == 1, f"{kind} {name} was made twice"
            self.has_secret = self.has_secret or kind == "Secret"
            self.has_service = self.has_service or kind == "Service"
            return
        if self.refuses:
            self.refused = f"pod {name}: {self.refuses}"
            return
        listed = [p for p in self.pods.values() if not p.unlisted]
        if any(p.name == name for p in listed):
            return  # AlreadyExists
        if self.quota is not None and len(listed) >= self.quota:
            self.hindered = f"pod {name} cannot be created: API server: 403 exceeded quota: gpus"
            return
        self.uids += 1
        uid = f"uid-{self.uids}"
        labels = child["metadata"]["labels"]
        self.created.append(name)
        self.pods[uid] = SimPod(
            body=child,
            name=name,
            uid=uid,
            index=int(labels[LABEL_INDEX]),
            generation=int(labels[LABEL_GENERATION]),
            created_at=self.now,
        )

    # What must always be true.

    def check(self, plan, observed):
        self.check_document(plan.status)
        assert "t0ken" not in json.dumps([vars(e) for e in plan.events])
        assert plan.status.get("round", 0) >= self.status.get("round", 0)
        over = self.phase in status.TERMINAL
        if over or plan.status["phase"] in status.TERMINAL:
            assert not [c for c in plan.create if c["kind"] == "Pod"], (
                "a pod for a job that is over"
            )
            assert plan.publish is None
        again = plan.status.get("run", 0) > self.status.get("run", 0)
        if again:
            assert over
            assert not self.pods, "pods of the run before would count in the new one"
            assert plan.status["phase"] == "Pending"
            return
        if over:
            assert plan.status["phase"] == self.phase
        for uid in plan.directives:
            assert uid in observed.agents
        if plan.publish:
            self.check_round(plan.publish, observed)
            assert plan.status["round"] >= plan.publish.number
        told = {c["type"] for c in plan.status["conditions"] if c["status"] == "True"}
        ends = {"Succeeded": "Complete", "Failed": "Failed"}
        assert told & set(ends.values()) == {ends.get(plan.status["phase"])} - {None}
        before, after = self.status.get("restarts", {}), plan.status["restarts"]
        moved = {
            kind: after[kind] - before.get(kind, 0) - sum(i.klass == kind for i in plan.incidents)
            for kind in ("user", "infrastructure", "preemption")
        }
        # Charged to another class only when the kubelet explains what only a lifeline had told.
        old = [i["evidence"] for i in self.status.get("incidents", ())]
        new = [i["evidence"] for i in plan.status["incidents"]]
        if [e for e in old if e.endswith(UNEXPLAINED) and e not in new]:
            assert sum(moved.values()) == 0
        else:
            assert set(moved.values()) == {0}
        figures = plan.status.get("goodput")
        if figures:
            booked = figures.get("productiveSeconds", 0.0) + sum(figures["lost"].values())
            assert booked <= self.now - START + 0.01
            assert min(figures["lost"].values()) >= 0

    def check_document(self, document):
        """The status fits the CRD; not checked again when only figures have changed."""
        shape = {k: v for k, v in document.items() if k not in {"goodput", "progress", "ready"}}
        shape["keys"] = [sorted(document.get(k, ())) for k in ("goodput", "progress", "status")]
        if shape == self.checked:
            return
        self.checked = shape
        parts = [(key, value) for key, value in document.items() if key != "incidents"]
        parts += [("incidents", [incident]) for incident in document["incidents"]]
        for key, value in parts:
            text = json.dumps(value)
            if (key, text) in FIT:
                continue
            unknown: list[str] = []
            schemas.prune({key: value}, status_schema(), unknown=unknown)
            assert not unknown, f"the CRD does not know {unknown}"
            bad = schemas.validate({key: value}, status_schema())
            assert not bad, bad
            assert "t0ken" not in text
            FIT.add((key, text))

    def check_round(self, fresh, observed):
        for old in self.rounds:
            assert fresh.number > old.number, "a round's number was used before"
        members = [observed.pod(m.uid) for m in fresh.members]
        assert all(pod and pod.alive and not pod.deleting for pod in members)
        heard = {u for u, agent in self.reports.items() if self.now - agent.seen_at <= 3}
        assert {m.uid for m in fresh.members} <= heard, "who is not heard cannot be told"
        indexes = [pod.index for pod in members]
        told = [a.report.useful_world for a in observed.agents.values() if a.report.useful_world]
        room = min([self.job.replicas, *told])
        assert len(set(indexes)) == len(indexes) <= room, "one rank twice, or one that has no work"
        assert len({m.uid for m in fresh.members}) == len(indexes)
        assert all(index < self.job.pods for index in indexes)
        before = [m.uid for m in self.round.members] if self.round else []
        if len(before) != len(indexes):
            assert indexes == sorted(indexes)
        for rank, member in enumerate(fresh.members):
            if len(before) == len(indexes) and member.uid in before:
                assert before[rank] == member.uid, "a member's rank changes without need"
        waiting = {u for u, a in observed.agents.items() if a.report.phase is AgentPhase.DONE}
        done = {p.index for p in observed.pods if p.phase == "Succeeded" or p.uid in waiting}
        least = max(1, self.job.min_replicas - len(done))
        most = room - len(done)
        assert len(indexes) >= min(least, most), "below minReplicas"
        phases = {u: a.report.phase for u, a in observed.agents.items()}
        ready = {AgentPhase.WAITING, AgentPhase.RUNNING, AgentPhase.FAILED}
        assert all(phases[m.uid] in ready for m in fresh.members), "who is not ready cannot begin"
        inside = {m.uid for m in fresh.members}
        left = [
            pod.index
            for pod in observed.pods
            if phases.get(pod.uid) in ready
            and pod.uid not in inside
            and pod.index not in {*indexes, *done}
            and pod.index < self.job.pods
            and pod.template in self.templates()
            and pod.uid in heard
            and observed.stays(pod)
        ]
        if left:
            assert len(indexes) >= most, "somebody who is ready is left out although there is room"
            new = [pod.index for pod in members if pod.uid not in before]
            assert max(new, default=-1) < min(left), "a spare trains, a regular pod is left out"
            assert all(map(observed.stays, members)), "who goes trains, who stays is left out"


def unwelcome(spec):
    """Names of nodes that a pod must not be on."""
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    (term,) = required.get("nodeSelectorTerms", [{}])
    return {value for e in term.get("matchExpressions", ()) for value in e["values"]}


def taints(body):
    return {t["key"] for t in body["spec"].get("taints", ())}


@pytest.fixture
def world():
    return World


@pytest.fixture
def bodies():
    return manifest
