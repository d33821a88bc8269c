import pytest

from rekindle import Callback, Store, audit
from rekindle.callbacks import BatchSizeSchedule, GradientAccumulationScheduler

pytestmark = pytest.mark.processes


class Sizes(Callback):
    """Samples of each optimizer step."""

    def __init__(self):
        self.steps = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        self.steps[step] = self.steps.get(step, 0) + len(batch[1])


def schedules():
    return [
        (lambda: BatchSizeSchedule({0: 4, 1: 8, 2: 12}), [4] * 5 + [8, 8, 4, 12, 8]),
        (lambda: BatchSizeSchedule({2: 8, 6: 4}, interval="step"), [4, 4, 8, 4, 8, 8, 4, 4, 4]),
        (lambda: GradientAccumulationScheduler({0: 2, 2: 5}), [8, 8, 4, 8, 8, 4, 20]),
    ]


@pytest.mark.parametrize(("make", "begins"), schedules())
def test_the_batch_grows_and_every_sample_is_used_once_across_a_resume(
    fit, same, tmp_path, make, begins
):
    whole, first, second = Sizes(), Sizes(), Sizes()
    expected = fit(make(), whole, root="whole")
    assert list(whole.steps.values())[: len(begins)] == begins
    assert sum(whole.steps.values()) == 60
    fit(make(), first, stop=6)
    trainer = fit(make(), second)
    assert first.steps | second.steps == whole.steps
    assert same(trainer, expected)
    store = Store.open(str(tmp_path / "run"))
    assert audit(store.read(store.commits()[0]).meta).exact


def test_accumulation_has_one_master(fit):
    with pytest.raises(ValueError, match="needs accumulate_grad_batches=1"):
        fit(GradientAccumulationScheduler({0: 2}), accumulate_grad_batches=2)


@pytest.mark.parametrize("bad", [{}, {-1: 4}, {0: 0}, {0.5: 4}])
def test_an_impossible_schedule_is_refused(bad):
    with pytest.raises((ValueError, TypeError), match="BatchSizeSchedule"):
        BatchSizeSchedule(bad)
    with pytest.raises(ValueError, match="allowed are 'epoch' and 'step'"):
        BatchSizeSchedule({0: 4}, interval="hour")
