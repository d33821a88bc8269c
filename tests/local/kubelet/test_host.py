from pathlib import Path

from rekindle_local.kubelet.host import memory_prefix, stale_memory, tmp_root


def test_temporary_directories_are_in_the_state_directory_while_that_is_short():
    assert tmp_root(Path("/tmp/cluster-x/node-0")) == Path("/tmp/cluster-x/node-0/tmp")


def test_a_long_state_directory_gets_a_short_one_of_its_own():
    long = Path("/very") / ("long" * 30)
    assert len(str(tmp_root(long))) < 40
    assert tmp_root(long) != tmp_root(long / "other")


def test_memory_of_an_earlier_kubelet_and_of_dead_ones_is_stale(tmp_path):
    here, elsewhere = Path("/a/node-0"), Path("/a/node-1")
    dead = 2**22 + 1  # above the largest process number Linux gives
    names = {
        "mine": f"{memory_prefix(here)}uid-volume",
        "living": f"{memory_prefix(elsewhere)}uid-volume",
        "dead": f"kubelet-00000000-{dead}-uid-volume",
        "foreign": "something-else-1-x",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    found = {path.name for path in stale_memory(here, tmp_path)}
    assert found == {names["mine"], names["dead"]}
