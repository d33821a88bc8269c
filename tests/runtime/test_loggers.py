"""Records of a run at each logger: in order, once per step over restarts, and never in the way."""

import csv
import json
import sys
import threading
import time
import types
from contextlib import contextmanager

import pytest
import torch

from rekindle import loggers
from rekindle.loggers import feed as feeds
from rekindle.loggers.journal import Journal, chosen
from rekindle.loggers.logger import Attempt
from rekindle.ranks.distributed import World

SECONDS = 60.0


def world(rank=0, share=None):
    one = World(rank=rank, size=1, local_rank=rank, device=torch.device("cpu"), control=None)
    if share is not None:
        object.__setattr__(one, "share", lambda value: share)
    return one


def begun(root, *made, said=print, saved=(), **attempt):
    """A journal of these loggers at the begin of an attempt, by default a run's first one."""
    journal = Journal(made, world(), said)
    journal.begin(Attempt(root=str(root), **{"step": 0, "resumed": bool(saved), **attempt}), saved)
    return journal


class Stage:
    """Attempts of one run over the same loggers' constructors, as the trainer would make them."""

    def __init__(self, root, *make):
        self.root, self.make, self.lines = root, make, []
        self.saved = []

    def attempt(self, steps, *, resume=None, save_at=None, hparams=None, every=1, status="failed"):
        """Log every step of a range; give the loggers."""
        made = [make() for make in self.make]
        journal = Journal(made, world(), self.lines.append)
        now = [resume or 0]
        journal.begin(
            Attempt(
                root=str(self.root), step=now[0], resumed=resume is not None, now=lambda: now[0]
            ),
            () if resume is None else self.saved,
        )
        journal.describe(hparams or {})
        for step in steps:
            now[0] = step
            # As a run does: records are numbered from 0, attempts by the steps that are done.
            values = {"loss": 1 / step, "train/acc": step / 10}
            journal.record(values, step=step - 1, epoch=step // 4)
            if step == save_at:
                self.settled(made)
                self.saved = json.loads(json.dumps(journal.state()))
        journal.close(status, SECONDS)
        return made

    def settled(self, made):
        """Wait until everything is written, as it is at nearly any real checkpoint."""
        limit = time.monotonic() + SECONDS
        for logger in made:
            assert logger.ready()
            while logger._feed.waiting():
                assert time.monotonic() < limit
                time.sleep(0.001)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_json_lines_hold_every_record_once_over_a_crash_and_a_resume(tmp_path):
    stage = Stage(tmp_path, loggers.JSONLLogger)
    stage.attempt(range(1, 8), save_at=4)
    (again,) = stage.attempt(range(5, 10), resume=4, status="finished")
    rows = lines(tmp_path / "logs/version_0/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(9))
    assert rows[8]["train/acc"] == 0.9
    assert rows[8]["epoch"] == 2.0
    assert again.log_dir == str(tmp_path / "logs/version_0")
    assert stage.lines == []


def test_a_new_run_takes_a_new_version_and_leaves_the_old_one(tmp_path):
    stage = Stage(tmp_path, loggers.JSONLLogger)
    stage.attempt(range(1, 4))
    (second,) = stage.attempt(range(1, 2))
    assert second.version == 1
    assert len(lines(tmp_path / "logs/version_0/metrics.jsonl")) == 3


def test_a_torn_line_is_dropped_and_what_is_not_finite_is_null(tmp_path):
    stage = Stage(tmp_path, lambda: loggers.JSONLLogger(name="n", version="v"))
    stage.attempt([1], save_at=1)
    path = tmp_path / "n/v/metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 0, "lo')
    journal = begun(tmp_path, loggers.JSONLLogger(name="n", version="v"), step=1, saved=stage.saved)
    journal.record({"loss": float("nan")}, step=1, epoch=0)
    journal.close("finished", SECONDS)
    assert [(row["step"], row["loss"]) for row in lines(path)] == [(0, 1.0), (1, None)]


def test_csv_grows_columns_and_is_cut_off_at_the_resumed_step(tmp_path):
    stage = Stage(tmp_path, lambda: loggers.CSVLogger(prefix="p"))
    (logger,) = stage.attempt(range(1, 6), save_at=3)
    journal = begun(tmp_path, loggers.CSVLogger(prefix="p"), step=3, saved=stage.saved)
    journal.record({"val/f1": 0.5}, step=3, epoch=1)
    journal.close("finished", SECONDS)
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["p-val/f1"] for row in rows] == ["", "", "", "0.5"]
    assert rows[2]["p-loss"] == repr(1 / 3)
    assert list(rows[0]) == ["p-epoch", "p-loss", "p-train/acc", "p-val/f1", "step"]


def test_a_value_of_the_saved_step_that_came_before_the_save_is_not_written_again(tmp_path):
    stage = Stage(tmp_path, loggers.JSONLLogger)
    stage.attempt([1, 2], save_at=2)
    journal = begun(tmp_path, loggers.JSONLLogger(), step=2, saved=stage.saved)
    journal.record({"loss": 9.0, "val/loss": 3.0}, step=1, epoch=0)
    journal.close("finished", SECONDS)
    rows = lines(tmp_path / "logs/version_0/metrics.jsonl")
    assert [row.get("loss") for row in rows] == [1.0, 0.5, None]
    assert rows[2]["val/loss"] == 3.0


def test_hyperparameters_are_written_once_per_run(tmp_path):
    written = []

    class Counting(loggers.JSONLLogger):
        def write_hyperparameters(self, values):
            written.append(values)

    stage = Stage(tmp_path, Counting)
    stage.attempt([1, 2], save_at=1, hparams={"lr": 0.1, "sizes": (1, 2), "path": tmp_path})
    stage.attempt([2], resume=1, hparams={"lr": 0.2})
    assert written == [{"lr": 0.1, "sizes": [1, 2], "path": str(tmp_path)}]


class Stuck(loggers.Logger):
    """Writes nothing before it may."""

    def __init__(self):
        self.may, self.written = threading.Event(), []

    def write(self, metrics, step, at):
        assert self.may.wait(SECONDS)
        self.written.append(step)


def test_a_full_queue_drops_records_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr(feeds, "CAPACITY", 5)
    logger, said = Stuck(), []
    journal = begun(tmp_path, logger, said=said.append)
    began = time.perf_counter()
    for step in range(1, 101):
        journal.record({"loss": 1.0}, step=step, epoch=0)
    assert time.perf_counter() - began < SECONDS / 4
    logger.may.set()
    journal.close("finished", SECONDS)
    # The thread holds one record while five wait.
    assert logger.written in (list(range(1, 6)), list(range(1, 7)))
    lost = 100 - len(logger.written)
    assert said == [
        "logger Stuck does not keep up: 5 records wait, new ones are dropped",
        f"logger Stuck lost {lost} records in all",
    ]


def test_a_logger_that_hangs_does_not_hold_up_the_end(tmp_path):
    logger, said = Stuck(), []
    journal = begun(tmp_path, logger, said=said.append)
    journal.record({"loss": 1.0}, step=1, epoch=0)
    journal.close("preempted", 0.05)
    assert said == ["logger Stuck has not ended in time, 0 records may be lost"]
    logger.may.set()


@pytest.mark.parametrize("where", ["prepare", "open", "write", "flush", "close"])
def test_a_logger_that_fails_is_reported_once_and_the_others_go_on(tmp_path, where):
    def fail(self, *arguments):
        if where == "close":
            loggers.JSONLLogger.close(self, *arguments)
        raise ConnectionError("no route to host\nand more")

    Broken = type("Broken", (loggers.JSONLLogger,), {where: fail})
    said = []
    journal = begun(tmp_path, Broken(name="b"), loggers.JSONLLogger(), said=said.append)
    for step in range(1, 5):
        journal.record({"loss": 1.0}, step=step, epoch=0)
    journal.close("finished", SECONDS)
    told = [line for line in said if "no route to host" in line]
    assert len(told) == 1
    assert told[0].startswith("logger Broken ")
    assert "raining goes on" in told[0]
    assert len(lines(tmp_path / "logs/version_0/metrics.jsonl")) == 4


def test_a_logger_of_ones_own_that_works_in_the_callers_thread_is_guarded_too(tmp_path):
    class Direct(loggers.Logger):
        def log_metrics(self, metrics, step=None):
            raise KeyError("x")

    said = []
    journal = begun(tmp_path, Direct(), said=said.append)
    journal.record({"a": 1.0}, step=1, epoch=0)
    journal.record({"a": 1.0}, step=2, epoch=0)
    journal.close("finished", SECONDS)
    assert said == ["logger Direct failed: 'x'. Training goes on."]


def test_only_rank_0_writes_and_the_others_know_where(tmp_path):
    first, other = loggers.JSONLLogger(), loggers.JSONLLogger()
    here = begun(tmp_path, first)
    told = [entry["state"] for entry in here.state()]
    there = Journal([other], world(rank=1, share=told), print)
    there.begin(Attempt(root=str(tmp_path), step=0, resumed=False))
    there.record({"loss": 1.0}, step=1, epoch=0)
    other.log_metrics({"loss": 1.0})
    assert other.experiment.anything.goes(1) is not None
    assert other.log_dir == first.log_dir
    there.close("finished", SECONDS)
    here.close("finished", SECONDS)
    assert lines(tmp_path / "logs/version_0/metrics.jsonl") == []


def test_what_is_logged_before_the_run_is_kept(tmp_path):
    logger = loggers.JSONLLogger()
    logger.log_hyperparams({"note": "early"})
    journal = begun(tmp_path, logger)
    journal.close("finished", SECONDS)
    found = json.loads((tmp_path / "logs/version_0/hparams.json").read_text())
    assert found == {"note": "early"}


def test_a_root_that_is_no_directory_needs_a_save_dir():
    said = []
    journal = begun("s3://bucket/run", loggers.JSONLLogger(), said=said.append)
    journal.close("finished", SECONDS)
    assert said == [
        "logger JSONLLogger is not used: save_dir= is needed, because the root s3://bucket/run is "
        "no directory. Training goes on without it."
    ]


def test_the_flag_takes_one_several_true_and_false():
    one = loggers.JSONLLogger()
    assert chosen(one) == [one]
    assert chosen((one, one)) == [one, one]
    assert chosen(None) == chosen(False) == []
    assert [type(logger) for logger in chosen(True)] == [loggers.JSONLLogger]
    with pytest.raises(TypeError, match=r"logger='csv' must be a rekindle\.loggers\.Logger"):
        chosen("csv")


@pytest.mark.parametrize(
    ("logger", "module", "package"),
    [("WandbLogger", "wandb", "wandb"), ("CometLogger", "comet_ml", "comet_ml"),
     ("MLFlowLogger", "mlflow", "mlflow"), ("TensorBoardLogger", "tensorboard", "tensorboard")],
)  # fmt: skip
def test_a_missing_package_is_named_when_the_logger_is_made(monkeypatch, logger, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"^{logger} needs .* pip install {package}$"):
        getattr(loggers, logger)()


def test_neptune_is_refused_with_the_alternatives():
    with pytest.raises(ValueError, match="NeptuneLogger is not supported; use MLFlowLogger, "):
        loggers.NeptuneLogger(project="x")


class FakeRun:
    """What `wandb.init` gives, with the server's memory of a run."""

    server: dict = {}

    def __init__(self, id, **options):
        self.kept = self.server.setdefault(id, {"rows": [], "config": {}, "options": options})
        self.summary = dict(self.kept["rows"][-1]) if self.kept["rows"] else {}
        self.config = types.SimpleNamespace(
            update=lambda values, **_: self.kept["config"].update(values)
        )

    def watch(self, models, **options):
        self.kept["watched"] = (models, options["log"])

    def define_metric(self, name, **options):
        self.kept.setdefault("axes", {})[name] = options

    def log(self, values):
        self.kept["rows"].append(values)

    def finish(self, exit_code):
        self.kept["exit"] = exit_code


def test_wandb_goes_on_with_the_same_run_and_repeats_no_step(tmp_path, monkeypatch):
    server = {}
    monkeypatch.setattr(FakeRun, "server", server)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=FakeRun))
    stage = Stage(tmp_path, lambda: loggers.WandbLogger(project="p", offline=True, group="g"))
    stage.attempt(range(1, 8), save_at=4, hparams={"lr": 0.1})
    stage.attempt(range(5, 10), resume=4, status="finished")
    (run,) = server.values()
    assert [row["trainer/global_step"] for row in run["rows"]] == list(range(9))
    assert run["options"] == {"project": "p", "mode": "offline", "group": "g", "resume": "allow"}
    assert run["axes"]["*"]["step_metric"] == "trainer/global_step"
    assert (run["config"], run["exit"]) == ({"lr": 0.1}, 0)


