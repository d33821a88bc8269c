"""What was written where: YAML files, options and variables as one tree of values with places.

The tree's leaves are plain values. Every node knows where it was written, because a message about a
key is worth little without its line. Options and variables are texts, which are read as YAML, so
that ``3`` is a number and ``[1, 2]`` a list; the text is kept for keys that ask for one.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_DEPTH = 50
BLOCKS = ("trainer", "model", "data")
"""The top-level keys that are blocks of their own."""
_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
CLASS = "class"
"""The key that names what a block, or an object inside of one, is made of."""


class ConfigError(ValueError):
    """A configuration is wrong; the message says where, what and what is allowed."""


@dataclass(frozen=True)
class ConfigNode:
    """One value: a scalar, a list of nodes, or nodes by key."""

    value: Any
    place: str
    """``run.yaml:7``, ``--trainer.seed`` or ``REKINDLE_TRAINER_SEED``."""
    text: str | None = None
    """As it was given, for options and variables."""

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


def hint(name: str, known: Iterable[str]) -> str:
    """The rest of a message about a name that is not known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(known)}" if known else "there are none"


def from_file(path: Path) -> ConfigNode:
    """Read a YAML file; raises ConfigError with the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: is no UTF-8 text: {error}") from error
    return _blocks(_yaml(text, lambda line: f"{path}:{line}"))


def from_arguments(options: Sequence[tuple[str, str | None]]) -> ConfigNode:
    """``("trainer.max_epochs", "3")`` and so on; a value of None means that none was given."""
    root = ConfigNode({}, "the command line")
    for name, text in options:
        place = f"--{name}"
        root = merged(root, _blocks(_at(name.split("."), _scalar(text, place), place)))
    return root


def from_environment(environment: Mapping[str, str]) -> ConfigNode:
    """``REKINDLE_TRAINER_MAX_EPOCHS`` and so on; the name is the key in capitals."""
    root = ConfigNode({}, "the environment")
    for name in sorted(environment):
        for block in BLOCKS:
            prefix = f"REKINDLE_{block.upper()}_"
            if name.startswith(prefix):
                path = [block, *name.removeprefix(prefix).lower().split("__")]
                root = merged(root, _at(path, _scalar(environment[name], name), name))
    return root


def merged(first: ConfigNode, second: ConfigNode) -> ConfigNode:
    """Both, key by key; the second wins."""
    if not (isinstance(first.value, dict) and isinstance(second.value, dict)):
        return second
    value = dict(first.value)
    for key, node in second.value.items():
        value[key] = merged(value[key], node) if key in value else node
    return ConfigNode(value, second.place)


def _at(path: Sequence[str], leaf: ConfigNode, place: str) -> ConfigNode:
    for key in reversed(path):
        if not key:
            raise ConfigError(f"{place}: a name is missing between the dots")
        leaf = ConfigNode({key: leaf}, place)
    return leaf


def _blocks(root: ConfigNode) -> ConfigNode:
    """``model: net:Net`` is short for ``model: {class: net:Net}``."""
    if root.value is None:
        return ConfigNode({}, root.place)
    if not isinstance(root.value, dict):
        raise ConfigError(
            f"{root.place}: must have keys such as {', '.join(BLOCKS)}, not just a value"
        )
    value = dict(root.value)
    for key in ("model", "data"):
        node = value.get(key)
        if node is not None and isinstance(node.value, str):
            value[key] = ConfigNode({CLASS: node}, node.place)
    return ConfigNode(value, root.place)


def _scalar(text: str | None, place: str) -> ConfigNode:
    if text is None:
        return ConfigNode(True, place)
    try:
        node = _yaml(text, lambda _line: place)
    except ConfigError:
        # A name may hold what means something else in YAML.
        return ConfigNode(text, place, text)
    return ConfigNode(node.value, place, text)


def _yaml(text: str, place: Any) -> ConfigNode:
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        return ConfigNode(None, place(1)) if root is None else _node(root, loader, place, 0)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{place(line)}: is no YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{place(1)}: is no YAML: {error}") from error
    finally:
        loader.dispose()


def _node(node: Any, loader: Any, place: Any, depth: int) -> ConfigNode:
    import yaml

    here = place(node.start_mark.line + 1)
    if depth > MAX_DEPTH:
        raise ConfigError(f"{here}: nested deeper than {MAX_DEPTH}, or contains itself")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _TAGS:
        raise ConfigError(f"{here}: is no YAML: could not make a {node.tag!r}")
    if isinstance(node, yaml.SequenceNode):
        return ConfigNode([_node(item, loader, place, depth + 1) for item in node.value], here)
    if not isinstance(node, yaml.MappingNode):
        return ConfigNode(loader.construct_object(node), here)
    seen: dict[str, str] = {}
    for key, _ in node.value:
        line = place(key.start_mark.line + 1)
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{line}: a key must be a name")
        if key.value in seen and key.value != "<<":
            raise ConfigError(f"{line}: {key.value!r} is given twice, first at {seen[key.value]}")
        seen[key.value] = line
    loader.flatten_mapping(node)
    found: dict[str, ConfigNode] = {}
    for key, item in node.value:
        child = _node(item, loader, place, depth + 1)
        # A block's place is where its key is.
        found[str(key.value)] = ConfigNode(child.value, place(key.start_mark.line + 1), child.text)
    return ConfigNode(found, here)
