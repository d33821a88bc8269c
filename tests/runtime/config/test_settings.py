from pathlib import Path

import pytest
import yaml

import rekindle as rk
from rekindle.config import ConfigError, read
from rekindle.config.settings import document

PROGRAM = Path(__file__).with_name("program.py")

FLAGS = {
    "max_epochs": (3, "3"),
    "gradient_clip_val": (0.5, "0.5"),
    "precision": ("bf16-mixed", "bf16-mixed"),
    "resume": ("never", "never"),
    "enable_progress_bar": (False, "false"),
    "limit_val_batches": (0.25, "0.25"),
    "checkpoint_every": ({"steps": 7}, "{steps: 7}"),
    "store": ({"region": "here"}, "{region: here}"),
}


def options(**flags):
    return [(f"trainer.{key}", text) for key, (_, text) in flags.items()]


def test_file_environment_and_command_line_mean_the_same(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"trainer": {key: value for key, (value, _) in FLAGS.items()}}))
    variables = {f"REKINDLE_TRAINER_{key.upper()}": text for key, (_, text) in FLAGS.items()}
    wanted = rk.Trainer(
        **{
            **{key: value for key, (value, _) in FLAGS.items()},
            "checkpoint_every": rk.Every(steps=7),
        }
    ).flags
    for config in (
        read([path]),
        read(environment=variables),
        read(options=options(**FLAGS)),
        read(environment={"REKINDLE_CONFIG": str(path)}),
    ):
        assert config.make_trainer().flags == wanted


def test_the_command_line_wins_over_the_environment_and_that_over_files(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("trainer: {seed: 1, max_epochs: 1, max_steps: 1, keep_latest: 1}")
    second.write_text("trainer: {seed: 2, max_epochs: 2, max_steps: 2}")
    variables = {"REKINDLE_TRAINER_SEED": "3", "REKINDLE_TRAINER_MAX_EPOCHS": "3"}
    flags = read([first, second], [("trainer.seed", "4")], variables).make_trainer().flags
    assert (flags.seed, flags.max_epochs, flags.max_steps, flags.keep_latest) == (4, 3, 2, 1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("trainer.max_epoch", "3"), "trainer has no key 'max_epoch'; did you mean 'max_epochs'?"),
        (("max_epochs", "3"), "there is no key 'max_epochs'; did you mean 'trainer.max_epochs'?"),
        (("trianer.seed", "3"), "there is no key 'trianer'; did you mean 'trainer'?"),
        (("trainer.seed", "x"), "trainer.seed is 'x', must be int"),
        (("model.hidden", "3"), "model names no class; write model: {class: module:Class}"),
        (("model.class", "[1]"), "model.class must be a text such as module:Class"),
    ],
)
def test_what_is_wrong_is_answered_with_place_and_nearest_key(option, message):
    with pytest.raises(ConfigError) as error:
        read(options=[option])
    assert message in str(error.value)
    assert str(error.value).startswith("--")


def test_what_the_trainer_itself_refuses_has_its_place_too(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("trainer:\n  seed: 1\n  precision: 33\n")
    with pytest.raises(ConfigError) as error:
        read([path]).make_trainer()
    assert str(error.value).startswith(f"{path}:3: trainer.precision=33 is not known; allowed are ")


def test_a_printed_configuration_means_the_same_when_it_is_read(tmp_path):
    path = tmp_path / "run.yaml"
    given = {
        "model": {"class": f"{PROGRAM}:Net", "shape": {"width": 3}, "lr": 0.5},
        "data": {"class": f"{PROGRAM}:loader"},
        "trainer": {"max_epochs": 2, "callbacks": [{"class": "EMA", "decay": 0.9}]},
        "ckpt_path": "last",
    }
    path.write_text(yaml.safe_dump(given))
    config = read([path])
    printed = yaml.safe_load(yaml.safe_dump(document(config)))
    assert printed["model"]["hidden"] == 4
    assert printed["trainer"]["accumulate_grad_batches"] == 1
    path.write_text(yaml.safe_dump(printed))
    again = read([path])
    assert document(again) == document(config)
    assert again.model.make().shape.width == 3
    assert again.make_trainer().flags.callbacks[0].decay == 0.9
