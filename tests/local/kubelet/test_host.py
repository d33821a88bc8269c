from pathlib import Path

from rekindle_local.kubelet.host import memory_prefix, tmp_root


def test_temporary_directories_are_in_the_state_directory_while_that_is_short():
    assert tmp_root(Path("/tmp/cluster-x/node-0")) == Path("/tmp/cluster-x/node-0/tmp")


def test_a_long_state_directory_gets_a_short_one_of_its_own():
    long = Path("/very") / ("long" * 30)
    assert len(str(tmp_root(long))) < 40
    assert tmp_root(long) != tmp_root(long / "other")


def test_memory_directories_of_two_nodes_do_not_mix():
    assert memory_prefix(Path("/a/node-0")) != memory_prefix(Path("/a/node-1"))
