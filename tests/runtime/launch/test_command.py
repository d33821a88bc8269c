"""What comes of a command line: a script, a program, or a refusal that says what to do."""

import pytest

from rekindle.launch.spawn import torchrun_flags
from rekindle.launch.spawn.command import (
    LOCAL_RANK,
    NO_VALUE,
    PYTHON,
    LaunchCommand,
    Program,
    Script,
    command_of,
)

OURS = (PYTHON, "-u", "-m", "rekindle.launch.spawn.worker")
ONE = ("--num_processes", "1", "--num_machines", "1")
SHELL_SCRIPTS = {
    "run.sh": "#!/bin/bash\nset -e\ntorchrun --nproc_per_node=4 train.py",
    "./start": "#!/bin/sh\nexec python train.py",
    "mpi.sh": "#!/bin/sh\nFOO=1 mpirun -np 4 python train.py\n",
}


def understood(*words: str, environment: dict[str, str] | None = None) -> LaunchCommand:
    return command_of(
        words,
        torchrun=lambda given, legacy: torchrun_flags.parse(given, legacy, environment or {}),
        same_python=lambda word: not word.startswith("/other"),
        read=SHELL_SCRIPTS.get,
    )


def script(*words: str, flags: tuple[str, ...] = ()) -> Script:
    return Script(arguments=words, flags=flags)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("python train.py --x 1", script("train.py", "--x", "1")),
        ("python3.11 -u train.py", script("train.py")),
        ("/opt/bin/python3 -uq train.py -u", script("train.py", "-u")),
        ("python -m pkg.mod --x", script("-m", "pkg.mod", "--x")),
        ("python -um pkg.mod -m", script("-m", "pkg.mod", "-m")),
        ("python -mpkg.mod", script("-m", "pkg.mod")),
        ("python -c pass a b", script("-c", "pass", "a", "b")),
        ("python -uc pass", script("-c", "pass")),
        ("python -- train.py", script("train.py")),
        (
            "python -u -X faulthandler -W error train.py",
            script("train.py", flags=("-X", "faulthandler", "-W", "error")),
        ),
        ("python -Xdev -O -m mod", script("-m", "mod", flags=("-Xdev", "-O"))),
        (
            "python --check-hash-based-pycs always train.py",
            script("train.py", flags=("--check-hash-based-pycs", "always")),
        ),
        ("torchrun train.py --x", script("train.py", "--x")),
        ("/usr/bin/torchrun --nnodes 2 train.py --nnodes 3", script("train.py", "--nnodes", "3")),
        ("torchrun -m pkg.mod", script("-m", "pkg.mod")),
        ("torchrun --module pkg.mod --x", script("-m", "pkg.mod", "--x")),
        ("torchrun --run-path /x/train.py", script("/x/train.py")),
        ("python -m torch.distributed.run --standalone train.py", script("train.py")),
        (
            "python -m torch.distributed.launch train.py --x",
            script("train.py", f"--local-rank={LOCAL_RANK}", "--x"),
        ),
        ("python -m torch.distributed.launch --use_env train.py", script("train.py")),
        ("torchrun train.py --gpu ${local_rank}", script("train.py", "--gpu", LOCAL_RANK)),
    ],
)
def test_python_code_is_a_script(line, expected):
    assert understood(*line.split()).target == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("/bin/prog", "a"), Program(arguments=("/bin/prog", "a"))),
        (("bash", "-c", "cd /x && exec python t.py"), None),
        (("./start",), None),
        (("env", "A=1", "python", "t.py"), None),
        (("python", "-I", "t.py"), None),
        (("python", "-uE", "t.py"), None),
        (("python", "--version"), None),
        (("/other/python", "t.py"), None),
        (("accelerate", "env"), None),
        (
            ("torchrun", "--no-python", "prog", "--gpu", "${local_rank}"),
            Program(arguments=("prog", "--gpu", LOCAL_RANK)),
        ),
    ],
)
def test_anything_else_is_a_program_as_it_is_written(words, expected):
    assert understood(*words).target == (expected or Program(arguments=words))


@pytest.mark.parametrize(
    ("words", "nproc"),
    [
        (("bash", "-c", "torchrun train.py"), None),
        (("bash", "-lc", "pip install . && torchrun --nproc_per_node=2 train.py"), "2"),
        (("sh", "-e", "-c", "exec torchrun --nproc-per-node gpu train.py"), "gpu"),
        (("bash", "-c", "(torchrun --nproc_per_node=$N train.py)"), None),
        (("bash", "-c", "python -m torch.distributed.run train.py"), None),
        (("bash", "-o", "pipefail", "-c", "torchrun x.py | tee log"), None),
        (("bash", "run.sh"), "4"),
        (("run.sh",), "4"),
        (("env", "A=1", "torchrun", "--nproc_per_node=2", "x.py"), "2"),
        (("numactl", "-N", "0", "torchrun", "x.py"), None),
        (("tune", "run", "--nproc_per_node", "2", "lora", "--config", "c.yaml"), "2"),
        (("/other/python", "-m", "torch.distributed.run", "x.py"), None),
    ],
)
def test_a_torchrun_within_is_run_once_per_pod(words, nproc):
    command = understood(*words)
    assert command.target == Program(arguments=words, per_pod=True)
    assert command.nproc == nproc
    assert len(command.notes) >= 1


@pytest.mark.parametrize(
    "words",
    [
        ("bash", "-c", "pip install torchrunner; python t.py"),
        ("bash", "-c", "echo mytorchrun"),
        ("tune", "download", "x"),
        ("tune", "run", "full_finetune_single_device", "--config", "c"),
        ("bash", "-c", "pip install deepspeed && python t.py"),
    ],
)
def test_what_only_looks_like_one_is_a_program_for_each_worker(words):
    assert understood(*words).target == Program(arguments=words)


