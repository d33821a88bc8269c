"""What scripts say of their progress, in good and in bad shape."""

import json

import pytest

from rekindle.api import Progress
from rekindle.launch.health.progress_readers import (
    Course,
    HuggingFace,
    ProgressSource,
    Reading,
    from_json,
    lines_of,
    reader_of,
    source_of,
    text,
)

DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"step": 3}', Reading(step=3)),
        (
            b'{"step": 3, "totalSteps": 10, "epoch": 1, "loss": 0.5, "samples": 64, "lr": 1e-3}',
            Reading(step=3, total=10, epoch=1, loss=0.5, samples=64),
        ),
        (b'{"step": 3, "total_steps": 10}', Reading(step=3, total=10)),
        (b'{"step": 3.0, "epoch": 0.75}', Reading(step=3, epoch=0)),
        (b'{"step": "1,200"}', Reading(step=1200)),
        (b'{"step": 3, "loss": NaN}', Reading(step=3)),
        (b'{"step": 3, "loss": Infinity}', Reading(step=3)),
        (b'{"step": 3, "loss": 1e999, "epoch": -1, "samples": "x"}', Reading(step=3)),
        (b'{"step": 3, "loss": [1], "totalSteps": {}}', Reading(step=3)),
        (b'{"step": true}', None),
        (b'{"step": -1}', None),
        (b'{"step": 1e300}', None),
        (b'{"step": NaN}', None),
        (b'{"step": null, "loss": 1}', None),
        (b'{"loss": 1}', None),
        (b'{"step": 3', None),
        (b"[3]", None),
        (b"3", None),
        (b"", None),
        (b"\xff\xfe\x00", None),
        (DEEP, None),
        (b'{"step": ' + b"9" * 5000 + b"}", None),
    ],
)
def test_a_line_of_json_is_a_reading_or_none(line, expected):
    assert from_json(line) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ProgressSource()),
        ("", ProgressSource()),
        ("{}", ProgressSource()),
        ('{"file": "p.jsonl"}', ProgressSource(file="p.jsonl")),
        ('{"file": "p.jsonl", "tensorboard": null, "log": null}', ProgressSource(file="p.jsonl")),
        ('{"tensorboard": "runs"}', ProgressSource(tensorboard="runs")),
        ('{"log": {"preset": "huggingface"}}', ProgressSource(preset="huggingface")),
        (
            '{"log": {"preset": "huggingface", "pattern": null}}',
            ProgressSource(preset="huggingface"),
        ),
    ],
)
def test_where_progress_is_shown(given, expected):
    assert source_of(given) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{", "no JSON"),
        ("[]", "must hold one of"),
        ('{"file": "a", "tensorboard": "b"}', "must hold one of"),
        ('{"log": {}}', None),
        ('{"log": {"pattern": "x", "preset": "huggingface"}}', "must hold one of"),
        ('{"log": {"preset": "keras"}}', "must be one of: huggingface"),
        ('{"log": {"pattern": "(?P<step>"}}', "no regular expression"),
        (r'{"log": {"pattern": "step (\\d+)"}}', "no group named step"),
        ('{"file": 3}', "must hold one of"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_with_what_is_allowed(given, words):
    if words is None:
        assert source_of(given) == ProgressSource()
        return
    with pytest.raises(ValueError, match=words):
        source_of(given)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("step 12/100 loss=0.25", Reading(step=12, total=100, loss=0.25)),
        ("INFO step 12/100 loss=nan", Reading(step=12, total=100)),
        ("step x/100 loss=1", None),
        ("", None),
        ("step 1/2 loss=" + "1" * 100_000, Reading(step=1, total=2)),
    ],
)
def test_a_pattern_finds_numbers_in_a_line(line, expected):
    pattern = r"step (?P<step>\d+)/(?P<total>\d+) loss=(?P<loss>\S+)"
    assert reader_of(source_of(json.dumps({"log": {"pattern": pattern}})))(line) == expected


