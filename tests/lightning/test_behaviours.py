"""What Lightning documents, run by the installed Lightning and by us: the outcomes are the same.

Each function in `behaviours/` is one: ``name(pl, folder)`` gets `lightning.pytorch` and then
`rekindle.pytorch`, runs a script with it in a folder of its own and returns what can be seen of it.
Its docstring says in one line what is documented. Those in a module's ``REFUSED`` are refused
by us, in the words that stand there. `docs/lightning.md` is the list, made by this file with
``REKINDLE_WRITE_DOCS=1``.
"""

import importlib
import importlib.util
import math
import os
import random
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "lightning.md"
HEAD = """# Scripts written for Lightning

Only the first word of an import changes: `import rekindle.pytorch as pl`. This table is made from
`tests/lightning`, where each line is run by the installed Lightning and by Rekindle, and what comes
out is compared. What is refused is refused with a message that says what to write instead.

What differs on purpose, because a run has to be the same after a restart and on any number of
processes:

- A run that was interrupted goes on when its script is started again; one that has ended begins
  anew, as in Lightning. An interrupted one that now gets other hyperparameters is refused.
- Shuffled data have an order of their own, a function of seed and epoch. Evaluation reads data in
  their order, also with `shuffle=True`, and warns.
- A shorter last accumulation of an epoch is the mean over its samples. What is logged by steps is
  the mean over the step where Lightning shows its last batch.
- A validation that is due within the first step of a later epoch comes before that epoch.
- With several processes `batch_idx` counts the batches of all of them, so that it is the same for a
  sample on any number; in manual optimization it counts calls of `training_step`, as in Lightning.
- With several processes `limit_train_batches` and its kin count the batches of all of them
  together: the same samples on any number.
- With several processes a hook that looks at `callback_metrics` within an epoch sees this process'
  newest values; callbacks that monitor, schedulers and the ends of epochs get those of all.
- Loggers get values under the number of steps that are done: 1 after the first one, where
  Lightning's first is 0. Step values of an evaluation, of all processes, come at its end.
- `StochasticWeightAveraging` takes the statistics of BatchNorm anew in a pass that is no epoch: no
  step is counted and no hook runs. A bar of ours is drawn by a thread, and `get_metrics` is asked
  with each report, not with each batch.
- `predict` gives every process the predictions of all of them, in the order of the data.
- `logger=True` writes JSON lines below the root, and without `logger` nothing is written.
- `devices=[0]` also runs where there is no GPU. `configure_model` runs once for each module.
"""


def modules():
    for path in sorted((HERE / "behaviours").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"behaviours_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield path.stem, module


def behaviours():
    found = []
    for area, module in modules():
        refused = getattr(module, "REFUSED", {})
        own = {
            name: value
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
            and not name.startswith("_")
            and callable(value)
        }
        assert set(refused) <= set(own), f"{area}: REFUSED names what is not there"
        found += [(area, name, value, refused.get(name)) for name, value in own.items()]
    return found


FOUND = behaviours()


@pytest.mark.parametrize(
    ("run", "refused"), [pytest.param(f, r, id=f"{area}-{name}") for area, name, f, r in FOUND]
)
def test_it_is_alike_or_refused(run, refused, tmp_path, monkeypatch):
    expected = outcome(run, "lightning.pytorch", tmp_path / "lightning", monkeypatch)
    if refused is not None:
        with pytest.raises(Exception, match=refused):
            outcome(run, "rekindle.pytorch", tmp_path / "rekindle", monkeypatch)
        return
    found = outcome(run, "rekindle.pytorch", tmp_path / "rekindle", monkeypatch)
    assert expected is not None, "a behaviour returns what can be seen of it"
    assert same(found, expected), f"here {found}\nLightning {expected}"


def outcome(run, package, folder, monkeypatch):
    """What a script shows with a package, in a folder of its own."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = dict(os.environ)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return plain(run(importlib.import_module(package), folder))
        finally:
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)
            torch.use_deterministic_algorithms(False)


def plain(value):
    """Tensors and arrays as numbers, sets in order, paths as texts."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a behaviour returns plain values, not {type(value).__name__}")


def same(one, other):
    """Equal, numbers to a millionth: sums may be formed in another order."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        both = math.isnan(one) and math.isnan(other)
        return both or math.isclose(one, other, rel_tol=1e-5, abs_tol=1e-6)
    return type(one) is type(other) and one == other


def test_a_difference_is_seen():
    assert same({"a": [1.0, "x"]}, {"a": [1.0 + 1e-9, "x"]})
    for one, other in (([1], [1, 2]), ({"a": 1}, {"b": 1}), (1.0, 1.01), ("a", "b"), (True, 1)):
        assert not same(one, other)


def test_the_table_in_the_docs_is_of_this_run():
    if os.environ.get("REKINDLE_WRITE_DOCS"):
        TABLE.write_text(table())
    assert TABLE.read_text() == table(), "run: REKINDLE_WRITE_DOCS=1 pytest tests/lightning"
    refused = [name for _, name, _, words in FOUND if words is not None]
    assert len(FOUND) >= 230, "what Lightning documents is a lot"
    assert len(refused) <= 15, "refusing is no feature"


def shown(pattern):
    """A pattern of a message, for people."""
    return re.sub(r"\\(.)", r"\1", pattern.replace(".*", " ... ")).strip().replace("|", "\\|")


def table():
    lines = [HEAD]
    alike = sum(refused is None for *_, refused in FOUND)
    lines.append(f"{len(FOUND)} behaviours: {alike} alike, {len(FOUND) - alike} refused.\n")
    for area in dict.fromkeys(area for area, *_ in FOUND):
        lines.append(f"## {area.replace('_', ' ').capitalize()}\n\n| behaviour | |\n|---|---|")
        for own, name, run, refused in FOUND:
            if own != area:
                continue
            text = " ".join((run.__doc__ or "").split())
            assert text, f"{area}.{name} has no docstring"
            words = "alike" if refused is None else f"refused: {shown(refused)}"
            lines.append(f"| {text.replace('|', chr(92) + '|')} | {words} |")
        lines.append("")
    return "\n".join(lines)