class FakeExperiment:
    def __init__(self):
        self.rows, self.parameters, self.ended = [], {}, 0

    def log_metrics(self, values, step, epoch):
        if "loss" in values:
            self.rows.append((step, epoch, values["loss"]))

    def log_parameters(self, values):
        self.parameters.update(values)

    def get_metrics_summary(self):
        return [{"name": "loss", "stepCurrent": self.rows[-1][0]}, {"name": "x"}]

    def end(self):
        self.ended += 1


def test_comet_goes_on_with_the_same_experiment_and_repeats_no_step(tmp_path, monkeypatch):
    server, asked = {}, []

    def start(experiment_key, **options):
        asked.append(options)
        return server.setdefault(experiment_key, FakeExperiment())

    api = types.SimpleNamespace(get_experiment_by_key=server.get)
    comet = types.SimpleNamespace(start=start, ExperimentConfig=dict, API=lambda api_key: api)
    monkeypatch.setitem(sys.modules, "comet_ml", comet)
    stage = Stage(tmp_path, lambda: loggers.CometLogger(project="p", name="n"))
    stage.attempt(range(1, 8), save_at=4, hparams={"a": {"b": 1}})
    stage.attempt(range(5, 10), resume=4)
    (experiment,) = server.values()
    assert [step for step, _, _ in experiment.rows] == list(range(9))
    assert experiment.parameters == {"a/b": 1}
    assert asked[0]["mode"] == "get_or_create"
    assert (asked[0]["project_name"], asked[0]["experiment_config"]) == ("p", {"name": "n"})


