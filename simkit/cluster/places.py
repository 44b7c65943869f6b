"""Where the replicas of a cluster stand: which pool each belongs to, and on which machine it is."""

from simkit.cluster.settings import Cluster


def places_of(cluster: Cluster) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """((pool, node) of each replica that is there from the start, by number; each pool's node for what scaling adds).

    A pool fills its nodes one after the other; what scaling adds to it is on one more.
    """
    there: list[tuple[str, int]] = []
    added: dict[str, int] = {}
    node = 0
    for pool in cluster.all_pools():
        count = pool.replicas * pool.data_parallel
        there += [(pool.name, node + i // pool.per_node) for i in range(count)]
        node += -(-count // pool.per_node)
        added[pool.name] = node
        node += 1
    return there, added
