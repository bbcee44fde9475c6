"""Checks a log of writes and reads for violations of a linearizable compare-and-set register."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Write:
    """A write: the revision it expected and the revision it created; None if it was refused as stale."""

    began: float
    ended: float
    expected: int
    created: int | None


@dataclass(frozen=True)
class Read:
    """A read and the revision it returned. Each reader has a name, because its revisions must never decrease."""

    began: float
    ended: float
    reader: str
    revision: int


def violations(writes, reads):
    """Return a description of each violation; an empty list if some sequential order explains the log."""
    found = []
    accepted = [write for write in writes if write.created is not None]
    by_revision = {}
    for write in accepted:
        if write.created in by_revision:
            found.append(f"revision {write.created} was created twice")
        by_revision[write.created] = write
        if write.created != write.expected + 1:
            found.append(f"a write on {write.expected} was accepted as {write.created}: a stale one, or a lost update")
    for write in accepted:
        follower = by_revision.get(write.created + 1)
        if follower is not None and follower.ended < write.began:
            found.append(f"revision {follower.created} existed before the write of {write.created} began")
    acknowledged = sorted((write.ended, write.created) for write in accepted)
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
            found.append(f"{read.reader} saw revision {read.revision} before its write began")
    for refused in (write for write in writes if write.created is None):
        successor = by_revision.get(refused.expected + 1)
        if successor is None or successor.began > refused.ended:
            found.append(
                f"a write on {refused.expected} was refused, but revision {refused.expected + 1} did not exist"
            )
    return found