@pytest.mark.processes
def test_tensorboard_shows_every_step_once_over_a_crash_and_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = Stage(tmp_path, loggers.TensorBoardLogger)
    stage.attempt(range(1, 8), save_at=4, hparams={"lr": 0.1, "deep": {"er": [1]}})
    (logger,) = stage.attempt(range(5, 10), resume=4, status="finished")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    # Nothing tells what the trainer wrote of the step that comes next from a script's own picture
    # of the steps that are done: so that one is kept, and there twice.
    assert [event.step for event in events.Scalars("loss")] == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    assert events.Scalars("train/acc")[9].value == pytest.approx(0.9)
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    assert stage.lines == []


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
def test_mlflow_holds_every_step_once_over_a_crash_and_a_resume(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    stage = Stage(
        tmp_path,
        lambda: loggers.MLFlowLogger("an experiment", run_name="r", save_dir=tmp_path / "mlruns"),
    )
    stage.attempt(range(1, 8), save_at=4, hparams={"lr": 0.1, "deep": {"er": [1]}})
    client = mlflow.MlflowClient(f"file://{tmp_path}/mlruns")
    experiment = client.get_experiment_by_name("an experiment").experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FAILED"]
    (logger,) = stage.attempt(range(5, 10), resume=4, status="finished")
    (run,) = client.search_runs([experiment])
    assert run.info.run_id == logger.run_id == logger.version
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "deep/er": "[1]"}
    steps = [entry.step for entry in client.get_metric_history(run.info.run_id, "train/acc")]
    assert steps == list(range(9))
    assert stage.lines == []


