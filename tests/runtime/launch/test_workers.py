"""The processes of a round, where starting them does not get far."""

from rekindle.launch.workers import Prefixer


def test_a_prefixer_that_has_not_begun_can_be_stopped():
    Prefixer().stop()
