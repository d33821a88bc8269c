"""A whole configuration: model, data, trainer, and where to begin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rekindle.config import schema
from rekindle.config.schema import ConfigTarget, convert, fill, named
from rekindle.config.tree import (
    BLOCKS,
    CLASS,
    ConfigError,
    ConfigNode,
    from_arguments,
    from_environment,
    from_file,
    hint,
    merged,
)

ENV_CONFIG = "REKINDLE_CONFIG"
"""A file that is read before those of the command line."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that one run needs, checked and not made yet."""

    trainer: ConfigTarget
    model: ConfigTarget | None = None
    data: ConfigTarget | None = None
    ckpt_path: str | None = None

    def make_trainer(self) -> Any:
        """Make the trainer; what it refuses is told with the place of the flag."""
        try:
            return self.trainer.make()
        except (ValueError, TypeError) as error:
            flag = str(error).split("=")[0].split(" ")[0].removeprefix("Trainer(")
            place = self.trainer.places.get(flag)
            if place is None:
                raise
            raise ConfigError(f"{place}: trainer.{error}") from error


def read(
    files: Sequence[Path] = (),
    options: Sequence[tuple[str, str | None]] = (),
    environment: Mapping[str, str] | None = None,
) -> Config:
    """Put the sources together and check them; raises ConfigError."""
    root = ConfigNode({}, "the configuration")
    environment = environment or {}
    before = [Path(environment[ENV_CONFIG])] if environment.get(ENV_CONFIG) else []
    for path in [*before, *files]:
        root = merged(root, from_file(path))
    root = merged(root, from_environment(environment))
    return checked(merged(root, from_arguments(options)))


def checked(root: ConfigNode) -> Config:
    """The configuration that a tree means."""
    from rekindle.trainer.trainer import Trainer

    keys = [one.name for one in fields(Config)]
    trainers = {one.name for one in fields(schema.schema(Trainer))}
    for key, node in root.value.items():
        if key not in keys:
            known = f"did you mean 'trainer.{key}'?" if key in trainers else hint(key, keys)
            raise ConfigError(f"{node.place}: there is no key {key!r}; {known}")
    blocks = {key: root.value.get(key, ConfigNode({}, root.place)) for key in BLOCKS}
    ckpt_path = root.value.get("ckpt_path", ConfigNode(None, root.place))
    return Config(
        trainer=fill(Trainer, blocks["trainer"], "trainer", "Trainer", closed=True),
        model=_block(blocks["model"], "model"),
        data=_block(blocks["data"], "data"),
        ckpt_path=convert(ckpt_path, str | None, "ckpt_path"),
    )


def _block(block: ConfigNode, where: str) -> ConfigTarget | None:
    if not block.value:
        return None
    if not isinstance(block.value, dict) or CLASS not in block.value:
        raise ConfigError(
            f"{block.place}: {where} names no class; write {where}: {{class: module:Class}}, or "
            f"give --{where} module:Class"
        )
    name = block.value[CLASS]
    if not isinstance(name.value, str):
        raise ConfigError(f"{name.place}: {where}.{CLASS} must be a text such as module:Class")
    return fill(named(name.value, name.place, where), block, where, name.value)


def document(config: Config) -> dict[str, Any]:
    """The configuration with its defaults, as a file would say it."""
    found: dict[str, Any] = {}
    for key in ("model", "data"):
        target = getattr(config, key)
        if target is not None:
            found[key] = {CLASS: target.name, **_with_defaults(target)}
    found["trainer"] = _with_defaults(config.trainer)
    if config.ckpt_path is not None:
        found["ckpt_path"] = config.ckpt_path
    return found


def _with_defaults(target: ConfigTarget) -> dict[str, Any]:
    known = fields(schema.schema(target.kind))
    values = {one.name: schema.default(one) for one in known if not schema.required(one)}
    return {key: _written(value) for key, value in {**values, **target.arguments}.items()}


def _written(value: Any) -> Any:
    if isinstance(value, ConfigTarget):
        named = {CLASS: value.name} if value.name else {}
        return {**named, **{key: _written(item) for key, item in value.arguments.items()}}
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_written(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}:{name}" if module and name else repr(value)