@pytest.mark.parametrize("cuts", [True, False])
def test_a_rollback_within_the_process_repeats_no_step(tmp_path, cuts):
    class Keeping(loggers.Logger):
        def __init__(self):
            self.steps = []

        def write(self, metrics, step, at):
            self.steps.append(step)

    logger = loggers.JSONLLogger() if cuts else Keeping()
    journal = begun(tmp_path, logger)
    for step in (0, 1, 2, 3, 4):
        journal.record({"loss": 1.0}, step=step, epoch=0)
    journal.rewind(3)
    for step in (3, 4, 5):
        journal.record({"loss": 2.0}, step=step, epoch=0)
    journal.close("finished", SECONDS)
    if cuts:
        rows = lines(tmp_path / "logs/version_0/metrics.jsonl")
        assert [(row["step"], row["loss"]) for row in rows] == [
            (0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)
        ]  # fmt: skip
    else:
        assert logger.steps == [0, 1, 2, 3, 4, 5]


def validations(journal, first, last):
    """Two batches of each validation after so many steps, and the step itself."""
    for step in range(first, last + 1):
        journal.record({"loss_step": float(step)}, step=step - 1, epoch=0)
        batches = {(0, index): {"loss_step": step + index / 10} for index in (0, 1)}
        journal.record_batches(batches, counted=True)


