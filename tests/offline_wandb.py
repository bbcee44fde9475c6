"""Reads the runs that Weights & Biases recorded with WANDB_MODE=offline.

The file of a run is a log in the format of LevelDB: blocks of 32 KiB, and in each block records with a checksum, a
length and a type. The log begins with a header of seven bytes.
"""

import json
import struct
from dataclasses import dataclass, field

BLOCK, HEADER, FIRST_HEADER = 32 * 1024, 7, 7


@dataclass
class OfflineRun:
    """A run and what it recorded. history: values by name, one dict for each step. kinds: those of its records."""

    run_id: str = ""
    host: str = ""
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    exit_status: int | None = None
    kinds: set = field(default_factory=set)


def read_offline_runs(out):
    """Returns the runs below the directory `out`, in the order of their start. Ends the process that writes them."""
    import wandb

    wandb.teardown()
    return [_read(path) for path in sorted(out.glob("wandb/offline-run-*/run-*.wandb"))]


def _read(path):
    from wandb.proto.wandb_internal_pb2 import Record

    run = OfflineRun()
    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        run.kinds.add(kind)
        if kind == "run":
            run.run_id, run.host = record.run.run_id, record.run.host
        if kind in ("run", "config"):
            updates = record.run.config.update if kind == "run" else record.config.update
            run.config |= _values(updates)
        if kind == "summary":
            run.summary |= _values(record.summary.update)
        if kind == "history":
            run.history.append(_values(record.history.item) | {"_step": record.history.step.num})
        if kind == "exit":
            run.exit_status = record.exit.exit_code
    return run


def _values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data):
    """Yields the records of the log. A record may be in several parts: 1 whole, 2 first, 3 middle, 4 last."""
    position, parts = FIRST_HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:  # a header is never in two blocks
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        part = data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        parts = part if kind in (1, 2) else parts + part
        if kind in (1, 4):
            yield parts
