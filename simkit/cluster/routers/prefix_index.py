"""What a gateway believes the replicas have cached: the content of what it sent to each, the oldest forgotten first."""

from collections import OrderedDict

from simkit.engine.state import I64


class PrefixIndex:
    """Which replicas were sent which content; a replica's is bounded by the size of its cache."""

    def __init__(self) -> None:
        self._seen: dict[int, OrderedDict[int, None]] = {}  # by a replica's number; the most recent last
        self._holders: dict[int, int] = {}  # content id -> the replicas that were sent it, a bit each

    def matches(self, content: I64, numbers: list[int]) -> list[int]:
        """For each replica, how many of the leading ids it was sent."""
        found = dict.fromkeys(numbers, 0)
        mask = sum(1 << number for number in found)
        depth = 0
        for name in content.tolist():
            still = mask & self._holders.get(name, 0)
            gone = mask & ~still
            while gone:
                number = gone.bit_length() - 1
                found[number] = depth
                gone &= ~(1 << number)
            mask = still
            if not mask:
                break
            depth += 1
        while mask:
            number = mask.bit_length() - 1
            found[number] = depth
            mask &= ~(1 << number)
        return [found[number] for number in numbers]

    def size(self, number: int) -> int:
        """How many ids a replica is believed to hold."""
        return len(self._seen.get(number, ()))

    def sent(self, content: I64, number: int, most: int) -> None:
        """A replica, whose cache holds `most` ids, was sent this content."""
        seen = self._seen.setdefault(number, OrderedDict())
        bit = 1 << number
        # from the tail, so that a prefix is forgotten after what follows it
        for name in reversed(content.tolist()):
            if name in seen:
                seen.move_to_end(name)
            else:
                seen[name] = None
                self._holders[name] = self._holders.get(name, 0) | bit
        while len(seen) > most:
            name, _ = seen.popitem(last=False)
            left = self._holders[name] & ~bit
            if left:
                self._holders[name] = left
            else:
                del self._holders[name]
