import sys

import pytest

from rekindle_local.network.addresses import ClusterAddresses, NodeAddresses

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux has all of 127.0.0.0/8"
)


def test_two_clusters_and_their_nodes_have_different_addresses():
    first, second = ClusterAddresses(), ClusterAddresses()
    try:
        taken = [first.node().node_ip, first.node().node_ip, second.node().node_ip]
    finally:
        first.close()
        second.close()
    assert len(set(taken)) == 3


def test_the_same_cluster_gets_the_same_addresses_again():
    first = ClusterAddresses()
    address = first.node().take()
    first.close()
    second = ClusterAddresses()
    assert second.node().take() == address
    second.close()


def test_a_released_address_is_taken_again_as_late_as_possible():
    node = NodeAddresses("127.64.0")
    first = node.take()
    node.release(first)
    others = [node.take() for _ in range(252)]
    assert first not in others
    assert node.take() == first
    with pytest.raises(RuntimeError, match="all 253 pod addresses"):
        node.take()


def test_without_a_block_everybody_shares_one_address():
    node = NodeAddresses(None)
    assert node.take() == node.take() == node.node_ip == "127.0.0.1"
