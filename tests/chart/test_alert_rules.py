"""Each alert fires when it is to and stays quiet when it is not, as Prometheus itself decides."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        shutil.which("promtool") is None,
        reason="needs promtool (Debian package prometheus) to evaluate the rules",
    ),
]

REFUSED = 'rekindle_agent_requests_refused_total{code="401"}'
RECOVERY = "rekindle_recovery_seconds_bucket"
RECONCILE = "rekindle_reconcile_seconds_bucket"
CASES = [
    # alert, series (one value a minute), minute, whether it fires
    ("OperatorDown", {"up": "1x60"}, 60, False),
    ("OperatorDown", {"up": "1x5 0x60"}, 14, False),
    ("OperatorDown", {"up": "1x5 0x60"}, 17, True),
    ("ReconcileFailing", {"rekindle_jobs_not_reconciled": "1x60"}, 9, False),
    ("ReconcileFailing", {"rekindle_jobs_not_reconciled": "1x60"}, 11, True),
    ("ReconcileFailing", {"rekindle_jobs_not_reconciled": "0x60"}, 30, False),
    (
        "ReconcileSlow",
        {
            f'{RECONCILE}{{le="3"}}': "0x60",
            f'{RECONCILE}{{le="10"}}': "0+9x60",
            f'{RECONCILE}{{le="+Inf"}}': "0+9x60",
        },
        40,
        True,
    ),
    (
        "ReconcileSlow",
        {f'{RECONCILE}{{le="3"}}': "0+9x60", f'{RECONCILE}{{le="+Inf"}}': "0+9x60"},
        40,
        False,
    ),
    (
        "RecoverySlow",
        {
            f'{RECOVERY}{{le="300"}}': "0x90",
            f'{RECOVERY}{{le="1800"}}': "0+1x90",
            f'{RECOVERY}{{le="+Inf"}}': "0+1x90",
        },
        60,
        True,
    ),
    (
        "RecoverySlow",
        {
            f'{RECOVERY}{{le="300"}}': "0+1x90",
            f'{RECOVERY}{{le="1800"}}': "0+1x90",
            f'{RECOVERY}{{le="+Inf"}}': "0+1x90",
        },
        60,
        False,
    ),
    ("IntegrityIncident", {'rekindle_incidents_total{cause="Integrity"}': "_x5 1x90"}, 10, True),
    ("IntegrityIncident", {'rekindle_incidents_total{cause="PodLost"}': "_x5 1x90"}, 10, False),
    ("AgentsRefused", {REFUSED: "0+60x60"}, 40, True),
    ("AgentsRefused", {REFUSED: "0+1x60"}, 40, False),
    ("JobFailed", {"rekindle_jobs_failed_lately": "0x9 1x60"}, 10, True),
    ("JobFailed", {"rekindle_jobs_failed_lately": "0x60"}, 10, False),
    *(
        (
            "JobWaiting",
            {f'rekindle_job_waiting_seconds_max{{phase="{phase}"}}': "0+60x90"},
            at,
            fires,
        )
        for phase in ("Starting", "Recovering", "Suspending")
        for at, fires in ((29, False), (31, True))
    ),
    ("JobWaiting", {'rekindle_job_waiting_seconds_max{phase="Pending"}': "0+60x90"}, 80, False),
    (
        "JobPending",
        {'rekindle_job_waiting_seconds_max{phase="Pending"}': "86000x5 86460x9"},
        3,
        False,
    ),
    (
        "JobPending",
        {'rekindle_job_waiting_seconds_max{phase="Pending"}': "86000x5 86460x9"},
        8,
        True,
    ),
    (
        "JobDegraded",
        {'rekindle_job_degraded_seconds_max{reason="Straggler"}': "0+60x90"},
        59,
        False,
    ),
    ("JobDegraded", {'rekindle_job_degraded_seconds_max{reason="Straggler"}': "0+60x90"}, 61, True),
    (
        "CheckpointDamaged",
        {'rekindle_incidents_total{cause="CheckpointDamaged"}': "_x5 1x90"},
        10,
        True,
    ),
    ("CheckpointDamaged", {'rekindle_incidents_total{cause="PodLost"}': "_x5 1x90"}, 10, False),
    ("NoCommit", {"rekindle_job_commit_overdue_seconds_max": "0+60x90"}, 60, False),
    ("NoCommit", {"rekindle_job_commit_overdue_seconds_max": "0+60x90"}, 61, True),
]


@pytest.fixture(scope="module")
def group(helm: Any, prometheus_operator: None) -> dict[str, Any]:
    documents = helm.render({"monitoring": {"enabled": True}})
    (found,) = [document for document in documents if document["kind"] == "PrometheusRule"]
    (rules,) = found["spec"]["groups"]
    return {**rules, "job": f"{found['metadata']['namespace']}/rk-rekindle-operator"}


def labelled(series: str, job: str) -> str:
    name, _, labels = series.rstrip("}").partition("{")
    return f'{name}{{job="{job}"{"," + labels if labels else ""}}}'


def promtool(folder: Path, group: dict[str, Any], cases: list[tuple[Any, ...]]) -> str:
    """Give what promtool has to say against these cases; nothing when all hold."""
    rules = {"groups": [{"name": group["name"], "rules": group["rules"]}]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    by_name = {rule["alert"]: rule for rule in group["rules"]}
    tests = []
    for alert, series, minute, fires in cases:
        tests.append(
            {
                "interval": "1m",
                "input_series": [
                    {"series": labelled(name, group["job"]), "values": values}
                    for name, values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="Rekindle{alert}",alertstate="firing"}})',
                        "eval_time": f"{minute}m",
                        "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                    }
                ],
            }
        )
        assert f"Rekindle{alert}" in by_name
    suite = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yaml").write_text(yaml.safe_dump(suite))
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_each_alert_fires_when_it_is_to_and_not_before(tmp_path: Path, group: Any) -> None:
    assert promtool(tmp_path, group, CASES) == ""


def test_a_case_that_does_not_hold_is_seen(tmp_path: Path, group: Any) -> None:
    alert, series, minute, fires = CASES[0]
    assert "FAILED" in promtool(tmp_path, group, [(alert, series, minute, not fires)])


def test_each_alert_is_tried_both_ways(group: Any) -> None:
    tried = {(f"Rekindle{alert}", fires) for alert, _, _, fires in CASES}
    assert tried == {(rule["alert"], fires) for rule in group["rules"] for fires in (True, False)}