@pytest.mark.parametrize(
    ("line", "kept", "inner", "nproc"),
    [
        ("accelerate launch t.py --x", (), ("t.py", "--x"), None),
        (
            "accelerate launch --num_processes 8 --num_machines=2 --machine_rank 1 "
            "--main_process_ip a --mixed_precision bf16 --multi_gpu t.py --num_processes 3",
            ("--mixed_precision", "bf16"),
            ("t.py", "--num_processes", "3"),
            "4",
        ),
        ("accelerate launch --cpu --quiet -m pkg.mod", ("--cpu",), ("-m", "pkg.mod"), None),
        ("accelerate-launch --cpu t.py", ("--cpu",), ("t.py",), None),
    ],
)
def test_accelerate_starts_one_process_which_is_our_worker(line, kept, inner, nproc):
    command = understood(*line.split())
    begin = line.split()[: 1 if "-launch" in line else 2]
    expected = (*begin, *kept, "--no_python", *ONE, *OURS, *inner)
    assert command.target == Program(arguments=expected, one_gpu=True)
    assert command.nproc == nproc


def test_an_executable_stays_one_under_accelerate():
    found = understood("accelerate", "launch", "--no_python", "prog", "a").target
    assert found.arguments == ("accelerate", "launch", "--no_python", *ONE, "prog", "a")


def test_accelerate_as_a_module():
    line = "python -m accelerate.commands.launch --num_processes 2 t.py"
    found = understood(*line.split()).target
    assert found.arguments == (
        "python", "-m", "accelerate.commands.launch", "--no_python", *ONE, *OURS, "t.py"
    )  # fmt: skip


def test_flags_of_accelerate_without_a_value_are_known():
    launch = pytest.importorskip("accelerate.commands.launch")
    actions = launch.launch_command_parser()._actions
    assert {
        option.lstrip("-").replace("-", "_")
        for action in actions
        if action.nargs == 0
        for option in action.option_strings
        if option.startswith("--")
    } <= NO_VALUE


@pytest.mark.parametrize(
    ("flags", "nproc"),
    [
        ("--nproc_per_node=2", "2"),
        ("--nproc-per-node 1", "1"),
        ("--nproc_per_node gpu", "gpu"),
        ("", None),
    ],
)
def test_how_many_workers_torchrun_is_to_start(flags, nproc):
    assert understood("torchrun", *flags.split(), "t.py").nproc == nproc


def test_variables_of_torchrun_stand_for_flags():
    environment = {"PET_NPROC_PER_NODE": "3", "PET_ROLE": "r", "PET_NNODES": "9"}
    command = understood("torchrun", "t.py", environment=environment)
    assert (command.nproc, command.role) == ("3", "r")
    assert understood("torchrun", "--role=x", "t.py").role == "x"


def test_what_the_round_decides_is_replaced_with_one_line():
    line = (
        "torchrun --nproc_per_node=2 --nnodes=1:4 --max-restarts=3 --rdzv_backend=c10d "
        "--rdzv_endpoint=host:29400 --rdzv_id=7 --rdzv-conf a=b --node_rank 1 --master_addr m "
        "--master_port 1 --tee 3 --log_dir /logs t.py"
    )
    (note,) = understood(*line.split()).notes
    for flag in ("--nnodes", "--max-restarts", "--rdzv-backend", "--master-port", "--log-dir"):
        assert flag in note
    assert "--nproc-per-node" not in note


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("torchrun", "required: training_script"),
        ("torchrun --nnodes=2", "required: training_script"),
        ("torchrun --no-such-flag t.py", "no-such-flag"),
        # torchrun of torch 2.6 refuses it too, because it does not know it.
        ("torchrun --virtual-local-rank t.py", "--virtual-local-rank"),
        ("torchrun --local-ranks-filter=0 t.py", "--local-ranks-filter cannot be had"),
        ("torchrun --max-restarts=x t.py", "--max-restarts"),
        ("torchrun --nproc_per_node=x t.py", "must be auto, gpu, cpu or a number"),
        ("torchrun --help", "runs no script"),
        ("torchrun -m --no-python t.py", "exclude each other"),
        ("python", "standard input"),
        ("python -u", "standard input"),
        ("python -", "standard input"),
        ("python -m", "argument expected for the -m option"),
        ("mpirun -np 4 python t.py", "mpirun starts processes on other machines"),
        ("/usr/bin/deepspeed t.py", "deepspeed starts processes on other machines"),
        ("mpi.sh", "mpirun starts processes"),
        ("accelerate launch --tpu t.py", "--tpu finds other machines"),
        ("accelerate launch --cpu", "names no script"),
    ],
)
def test_what_cannot_be_run_is_refused_with_what_to_do(line, words):
    with pytest.raises(ValueError, match=words):
        understood(*line.split())


@pytest.mark.parametrize("text", ["exec mpirun x", "cd /x; srun x", "A=1 deepspeed t.py"])
def test_foreign_launchers_within_a_shell_are_refused(text):
    with pytest.raises(ValueError, match="starts processes on other machines"):
        understood("bash", "-c", text)


def test_nothing_is_no_command():
    with pytest.raises(ValueError, match="nothing follows --"):
        understood()


def test_each_flag_of_torchrun_is_in_one_class():
    from torch.distributed.run import get_args_parser

    flags = {action.dest for action in get_args_parser()._actions} - {"help"}
    classes = [torchrun_flags.REPLACED, torchrun_flags.OBEYED, set(torchrun_flags.REFUSED)]
    for flag in flags:
        assert sum(flag in each for each in classes) == 1, flag
