"""A session always goes to the same replica, and when replicas come or go, few sessions move: consistent hashing.

Source: D. Karger et al., Consistent Hashing and Random Trees, STOC 1997.
"""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from simkit.cluster.routers.router import View
from simkit.engine.state import I64
from simkit.workloads.workload import Workload

U64 = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]
Key = Literal["session", "request", "prefix"]


class ConsistentHash(BaseModel):
    """Stickiness without a table: the first point of a ring after the key's hash names the replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Key = Field(default="session", description="session: requests without one go by themselves; or prefix")
    points: int = Field(default=160, ge=1, le=100_000, description="of each replica on the ring")

    def router(self, rng: np.random.Generator) -> "Ring":
        """It draws nothing from `rng`."""
        return Ring(self.key, self.points)


class Sticky(ConsistentHash):
    """The same by session: a chat finds its context in the cache."""


class Ring:
    """Points of replicas on a circle of 2^64."""

    def __init__(self, key: Key, points: int) -> None:
        self._key = key
        self._points = points
        self._members: tuple[int, ...] = ()
        self._at: U64 = np.zeros(0, dtype=np.uint64)
        self._owner: I64 = np.zeros(0, dtype=np.int64)

    def shares(self, workload: Workload, replicas: int) -> I64:
        """[n] the replica of each request."""
        self._place(tuple(range(replicas)))
        rows = np.arange(len(workload), dtype=np.int64)
        keys = rows.astype(np.uint64)
        if self._key == "prefix" and workload.prefixes is not None:
            start = workload.prefixes.start
            named = start[1:] > start[:-1]
            keys[named] = mixed(workload.prefixes.ids[start[:-1][named]].astype(np.uint64))
        elif self._key == "session" and workload.session_id is not None:
            names = np.array([hash_of(name) for name in workload.session_id], dtype=np.uint64)
            keys = np.where(np.array([bool(name) for name in workload.session_id]), names, keys)
        found = np.searchsorted(self._at, mixed(keys), side="left") % len(self._at)
        return self._owner[found]

    def choose(self, request: int, fleet: View) -> int:
        """The replica that the ring names, among those that are there."""
        self._place(tuple(fleet.number(replica) for replica in range(len(fleet))))
        key = np.array([self._key_of(request, fleet)], dtype=np.uint64)
        found = int(np.searchsorted(self._at, mixed(key), side="left")[0]) % len(self._at)
        return int(self._owner[found])

    def _key_of(self, request: int, fleet: View) -> int:
        if self._key == "prefix":
            content = fleet.content(request)
            return int(mixed(content[:1].astype(np.uint64))[0]) if len(content) else request
        if self._key == "session" and fleet.session(request):
            return hash_of(fleet.session(request))
        return request

    def _place(self, members: tuple[int, ...]) -> None:
        """Put the members' points on the ring, if they are others than before."""
        if members == self._members:
            return
        self._members = members
        number = np.repeat(np.array(members, dtype=np.uint64), self._points)
        point = np.tile(np.arange(self._points, dtype=np.uint64), len(members))
        at = mixed((number << np.uint64(32)) + point + np.uint64(1 << 63))
        order = np.argsort(at, kind="stable")
        self._at = at[order]
        self._owner = np.repeat(np.arange(len(members)), self._points)[order]


def mixed(value: U64) -> U64:
    """[n] a hash of each number: the finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: U64 = value ^ (value >> np.uint64(31))
    return hashed


def hash_of(name: str) -> int:
    """A hash of a text that is the same in every process: FNV-1a, 64 bit."""
    hashed = 0xCBF29CE484222325
    for byte in name.encode():
        hashed = ((hashed ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return hashed
