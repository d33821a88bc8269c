"""Metrics over ranks: their sums travel together, and nothing is lost on the way."""

import copy

import pytest
import torch

from rekindle.model import metrics


@pytest.fixture(scope="module")
def torchmetrics():
    import torchmetrics

    return torchmetrics


class Ranks:
    """Adds up what several ranks give to `all_reduce`, one rank after the other."""

    def __init__(self):
        self.buffers = []

    def run(self, groups):
        for group in groups:
            metrics.sum_over_ranks(group, lambda buffer: self.buffers.append(buffer.clone()))
        total = torch.stack(self.buffers).sum(0)
        return [metrics.sum_over_ranks(group, lambda b: b.copy_(total)) for group in groups]


def test_all_sums_travel_in_one_buffer_and_equal_those_of_one_process(torchmetrics):
    from torchmetrics.classification import BinaryAccuracy, MulticlassConfusionMatrix

    kinds = [BinaryAccuracy(), MulticlassConfusionMatrix(3), torchmetrics.MeanMetric()]
    generator = torch.Generator().manual_seed(0)
    alone, groups = copy.deepcopy(kinds), [copy.deepcopy(kinds) for _ in range(3)]
    for rank in range(3):
        labels = torch.randint(0, 3, (2, 11), generator=generator)
        mean = torch.rand(11, generator=generator).double().float()
        for accuracy, matrix, average in (alone, groups[rank]):
            accuracy.update((labels[0] > 0).long(), (labels[1] > 0).long())
            matrix.update(*labels)
            average.update(mean)
    ranks = Ranks()
    done = ranks.run(groups)
    assert len(ranks.buffers) == 3, "one all-reduce of each rank"
    assert done == [{id(metric) for metric in group} for group in groups]
    for metric, expected in zip(groups[1], alone, strict=True):
        for name, value in expected.metric_state.items():
            assert getattr(metric, name).dtype == value.dtype
            assert torch.allclose(getattr(metric, name), value, rtol=1e-6)
    assert metrics.value_of(groups[1][0], summed=True) == metrics.value_of(alone[0])


@pytest.mark.parametrize("big", [2**53 + 1, -(2**60) - 7, 5])
def test_counts_stay_exact_where_a_float_would_not(torchmetrics, big):
    class Count(torchmetrics.Metric):
        def __init__(self):
            super().__init__()
            self.add_state("seen", torch.tensor([big, 1]), dist_reduce_fx="sum")

        def update(self):
            pass

        def compute(self):
            return self.seen

    groups = [[Count()], [Count()], [Count()]]
    Ranks().run(groups)
    assert groups[0][0].seen.tolist() == [3 * big, 3]


def test_what_is_no_sum_is_left_to_torchmetrics(torchmetrics):
    given = [torchmetrics.MaxMetric(), torchmetrics.CatMetric()]
    given.append(torchmetrics.MeanMetric(sync_on_compute=False))
    assert metrics.sum_over_ranks(given, lambda _: pytest.fail("nothing to sum")) == set()
