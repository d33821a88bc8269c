"""The environment of a pod and of its workers: what the operator sets, and the agent reads."""

ENV_JOB = "REKINDLE_JOB_NAME"
"""Name of the TrainingJob."""
ENV_NAMESPACE = "REKINDLE_JOB_NAMESPACE"
"""Namespace of the TrainingJob."""
ENV_JOB_UID = "REKINDLE_JOB_UID"
"""Its uid: another cluster may have a job of the same name and namespace."""
ENV_POD = "REKINDLE_POD_NAME"
"""Name of the pod."""
ENV_POD_UID = "REKINDLE_POD_UID"
"""Uid of the pod."""
ENV_POD_IP = "REKINDLE_POD_IP"
"""Address at which other pods reach this one."""
ENV_ACCESS = "REKINDLE_ACCESS_DIR"
"""Directory with the files below: how the coordinator is reached. They may change at any time and
are read anew for each connection."""
ACCESS_URL = "url"
"""File, and key of the job's secret: base URL of the coordinator."""
ACCESS_TOKEN = "token"
"""Likewise: what proves to the coordinator that a pod belongs to the job."""
ACCESS_CA = "ca.crt"
"""Likewise: certificates of those who vouch for the coordinator (PEM), if it speaks TLS and no
authority that the pod's image trusts does."""
ACCESS_PATH = "/var/run/secrets/rekindle.dev"
"""Where the job's secret is mounted."""
ENV_COORDINATOR = "REKINDLE_COORDINATOR_URL"
"""Base URL of the coordinator, for whoever is started by hand. When this and ENV_ACCESS are unset,
there is no operator."""
ENV_TOKEN = "REKINDLE_TOKEN"
"""The job's token, likewise."""
ENV_PROC_PER_NODE = "REKINDLE_PROC_PER_NODE"
"""Workers per pod: a number, or ``auto`` (one per GPU, or one), ``gpu``, ``cpu``."""
ENV_GRACE = "REKINDLE_GRACE_SECONDS"
"""The pod's terminationGracePeriodSeconds: what is left between SIGTERM and SIGKILL."""
ENV_TERMINATION_LOG = "REKINDLE_TERMINATION_LOG"
"""File that receives the termination message."""
ENV_CHECKPOINT_URI = "REKINDLE_CHECKPOINT_URI"
"""Root of the run's checkpoints; wins over the root that a script gives."""
ENV_CHECKPOINT_ENDPOINT = "REKINDLE_CHECKPOINT_ENDPOINT_URL"
"""S3 endpoint of that URI, when it is not AWS; wins over the endpoint that a script gives."""
ENV_CHECKPOINT_REGION = "REKINDLE_CHECKPOINT_REGION"
"""Region of that URI's bucket, if the script gives none."""
ENV_CHECKPOINT_ADDRESSING = "REKINDLE_CHECKPOINT_ADDRESSING"
"""``path`` or ``virtual``: how the bucket gets into URLs, if the script does not say."""
ENV_CHECKPOINT_COMMIT = "REKINDLE_CHECKPOINT_COMMIT"
"""``conditional`` or ``lease``: how a commit becomes the only one, if the script does not say."""
ENV_CHECKPOINT_EVERY_STEPS = "REKINDLE_CHECKPOINT_EVERY_STEPS"
"""Save after this many optimizer steps."""
ENV_CHECKPOINT_EVERY_SECONDS = "REKINDLE_CHECKPOINT_EVERY_SECONDS"
"""Save after this many seconds."""
ENV_CHECKPOINT_EVERY = "REKINDLE_CHECKPOINT_EVERY"
"""``auto``: save as often as cost and failures suggest. Steps and seconds above go first."""
ENV_MTBF = "REKINDLE_MTBF_SECONDS"
"""Mean time between failures of this job's pods, as the operator has counted them."""
ENV_CHECKPOINT_KEEP = "REKINDLE_CHECKPOINT_KEEP"
"""What retention keeps, as JSON: ``{"latest": 3, "best": [{"metric", "mode", "count"}], "every":
steps or null, "hourly": 0}``."""
ENV_NOTICE_FILE = "REKINDLE_NOTICE_FILE"
"""A file that says, as soon as it is there, that the pod is to go; see
rekindle.launch.health.preemption_notices."""
ENV_HANG_TIMEOUT = "REKINDLE_HANG_TIMEOUT"
"""Seconds without a sign of life after which a worker counts as hung; ``auto`` (or unset) learns
them from the run, ``never`` looks away."""
ENV_PROGRESS = "REKINDLE_PROGRESS"
"""``spec.progress`` as JSON: where a script without our trainer shows its steps. At most one of
``{"file": PATH}``, ``{"tensorboard": DIR}``, ``{"log": {"pattern": REGEX}}`` and ``{"log":
{"preset": "huggingface"}}``. Unset: nothing but ``rekindle.report`` tells them."""
ENV_METRICS_PORT = "REKINDLE_METRICS_PORT"
"""Overrides POD_METRICS_PORT; 0 picks a free port, empty serves nothing."""
ENV_RUN_DIR = "REKINDLE_RUN_DIR"
"""Set by the agent for its workers: their round's private directory (see ranks.control)."""
ENV_ROUND = "REKINDLE_ROUND"
"""Set by the agent for its workers: the number of the round they belong to."""
ENV_MEMORY = "REKINDLE_MEMORY"
"""Set by the agent for its workers: descriptors of two memory files that outlive them, as numbers
separated by a comma. Unset: there are none."""
ENV_REPORT = "REKINDLE_REPORT_FILE"
"""Set by the agent for the worker of rank 0: the file in which ``rekindle.report`` leaves word."""
ENV_WARM = "REKINDLE_WARM"
"""``0`` starts each worker as a fresh interpreter instead of forking it from a warm one."""
ENV_WORKERS = "REKINDLE_WORKERS"
"""Workers of the job when all pods that it wants are there: what a global batch follows from that
the script does not give. Comes with each round; unset: those that are there."""
RUNS_AFTER = 10.0
"""Seconds for which the workers of a script that says nothing must run to count as running."""
OF_A_ROUND = (
    ENV_CHECKPOINT_EVERY_STEPS,
    ENV_CHECKPOINT_EVERY_SECONDS,
    ENV_CHECKPOINT_EVERY,
    ENV_CHECKPOINT_KEEP,
    ENV_HANG_TIMEOUT,
    ENV_GRACE,
    ENV_MTBF,
    ENV_WORKERS,
)
"""Variables that a round brings along, so that a change of them needs no new pods. Empty: unset."""
