import pytest
import torch

from rekindle.errors.requirement import RequirementError
from rekindle.metrics.logged_values import Logs, flattened, means, merged, newest, plain, reported


def mean_metric():
    from torchmetrics import MeanMetric  # a second and a half that few workers need

    return MeanMetric()


def logs():
    module = torch.nn.Module()
    module.metric = mean_metric()
    return Logs(module), module


def named(values):
    """By the names that people see."""
    return {reported(name): value for name, value in values.items()}


def note(book, name, value, **options):
    chosen = {"prog_bar": False, "on_step": None, "on_epoch": None, "batch_size": None, **options}
    book.note(name, value, *chosen.values())


def test_an_epoch_value_is_the_mean_over_all_samples():
    book, _ = logs()
    metric = mean_metric()
    for value, size in [(1.0, 4), (2.0, 4), (5.0, 1)] * 50:
        book.batch_size = size
        note(book, "loss", torch.tensor(value), on_epoch=True, on_step=False)
        metric.update(value, weight=size)
    assert means([book.epoch_pairs("train")])["loss"] == pytest.approx(float(metric.compute()))


def test_where_values_are_folded_does_not_change_the_sum():
    values = torch.rand(200, generator=torch.Generator().manual_seed(0))
    sums = []
    for cut in (1, 7, 64, 1000):
        book, _ = logs()
        for index, value in enumerate(values):
            note(book, "v", value, on_epoch=True)
            if index % cut == 0:
                book.state()
        sums.append(named(book.epoch_pairs("train"))["v_epoch"])
    assert len(set(sums)) == 1


def test_a_step_value_is_the_mean_over_the_newest_step_that_had_one():
    book, other = logs()[0], logs()[0]
    for step, start, value, size in [(0, 0, 9.0, 4), (1, 0, 1.0, 4), (1, 4, 4.0, 2)]:
        book.step, book.lane, book.batch_size = step, start, size
        note(book, "loss", torch.tensor(value))
    other.step = 0
    note(other, "loss", torch.tensor(100.0))
    assert newest([book.take_steps(0), other.take_steps(0)]) == {"loss": 2.0}


def test_values_of_an_older_report_are_not_reported_again():
    book, _ = logs()
    note(book, "loss", 1.0)
    assert book.take_steps(1) == {}


def test_ranks_may_log_different_names():
    assert means(
        [{"a": (2.0, 2.0, "mean")}, {"b": (9.0, 3.0, "mean"), "a": (4.0, 1.0, "mean")}]
    ) == {"a": 2.0, "b": 3.0}


def test_with_step_and_epoch_names_get_suffixes():
    book, _ = logs()
    note(book, "loss", 1.0, on_step=True, on_epoch=True)
    assert list(named(book.take_steps(0))) == ["loss_step"]
    assert list(named(book.epoch_pairs("train"))) == ["loss_epoch"]
    assert {plain(name) for name in (*book.take_steps(0), *book.epoch_pairs("train"))} == {"loss"}


def test_phases_keep_their_values_apart():
    book, _ = logs()
    note(book, "loss", 1.0, on_epoch=True, on_step=False)
    book.enter("validation")
    note(book, "loss", 3.0)
    assert book.epoch_pairs("train") == {"loss": (1.0, 1.0, "mean")}
    assert book.epoch_pairs("validation") == {"loss": (3.0, 1.0, "mean")}
    book.clear("validation")
    assert book.epoch_pairs("validation") == {}


def test_a_running_epoch_survives_a_restart_on_any_number_of_ranks():
    parts = []
    for rank in range(3):
        book, module = logs()
        note(book, "loss", float(rank), on_epoch=True)
        module.metric.update(rank)
        note(book, "mean", module.metric)
        parts.append(book.state())
    book, _ = logs()
    book.restore(merged(parts))
    assert named(book.epoch_pairs("train")) == {"loss_epoch": (3.0, 3.0, "mean")}
    assert book.epoch_metrics("train") == {"mean": "metric"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (3, 1.0, r"R6 metric key 3 \(int\) is not a string"),
        ("", 1.0, "R6 metric key '' is empty"),
        ("epoch", 1.0, "R6 metric key 'epoch' is reserved"),
        ("conf", torch.zeros(10, 10), r"R6 metric 'conf' has shape \[10,10\]; log a scalar"),
        ("text", "x", "R6 metric 'text' is a str"),
        ("foreign", mean_metric, "R6 metric 'foreign' is a MeanMetric that the module does not"),
    ],
)
def test_a_bad_metric_is_named(name, value, message):
    value = value() if callable(value) else value
    with pytest.raises(RequirementError, match=message):
        note(logs()[0], name, value)


def test_logging_nowhere_is_refused():
    with pytest.raises(RequirementError, match="nothing would be reported"):
        note(logs()[0], "x", 1.0, on_step=False, on_epoch=False)


def test_nested_results_are_joined_by_slashes():
    assert flattened({"val": {"a": 1, "b": {"c": 2}}}) == {"val/a": 1, "val/b/c": 2}
    with pytest.raises(RequirementError, match="R6 metric key 3"):
        flattened({"val": {3: 1}})


def test_noting_a_tensor_does_not_read_it(monkeypatch):
    def read(*_):
        raise AssertionError("a value was read on the hot path")

    book, _ = logs()
    for name in ("item", "tolist", "__float__", "__bool__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, read)
    value = torch.tensor(1.0)
    for _ in range(20):
        note(book, "loss", value, on_epoch=True)
    with pytest.raises(AssertionError, match="hot path"):
        book.take_steps(0)


@pytest.mark.parametrize(
    ("reduce_fx", "whole"),
    [("sum", 21.0), ("max", 6.0), ("min", 0.0), (torch.max, 6.0), (sum, 21.0), ("avg", 3.0)],
)
def test_a_reduction_is_the_same_over_ranks_folds_and_a_restart(reduce_fx, whole):
    parts = []
    for rank in range(2):
        book, _ = logs()
        for value in range(7)[rank::2]:
            note(book, "x", torch.tensor(float(value)), on_epoch=True, logger=True, how=reduce_fx)
            if value % 3 == 0:
                book.restore(book.state())
        parts.append(book)
    assert named(means([book.epoch_pairs("train") for book in parts])) == {"x_epoch": whole}
    again, _ = logs()
    again.restore(merged([book.state() for book in parts]))
    assert named(means([again.epoch_pairs("train")])) == {"x_epoch": whole}


def test_a_reduction_that_is_not_known_is_refused():
    with pytest.raises(RequirementError, match="R6 metric 'x': reduce_fx=.* allowed are 'mean'"):
        note(logs()[0], "x", 1.0, logger=True, how="median")


def test_the_largest_of_something_that_is_no_number_is_none():
    for values in ([float("nan"), 1.0], [1.0, float("nan")]):
        book, _ = logs()
        for value in values:
            note(book, "x", value, on_step=False, on_epoch=True, logger=True, how="max")
        assert means([book.epoch_pairs("train")])["x"] != 1.0


def test_values_of_several_loaders_are_told_apart():
    book, _ = logs()
    book.enter("test")
    for loader in (0, 1):
        book.loader = loader
        note(book, "x", float(loader))
        note(book, "all", float(loader), logger=True, how="mean", each=False)
    assert means([book.epoch_pairs("test")]) == {
        "x/dataloader_idx_0": 0.0,
        "all": 0.5,
        "x/dataloader_idx_1": 1.0,
    }