@pytest.mark.parametrize("make", [loggers.JSONLLogger, loggers.CSVLogger])
def test_step_values_of_validations_are_counted_on_over_a_resume_and_a_rollback(tmp_path, make):
    whole = begun(tmp_path / "whole", make(prefix="p"))
    validations(whole, 1, 6)
    whole.close("finished", SECONDS)
    first = begun(tmp_path / "cut", logger := make(prefix="p"))
    validations(first, 1, 2)
    stage = Stage(tmp_path)
    stage.settled([logger])
    two = json.loads(json.dumps(first.state()))
    validations(first, 3, 4)
    first.rewind(2, two)
    validations(first, 3, 3)
    stage.settled([logger])
    saved = json.loads(json.dumps(first.state()))
    validations(first, 4, 5)
    first.close("failed", SECONDS)
    second = begun(tmp_path / "cut", make(prefix="p"), saved=saved, step=3)
    validations(second, 4, 6)
    second.close("finished", SECONDS)
    name = f"*/version_0/{make.FILE}"
    read = lines if make is loggers.JSONLLogger else table
    one, other = (
        [
            {n: v for n, v in row.items() if n != "time"}
            for row in read(*(tmp_path / run).glob(name))
        ]
        for run in ("whole", "cut")
    )
    assert one == other
    assert len(one) == 18


@contextmanager
def hanging(root, kind, records, held):
    """A run's first attempt, saved while its logger hangs in writing the record that is `held`."""

    class Hanging(kind):
        there, may = threading.Event(), threading.Event()

        def write(self, metrics, step, at):
            if self is first and (metrics, step) == held:
                self.there.set()
                assert self.may.wait(SECONDS)
            super().write(metrics, step, at)

    stage = Stage(root, Hanging)
    now, first = [0], Hanging()
    journal = begun(root, first, now=lambda: now[0])
    for metrics, now[0] in records:
        journal.record(metrics, step=now[0] - 1, epoch=0)
    assert Hanging.there.wait(SECONDS)
    stage.saved = json.loads(json.dumps(journal.state()))
    try:
        yield stage
    finally:
        Hanging.may.set()
        journal.close("failed", SECONDS)


def rows_of(folder, kind):
    """What such a logger has written, without what is empty."""
    (path,) = folder.glob(f"*/version_0/{kind.FILE}")
    if kind is loggers.JSONLLogger:
        return lines(path)
    with path.open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("kind", [loggers.JSONLLogger, loggers.CSVLogger])
def test_what_waits_at_a_checkpoint_is_written_by_the_attempt_that_resumes(tmp_path, kind):
    loss = {"loss": 1.0}
    records = [(loss, step) for step in range(1, 6)]
    with hanging(tmp_path, kind, records, held=({**loss, "epoch": 0.0}, 2)) as stage:
        assert [entry["step"] for entry in stage.saved[0]["waiting"]] == [2, 3, 4]
        stage.attempt([6, 7], resume=5)
        assert [row["step"] for row in rows_of(tmp_path, kind)] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kind", [loggers.JSONLLogger, loggers.CSVLogger])
def test_what_is_written_of_a_step_of_which_more_waits_is_not_lost(tmp_path, kind):
    """A step and the validation after it are two records: one may be written, the other wait."""
    loss, val = {"loss": 1.0}, {"val": 2.0}
    records = [*((loss, step) for step in (1, 2, 3)), (val, 3)]
    with hanging(tmp_path, kind, records, held=({**val, "epoch": 0.0}, 2)) as stage:
        stage.attempt([4], resume=3)
        found = rows_of(tmp_path, kind)
        assert [row["step"] for row in found if row.get("loss") == 1.0] == [0, 1, 2]
        assert [row["step"] for row in found if row.get("val") == 2.0] == [2]


def test_options_that_a_logger_does_not_have_are_refused_when_it_is_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tensorboard", types.SimpleNamespace())
    with pytest.raises(ValueError, match=r"WandbLogger\(log_model='all'\) is not supported"):
        loggers.WandbLogger(log_model="all")
    with pytest.raises(TypeError, match="TensorBoardLogger has no option 'graph'; it has "):
        loggers.TensorBoardLogger(graph=True)


