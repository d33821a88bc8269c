import json
from datetime import UTC, datetime

import pytest

from rekindle_cli.jobs.snapshot import JobSnapshot, JobView, PodView


def test_a_job_that_no_operator_has_seen_has_no_phase(job) -> None:
    found = JobView.read(job(unseen=True))
    assert (found.phase, found.step, found.incidents, found.replicas) == ("", None, (), 2)


@pytest.mark.parametrize("document", [{}, {"metadata": None, "spec": [], "status": "x"}])
def test_a_document_of_another_shape_is_read_as_an_empty_job(document) -> None:
    assert JobView.read(document).name == ""


def test_progress_and_cost_are_read_from_the_status(job) -> None:
    found = JobView.read(job())
    assert found.fraction == 0.5
    assert found.restarts == (("preemption", 1),)
    assert dict(found.lost_seconds)["restart"] == 4.0
    assert found.incidents[0].resumed_from == 120
    assert found.checkpoint_step == 120


def test_a_true_where_a_number_belongs_is_no_number(job) -> None:
    assert JobView.read(job(progress={"step": True})).step is None


def test_a_pod_tells_its_slot_node_and_readiness(pod) -> None:
    found = PodView.read(pod("digits-1", generation=2))
    assert (found.index, found.generation, found.node, found.ready) == (1, 2, "node-0", True)


def test_a_container_that_waits_for_its_image_tells_why(pod) -> None:
    state = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
    assert PodView.read(pod(phase="Pending", state=state)).waiting == "ErrImagePull: no such image"


def test_a_container_that_is_being_created_does_not_wait_for_anything(pod) -> None:
    state = {"waiting": {"reason": "ContainerCreating"}}
    assert PodView.read(pod(phase="Pending", state=state)).waiting == ""


def test_a_pod_that_fits_nowhere_tells_why(pod) -> None:
    conditions = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/3 nodes are available",
        }
    ]
    found = PodView.read(pod(phase="Pending", node="", conditions=conditions))
    assert found.waiting == "Unschedulable: 0/3 nodes are available"


def test_the_termination_message_of_the_launcher_is_understood(pod) -> None:
    message = json.dumps({"cause": "UserError", "code": 1, "message": "ValueError: no"})
    state = {"terminated": {"exitCode": 1, "reason": "Error", "message": message}}
    found = PodView.read(pod(phase="Failed", state=state))
    assert found.outcome is not None
    assert (found.exit_code, found.outcome.message) == (1, "ValueError: no")


@pytest.mark.parametrize("message", ["plain words", "{}", "[1]", None])
def test_any_other_termination_message_is_left_alone(pod, message) -> None:
    state = {"terminated": {"exitCode": 1, "message": message}}
    assert PodView.read(pod(phase="Failed", state=state)).outcome is None


def test_pods_come_in_the_order_of_slots_and_their_successors_after_them(job, pod) -> None:
    documents = [pod("digits-1"), pod("digits-0", generation=1), pod("digits-0")]
    found = JobSnapshot.read(at=datetime.now(UTC), job=job(), pods=documents)
    assert [(one.index, one.generation) for one in found.pods] == [(0, 0), (0, 1), (1, 0)]