# As transformers' Trainer prints it: a data set's bar, its own, an evaluation's, and logs.
HUGGINGFACE = [
    ("Map: 100%|##########| 5000/5000 [00:01<00:00, 4000 examples/s]", None),
    ("Loading checkpoint shards:  50%|#####     | 1/2 [00:01<00:01,  1.2s/it]", None),
    ("  0%|          | 0/1000 [00:00<?, ?it/s]", Reading(step=0, total=1000)),
    (" 10%|#         | 100/1000 [00:10<01:30, 10.0it/s]", Reading(step=100, total=1000)),
    (
        "{'loss': 0.5, 'grad_norm': 1.2, 'learning_rate': 5e-05, 'epoch': 0.5}",
        Reading(step=100, total=1000, epoch=0, loss=0.5),
    ),
    ("  4%|4         | 1/25 [00:00<00:01, 20.0it/s]", None),
    ("{'eval_loss': 0.7, 'eval_runtime': 1.0, 'epoch': 1.0}", None),
    (" 20%|##        | 200/1000 [00:20<01:20, 10.0it/s]", Reading(step=200, total=1000)),
    (
        "{'loss': '0.25', 'learning_rate': '4e-05', 'epoch': '2'}",
        Reading(step=200, total=1000, epoch=2, loss=0.25),
    ),
    ("{'loss': nan, 'epoch': 2.0}", Reading(step=200, total=1000, epoch=2)),
    ("{'train_runtime': 9.1, 'train_loss': 0.3, 'epoch': 3.0}", Reading(
        step=200, total=1000, epoch=3)),
    ("300%|##| 3000/1000 [00:20<", None),
    ("an ordinary line {with braces}", None),
]  # fmt: skip


def test_lines_of_transformers():
    reader = HuggingFace()
    assert [(line, reader(line)) for line, _ in HUGGINGFACE] == HUGGINGFACE


def test_an_evaluation_before_training_is_not_taken_for_it_any_more_once_a_loss_is_logged():
    reader = HuggingFace()
    for line in ("  0%| | 0/7 [00:00<", "100%|#| 7/7 [00:01<", "  0%| | 1/90 [00:00<"):
        reader(line)
    assert reader("{'loss': 1.0, 'epoch': 0.1}") == Reading(step=1, total=90, epoch=0, loss=1.0)
    assert reader("  2%| | 2/90 [00:00<") == Reading(step=2, total=90)
    assert reader("  0%| | 1/7 [00:00<") is None


def course(*readings: Reading, forward: bool = False) -> Progress | None:
    done = Course()
    for reading in readings:
        done = done.read(reading, forward=forward)
    return done.progress


@pytest.mark.parametrize(
    ("steps", "step", "round_steps"),
    [
        ([0], 0, 0),
        ([0, 1], 1, 1),
        ([1, 2, 3], 3, 3),
        ([500], 500, 1),
        ([500, 501, 520], 520, 21),
        ([10, 11, 5, 6], 6, 2),
    ],
    ids=["none done", "one", "from the first", "goes on", "goes on further", "goes back"],
)
def test_steps_of_a_round_are_counted_from_its_first_word(steps, step, round_steps):
    found = course(*(Reading(step=each) for each in steps))
    assert (found.step, found.round_steps) == (step, round_steps)


def test_a_log_does_not_go_back():
    assert course(Reading(step=9), Reading(step=3), forward=True).step == 9


def test_what_a_reading_leaves_out_stays():
    found = course(
        Reading(loss=9.0),
        Reading(step=1, total=10, samples=8),
        Reading(loss=0.5, epoch=1),
        Reading(step=2),
    )
    assert (found.step, found.total_steps, found.samples) == (2, 10, 8)
    assert (found.loss, found.epoch) == (0.5, 1)


def test_a_loss_without_any_step_is_no_progress():
    assert course(Reading(loss=1.0)) is None


def test_lines_end_with_any_mark_and_what_never_ends_is_bounded():
    assert lines_of(b"a", b"b\r\nc\rd\n\ne") == ([b"ab", b"c", b"d"], b"e")
    _, rest = lines_of(b"", b"x" * 1_000_000)
    assert len(rest) < 100_000


def test_colours_of_a_terminal_are_no_text():
    assert text(b"\x1b[32mstep\x1b[0m 3\xff") == "step 3�"
