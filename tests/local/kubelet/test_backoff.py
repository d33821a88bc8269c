from rekindle_local.kubelet.containers.backoff import Backoff


def delays(runs, base=10.0, cap=300.0):
    backoff, out = Backoff(base=base, cap=cap), []
    for ran in runs:
        backoff = backoff.after_run(ran)
        out.append(backoff.delay)
    return out


def test_the_first_restart_is_at_once_and_the_next_ones_double_up_to_the_cap():
    assert delays([1] * 8) == [0, 10, 20, 40, 80, 160, 300, 300]


def test_a_long_run_starts_the_series_anew():
    assert delays([1, 1, 1, 601, 1]) == [0, 10, 20, 0, 10]


def test_a_very_long_series_does_not_overflow():
    assert delays([1] * 5000)[-1] == 300
