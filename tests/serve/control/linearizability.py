"""Finds in a log of what writers and readers saw whatever a register with compare-and-set must never show."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Write:
    """A change of a writer: which revision it had looked at, and which it made; None: it was told that it was stale."""

    began: float
    ended: float
    expected: int
    made: int | None


@dataclass(frozen=True)
class Read:
    """What a reader saw; readers are named, since each must only ever go forward."""

    began: float
    ended: float
    reader: str
    revision: int


def violations(writes, reads):
    """What is wrong with them, in words; nothing where they could have happened one after the other."""
    found = []
    made = [write for write in writes if write.made is not None]
    by_revision = {}
    for write in made:
        if write.made in by_revision:
            found.append(f"revision {write.made} was made twice")
        by_revision[write.made] = write
        if write.made != write.expected + 1:
            found.append(f"a write on {write.expected} was accepted as {write.made}: a stale one, or a lost update")
    for write in made:
        follower = by_revision.get(write.made + 1)
        if follower is not None and follower.ended < write.began:
            found.append(f"revision {follower.made} was there before {write.made} was begun")
    acknowledged = sorted((write.ended, write.made) for write in made)
    times = [ended for ended, _ in acknowledged]
    newest = list(accumulate((revision for _, revision in acknowledged), max))
    last_seen = {}
    for read in sorted(reads, key=lambda read: read.began):
        if read.revision < last_seen.get(read.reader, 0):
            found.append(f"{read.reader} went back from {last_seen[read.reader]} to {read.revision}")
        last_seen[read.reader] = max(read.revision, last_seen.get(read.reader, 0))
        before = bisect_left(times, read.began)
        if before and newest[before - 1] > read.revision:
            found.append(f"{read.reader} saw {read.revision} after {newest[before - 1]} was acknowledged")
        if read.revision in by_revision and by_revision[read.revision].began > read.ended:
            found.append(f"{read.reader} saw revision {read.revision} before it was begun")
    for refused in (write for write in writes if write.made is None):
        successor = by_revision.get(refused.expected + 1)
        if successor is None or successor.began > refused.ended:
            found.append(f"a write on {refused.expected} was refused, and nobody had made {refused.expected + 1}")
    return found
