import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rekindle
from rekindle.config.command import help_text, main, parse
from rekindle.config.tree import ConfigError
from rekindle.ranks.control_page import ControlPage

PROGRAM = Path(__file__).with_name("program.py")


def test_a_command_line_is_taken_apart():
    line = parse(
        ["fit", "net:Net", "--config", "a.yaml", "--config=b.yaml", "--trainer.seed", "-1",
         "--trainer.fast_dev_run", "--model.name=a=b", "--print-config"]
    )  # fmt: skip
    assert line.verb == "fit"
    assert line.files == (Path("a.yaml"), Path("b.yaml"))
    assert line.options == (
        ("model", "net:Net"),
        ("trainer.seed", "-1"),
        ("trainer.fast_dev_run", None),
        ("model.name", "a=b"),
    )
    assert line.show
    assert not line.help


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fitt"], "there is no command 'fitt'; did you mean 'fit'?"),
        ([], "say what to do: fit, validate, test, predict"),
        (["fit", "a:A", "b:B"], "'b:B': there is a model already; options begin with --"),
        (["fit", "--config"], "--config needs a file"),
    ],
)
def test_a_command_line_that_is_wrong_is_refused(words, message):
    with pytest.raises(ConfigError) as error:
        parse(words)
    assert message in str(error.value)


def test_help_names_every_flag_and_the_arguments_of_the_model(capsys):
    assert main(["fit", f"{PROGRAM}:Net", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--model.hidden                       int; default 4" in said
    assert "--trainer.max_epochs                 int or None; default None" in said
    assert "usage: rekindle fit" in said
    assert "--trainer.resume" in help_text("test", None)


def test_nothing_runs_without_model_or_data(capsys):
    assert main(["fit"]) == 2
    assert "there is no model; give it as rekindle fit module:Class" in capsys.readouterr().err
    assert main(["test", f"{PROGRAM}:Net"]) == 2
    assert "there is no data; give --data module:DataModule" in capsys.readouterr().err


def test_in_a_pod_the_agent_learns_what_is_wrong(tmp_path, monkeypatch):
    page = ControlPage(tmp_path, create=True)
    monkeypatch.setenv("REKINDLE_RUN_DIR", str(tmp_path))
    assert main(["fit", "--trainer.sed", "1"]) == 1
    (outcome,) = page.outcomes()
    assert outcome.cause == "Configuration"
    assert "trainer has no key 'sed'; did you mean 'seed'?" in outcome.message


def test_fit_and_test_run_from_a_file_alone(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {{class: '{PROGRAM}:Net', hidden: 2}}\n"
        f"data: {{class: '{PROGRAM}:loader', batch_size: 8}}\n"
        f"trainer: {{max_epochs: 9, root: '{tmp_path / 'run'}', accelerator: cpu}}\n"
    )
    words = ["--config", str(config), "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *words, "--trainer.max_epochs", "1"]) == 0
    assert main(["validate", *words, "--ckpt_path", str(tmp_path / "run")]) == 0
    assert "val/loss" in capsys.readouterr().out


@pytest.mark.processes
def test_the_command_hands_over_to_the_environment_that_trains(tmp_path):
    source = Path(rekindle.__file__).parents[1]
    paths = [source, source.parent / "operator"]
    done = subprocess.run(
        [sys.executable, "-m", "rekindle_cli", "fit", "program:Net", "--data", "program:loader",
         "--trainer.max_steps", "2", "--trainer.root", str(tmp_path / "run")],
        cwd=PROGRAM.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (commit,) = (tmp_path / "run" / "commit").iterdir()
    assert json.loads(commit.read_text())["step"] == 2
