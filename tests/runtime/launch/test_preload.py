"""What is imported ahead of time, and what must not be."""

import os
import random
import subprocess
import sys
import textwrap
import threading

import numpy.random
import pytest

from rekindle.launch.spawn import preload

HELD = threading.Event()


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    """attempt(module=..., script=...): preload a script with a helper; everything is undone."""
    monkeypatch.setattr(preload, "_base", list)
    monkeypatch.setattr(preload, "_has_children", lambda: False)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    HELD.clear()

    def run(module: str = "", script: str = "import helper", without=()) -> preload.Preloaded:
        (tmp_path / "helper.py").write_text(textwrap.dedent(module))
        (tmp_path / "train.py").write_text(script)
        return preload.preload([str(tmp_path / "train.py"), "--x"], without)

    yield run
    HELD.set()
    if isinstance(file := getattr(sys.modules.get("helper"), "FILE", None), int):
        os.close(file)
    for each in getattr(sys.modules.get("helper"), "PAIR", ()):
        each.close()
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_plain_module_is_shared_and_its_file_remembered(attempt, tmp_path):
    found = attempt("VALUE = 1")
    assert (found.failed, found.unfit) == ((), {})
    assert list(found.files) == [str(tmp_path / "helper.py")]
    assert "helper" in sys.modules
    assert preload.changed(found.files) is None
    (tmp_path / "helper.py").write_text("VALUE = 1234")
    assert preload.changed(found.files) == str(tmp_path / "helper.py")
    (tmp_path / "helper.py").unlink()
    assert preload.changed(found.files) == str(tmp_path / "helper.py")


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("import os\nx = os.environ.get('LOCAL_RANK')", "reads LOCAL_RANK"),
        ("import os\nx = 'WORLD_SIZE' in os.environ", "reads WORLD_SIZE"),
        ("import os\nx = os.getenv('RANK', '0')", "reads RANK"),
        ("import random\nrandom.seed(1)", "uses or seeds random numbers"),
        ("import numpy\nnumpy.random.seed(1)", "uses or seeds random numbers"),
        ("import random\nGENERATOR = random.Random()", "keeps a random generator in helper"),
        ("import numpy\nG = numpy.random.default_rng()", "keeps a random generator in helper"),
        ("import os\nFILE = os.open('/dev/zero', os.O_RDONLY)", "keeps /dev/zero open"),
        ("import socket\nPAIR = socket.socketpair()", "keeps socket:["),
        (
            "import threading, test_preload_held as held\n"
            "threading.Thread(target=held.HELD.wait, daemon=True).start()",
            "starts a thread",
        ),
    ],
)
def test_what_a_fork_cannot_share_is_unfit_with_its_reason(attempt, monkeypatch, module, why):
    # To seed them as they are would change nothing.
    random.seed(2)
    numpy.random.seed(2)
    monkeypatch.setitem(sys.modules, "test_preload_held", sys.modules[__name__])
    found = attempt(module)
    assert list(found.unfit) == ["helper"]
    assert why in found.unfit["helper"]


DRAWS = "import random, numpy\nrandom.random(), numpy.random.random()"


@pytest.mark.parametrize(
    "draws", [DRAWS, f"{DRAWS}\nx = numpy.random.random(5000), random.randbytes(9999)"]
)
def test_an_installed_package_may_draw_random_numbers(attempt, monkeypatch, tmp_path, draws):
    assert "random numbers" in attempt(draws).unfit["helper"]
    del sys.modules["helper"]
    monkeypatch.setattr(preload, "_INSTALLED", (f"{tmp_path}{os.sep}",))
    assert attempt(draws).unfit == {}


@pytest.mark.parametrize(
    "module",
    [f"{DRAWS}\nrandom.seed(7)", f"{DRAWS}\nnumpy.random.seed(7)", "import random\nrandom.seed()"],
)
def test_an_installed_package_may_not_seed_them(attempt, monkeypatch, tmp_path, module):
    monkeypatch.setattr(preload, "_INSTALLED", (f"{tmp_path}{os.sep}",))
    assert "random numbers" in attempt(module).unfit["helper"]


def test_a_rank_that_a_known_module_keeps_is_put_right_in_each_worker(attempt, monkeypatch):
    monkeypatch.setattr(preload, "RANKED", {"helper": ("RANK", "LOCAL_RANK"), "absent": ("RANK",)})
    found = attempt(
        """
        import os
        def rank_zero_only(): ...
        rank_zero_only.rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
        """
    )
    assert found.unfit == {}
    kept = sys.modules["helper"].rank_zero_only
    for variable, rank in (("LOCAL_RANK", 3), ("RANK", 7)):
        monkeypatch.setenv(variable, str(rank))
        preload.set_ranks()
        assert kept.rank == rank
    for variable in ("LOCAL_RANK", "RANK"):
        monkeypatch.delenv(variable)
    preload.set_ranks()
    assert kept.rank == 0


@pytest.mark.processes
@pytest.mark.parametrize("name", sorted(preload.RANKED))
def test_the_known_modules_keep_the_rank_where_it_is_looked_for(name):
    pytest.importorskip(name.partition(".")[0])
    code = f"from {name} import rank_zero_only; print(rank_zero_only.rank)"
    variables = {variable: str(5 + n) for n, variable in enumerate(preload.RANKED[name])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **variables},
    )
    assert done.stdout == "5\n"


def test_other_variables_may_be_read_and_the_environment_is_itself_again(attempt, monkeypatch):
    plain = type(os.environ)
    found = attempt(
        "import os\nx = os.environ.get('HOME'), dict(os.environ)\nos.environ['NEW'] = '1'"
    )
    monkeypatch.delenv("NEW")
    assert found.unfit == {}
    assert type(os.environ) is plain
    assert "reads" not in vars(os.environ)


@pytest.mark.parametrize("error", ["import nothing_like_it", "1 / 0", "raise SystemExit(3)"])
def test_an_import_that_fails_is_noted_and_left_to_the_script(attempt, error):
    found = attempt(error)
    assert found.failed[0].startswith("helper: ")
    assert found.unfit == {}
    assert "helper" not in sys.modules


@pytest.mark.parametrize("without", [("helper",), ("*",)])
def test_what_was_unfit_is_not_imported_again(attempt, without):
    found = attempt("raise AssertionError", "import helper, json", without)
    assert (found.failed, found.unfit) == ((), {})


def test_a_script_that_is_no_python_is_noted(attempt):
    assert "SyntaxError" in attempt(script="def f(:").failed[0]


def test_a_module_is_found_with_its_package_and_its_relative_imports(
    attempt, tmp_path, monkeypatch
):
    (tmp_path / "pack").mkdir()
    for name, text in {"__init__": "", "train": "from . import model", "model": "x = 1"}.items():
        (tmp_path / "pack" / f"{name}.py").write_text(text)
    found = preload.preload(["-m", "pack.train"])
    assert found.failed == ()
    assert {os.path.basename(path) for path in found.files} == {"__init__.py", "model.py"}
    assert "pack.train" not in sys.modules


@pytest.mark.parametrize(("command", "folder"), [(["-m", "x"], None), (["a/b.py"], "a")])
def test_the_folder_of_a_script_comes_first_in_the_path(command, folder, monkeypatch):
    monkeypatch.setattr(sys, "path", ["first", "second"])
    monkeypatch.setattr(sys, "argv", [])
    from rekindle.launch.spawn.worker import prepare

    prepare([*command, "--x"])
    assert sys.path[0] == (os.path.realpath(folder) if folder else "first")
    assert sys.argv == [command[-1], "--x"]
