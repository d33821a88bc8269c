"""``rekindle fit``, ``validate``, ``test`` and ``predict``; also as ``python -m rekindle fit``.

The second form needs nothing but the runtime, so it is what a pod runs: ``python -m rekindle.launch
-m rekindle fit --config run.yaml``.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rekindle.config import schema
from rekindle.config.settings import Config, document, read
from rekindle.config.tree import ConfigError, hint

VERBS = {
    "fit": "train a model",
    "validate": "run the validation loop once",
    "test": "run the test loop once",
    "predict": "run predict_step over the data",
}
USAGE_CODE = 2

_HELP = """\
usage: rekindle {verb} [MODULE:CLASS] [--config FILE] [--model.ARG V] [--data.ARG V] \
[--trainer.FLAG V]

{verb}: {what}.

  MODULE:CLASS        the model, as module:Class or folder/file.py:Class; also --model
  --data M:C          a DataModule, or a function that gives a DataLoader
  --config FILE       YAML with the blocks model, data and trainer; may be repeated
  --ckpt_path PATH    where to begin, as in Trainer.{verb}
  --print-config      print the configuration, defaults included, and end
  -h, --help          print this; with a model, its arguments as well

Later wins: files, then variables such as REKINDLE_TRAINER_MAX_EPOCHS, then options. Values are
YAML; an object is a mapping with the key class: --trainer.callbacks "[{{class: EMA}}]".
"""


@dataclass(frozen=True)
class ConfigCommand:
    """A command line, taken apart."""

    verb: str
    files: tuple[Path, ...]
    options: tuple[tuple[str, str | None], ...]
    help: bool
    show: bool


def parse(arguments: Sequence[str]) -> ConfigCommand:
    """Take a command line apart; raises ConfigError."""
    if not arguments or arguments[0] in ("-h", "--help"):
        raise ConfigError(f"say what to do: {', '.join(VERBS)}; rekindle fit --help tells more")
    verb, *rest = arguments
    if verb not in VERBS:
        raise ConfigError(f"there is no command {verb!r}; {hint(verb, VERBS)}")
    files: list[Path] = []
    options: list[tuple[str, str | None]] = []
    wants_help = show = False
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            wants_help = True
        elif word in ("--print-config", "--print_config"):
            show = True
        elif not word.startswith("--"):
            if any(name == "model" for name, _ in options):
                raise ConfigError(f"{word!r}: there is a model already; options begin with --")
            options.append(("model", word))
        else:
            name, equals, text = word[2:].partition("=")
            value: str | None = text if equals else None
            if not equals and rest and not rest[0].startswith("--"):
                value = rest.pop(0)
            if name == "config":
                if not value:
                    raise ConfigError("--config needs a file")
                files.append(Path(value))
            else:
                options.append((name, value))
    return ConfigCommand(verb, tuple(files), tuple(options), wants_help, show)


def main(arguments: Sequence[str]) -> int:
    """Do what a command line says; gives the exit code."""
    try:
        line = parse(arguments)
        config = None
        try:
            config = read(line.files, line.options, os.environ)
        except ConfigError as error:
            if not line.help:
                raise
            print(f"({error})\n")
        if line.help:
            print(help_text(line.verb, config))
            return 0
        assert config is not None
        if line.show:
            import yaml

            print(yaml.safe_dump(document(config), sort_keys=False), end="")
            return 0
        _run(line.verb, config)
    except ConfigError as error:
        return _refuse(error)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "numpy", "yaml"):
            raise
        return _refuse(
            ConfigError(f"needs {error.name}, which is not here: pip install 'rekindle[runtime]'")
        )
    return 0


def _refuse(error: ConfigError) -> int:
    """Tell people and, in a pod, the agent."""
    from rekindle.api import Cause, ExitCode, Outcome
    from rekindle.ranks.control_page import ControlPage

    print(f"rekindle: {error}", file=sys.stderr)
    page = ControlPage.from_environment()
    if page is None:
        return USAGE_CODE
    rank, code = int(os.environ.get("RANK", "0")), int(ExitCode.USER_ERROR)
    page.write_outcome(
        Outcome(cause=Cause.CONFIGURATION, code=code, message=str(error), rank=rank, at=time.time())
    )
    return code


def _run(verb: str, config: Config) -> None:
    from rekindle.datamodule import DataModule

    if config.model is None:
        raise ConfigError(
            f"there is no model; give it as rekindle {verb} module:Class, or as model: in a file"
        )
    if config.data is None:
        raise ConfigError(
            "there is no data; give --data module:DataModule, or data: in a file (a DataModule, or "
            "a function that gives a DataLoader)"
        )
    trainer = config.make_trainer()
    model, data = config.model.make(), config.data.make()
    given: dict[str, Any] = {"datamodule": data}
    if not isinstance(data, DataModule):
        given = {"train_dataloaders" if verb == "fit" else "dataloaders": data}
    if config.ckpt_path is not None:
        given["ckpt_path"] = config.ckpt_path
    if verb == "predict":
        # Callbacks write them; keeping them would only cost memory.
        given["return_predictions"] = False
    getattr(trainer, verb)(model, **given)


def help_text(verb: str, config: Config | None) -> str:
    """The options of a command, with those of the model and the data when they are known."""
    from rekindle.trainer.trainer import Trainer

    lines = [_HELP.format(verb=verb, what=VERBS[verb])]
    blocks: list[tuple[str, Any]] = [("trainer", Trainer)]
    if config is not None:
        named = [("model", config.model), ("data", config.data)]
        blocks = [(key, target.kind) for key, target in named if target is not None] + blocks
    for key, kind in blocks:
        made = schema.schema(kind)
        lines.append(f"{key}: {kind.__name__}")
        for one in fields(made):
            text = f"  --{key}.{one.name}"
            default = "required"
            if not schema.required(one):
                default = f"default {schema.default(one)!r}"
            lines.append(f"{text:<38} {schema.described(one.type)}; {default}")
        lines.append("")
    lines.append("What the trainer's flags mean:\n")
    lines.append(schema.schema(Trainer).__doc__ or "")
    return "\n".join(lines)
