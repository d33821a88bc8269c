import pytest

from rekindle.config import tree
from rekindle.config.tree import ConfigError, from_arguments, from_environment, from_file, merged


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return write


def test_every_value_knows_its_line(written):
    path = written("trainer:\n  max_epochs: 3\n\n  store:\n    region: here\n")
    trainer = from_file(path).value["trainer"]
    assert trainer.value["max_epochs"].place == f"{path}:2"
    assert trainer.value["store"].value["region"].place == f"{path}:5"
    assert from_file(path).plain() == {"trainer": {"max_epochs": 3, "store": {"region": "here"}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer:\n  seed: 1\n  seed: 2\n", "run.yaml:3: 'seed' is given twice, first at "),
        ("trainer: [1,\n", "run.yaml:2: is no YAML: "),
        ("just a text\n", "run.yaml:1: must have keys such as trainer, model, data"),
        ("trainer: !!python/object/apply:os.getcwd []\n", "run.yaml:1: is no YAML: could not"),
        ("trainer:\n  ? [a, b]\n  : 1\n", "run.yaml:2: a key must be a name"),
        ("trainer: &a\n  store: *a\n", "contains itself"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_its_line(written, text, message):
    with pytest.raises(ConfigError) as error:
        from_file(written(text)).plain()
    assert message in str(error.value)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--config .*none.yaml: No such file"):
        from_file(tmp_path / "none.yaml")


def test_an_empty_file_says_nothing(written):
    assert from_file(written("# later\n")).plain() == {}


def test_options_are_read_as_yaml_and_keep_their_text():
    found = from_arguments(
        [
            ("trainer.max_epochs", "3"),
            ("trainer.callbacks", "[{class: EMA}]"),
            ("trainer.fast_dev_run", None),
            ("model", "net:Net"),
            ("model.hidden", "8"),
            ("model.name", "{not: yaml"),
        ]
    )
    assert found.plain() == {
        "trainer": {"max_epochs": 3, "callbacks": [{"class": "EMA"}], "fast_dev_run": True},
        "model": {"class": "net:Net", "hidden": 8, "name": "{not: yaml"},
    }
    assert found.value["trainer"].value["max_epochs"].place == "--trainer.max_epochs"
    with pytest.raises(ConfigError, match="a name is missing between the dots"):
        from_arguments([("trainer..seed", "1")])


def test_variables_are_keys_in_capitals():
    environment = {
        "REKINDLE_TRAINER_MAX_EPOCHS": "3",
        "REKINDLE_TRAINER_STORE__REGION": "here",
        "REKINDLE_MODEL_HIDDEN": "8",
        "REKINDLE_DEVICES": "1",
    }
    found = from_environment(environment)
    assert found.plain() == {
        "trainer": {"max_epochs": 3, "store": {"region": "here"}},
        "model": {"hidden": 8},
    }
    place = found.value["trainer"].value["max_epochs"].place
    assert place == "REKINDLE_TRAINER_MAX_EPOCHS"


def test_what_is_said_later_wins_key_by_key(written):
    first = from_file(written("model: net:Net\ntrainer: {seed: 1, max_epochs: 2}\n"))
    second = from_arguments([("trainer.seed", "7"), ("model.hidden", "8")])
    assert merged(first, second).plain() == {
        "model": {"class": "net:Net", "hidden": 8},
        "trainer": {"seed": 7, "max_epochs": 2},
    }


def test_a_name_that_resembles_no_other_is_answered_with_all():
    assert tree.hint("max_epoch", ["seed", "max_epochs"]) == "did you mean 'max_epochs'?"
    assert tree.hint("x", ["seed", "root"]) == "known are seed, root"