@pytest.mark.parametrize("early", [True, False])
def test_wandb_watches_a_model_from_the_begin_of_the_run_on(tmp_path, monkeypatch, early):
    server = {}
    monkeypatch.setattr(FakeRun, "server", server)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=FakeRun))
    logger, model = loggers.WandbLogger(), torch.nn.Linear(1, 1)
    if early:
        logger.watch(model, log="all")
    journal = begun(tmp_path, logger)
    if not early:
        logger.watch(model, log="all")
    assert server[logger.version]["watched"] == (model, "all")
    journal.close("finished", SECONDS)


@pytest.mark.parametrize("kind", [loggers.JSONLLogger, loggers.CSVLogger])
def test_rows_of_a_fit_before_with_the_same_logger_stay_over_a_resume(tmp_path, kind):
    """Two fits of a script share a logger: the second one's checkpoint cuts only its own rows."""
    logger, step = kind(tmp_path), [0]

    def fit(logger, steps, **attempt):
        journal = Journal([logger], world(), print)
        begin = {"step": 0, "resumed": False, **attempt}
        saved = begin.pop("saved", ())
        journal.begin(Attempt(root=str(tmp_path), now=lambda: step[0], **begin), saved)
        for step[0] in steps:
            journal.record({"loss": float(step[0])}, step=step[0] - 1, epoch=0)
        assert logger._feed.drained(SECONDS)
        state = json.loads(json.dumps(journal.state()))
        journal.close("finished", SECONDS)
        return state

    fit(logger, [1, 2, 3, 4])
    saved = fit(logger, [1, 2])
    again = kind(tmp_path)
    fit(again, [3], step=2, resumed=True, saved=saved)
    assert again.log_dir == logger.log_dir
    assert [row["step"] for row in rows_of(tmp_path, kind)] == [0, 1, 2, 3, 0, 1, 2]


def test_a_scripts_own_row_of_the_steps_that_are_done_survives_a_resume(tmp_path):
    stage = Stage(tmp_path, loggers.CSVLogger)
    stage.attempt(range(1, 5), save_at=2)
    path = tmp_path / "lightning_logs/version_0/metrics.csv"
    path.write_text(path.read_text() + ",0.5,2,\n,0.7,3,\n")
    stage.attempt([3], resume=2)
    rows = rows_of(tmp_path, loggers.CSVLogger)
    assert [(row["step"], row["loss"], "epoch" in row) for row in rows] == [
        (0, 1.0, True), (1, 0.5, True), (2, 0.5, False), (2, 1 / 3, True)
    ]  # fmt: skip


def test_what_is_logged_after_a_run_is_written_too(tmp_path):
    logger = loggers.CSVLogger(tmp_path, "own")
    begun(tmp_path, logger).close("finished", SECONDS)
    logger.log_metrics({"final": 1}, step=7)
    logger.experiment.log_metrics({"more": 2.5}, step=8)
    logger.finalize("success")
    text = (tmp_path / "own/version_0/metrics.csv").read_text()
    assert text == "final,more,step\n1,,7\n,2.5,8\n"


def test_what_wandb_shows_beside_numbers(tmp_path, monkeypatch):
    server, step = {}, "trainer/global_step"
    monkeypatch.setattr(FakeRun, "server", server)
    kinds = {
        name: lambda item, name=name, **rest: (name, item, rest) for name in ("Image", "Video")
    }
    fake = types.SimpleNamespace(init=FakeRun, Table=lambda **given: given, **kinds)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    logger = loggers.WandbLogger(prefix="p")
    logger.log_image("seen", ["a", "b"], step=3, caption=["A", "B"])
    logger.log_text("said", ["c"], [["d"]])
    with pytest.raises(ValueError, match="'seen': 2 items, and 1 of 'caption'"):
        logger.log_image("seen", ["a", "b"], caption=["A"])
    logger.finalize("success")
    (run,) = server.values()
    assert run["rows"] == [
        {"p-seen": [("Image", "a", {"caption": "A"}), ("Image", "b", {"caption": "B"})], step: 3},
        {"p-said": {"columns": ["c"], "data": [["d"]], "dataframe": None}},
    ]
