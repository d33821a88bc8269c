"""What workers print, on its way to the log."""

from rekindle.launch.spawn.streams import Copier


def test_a_copier_that_has_not_begun_can_be_stopped():
    Copier().stop()
