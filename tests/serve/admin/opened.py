"""The operations of the operators' listener without a server, and workers that apply what the test says."""

import contextlib

from serve.admin.operations import AdminOperations
from serve.control.revision_store import open_store
from serve.control.worker_state import WorkerState
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import load_bundle
from tureen.bundle.examples import EXAMPLES


class Workers:
    """The workers of a server that apply a revision when the test says so."""

    def __init__(self, count=2):
        self.states = [WorkerState(n, 100 + n, True, 0, "cifar10 1") for n in range(count)]
        self.sent = []

    def apply(self, row, is_reachable):
        self.sent.append((row.revision, is_reachable))

    async def check_token(self, sha256):
        """Every token can be used."""

    def set(self, number, *, revision=0, is_ready=True):
        self.states[number] = WorkerState(number, 100 + number, is_ready, revision, "cifar10 1")


@contextlib.asynccontextmanager
async def opened(tmp_path, workers, **changes):
    settings = Settings(bundle=EXAMPLES / "cifar10", state_dir=tmp_path / "state", **changes)
    manifest = load_bundle(settings.bundle).manifest
    store = open_store(settings, manifest.name)
    operations = await AdminOperations.open(
        settings,
        manifest,
        store,
        Metrics(),
        apply=workers.apply,
        workers=lambda: workers.states,
        check_token=workers.check_token,
    )
    try:
        yield operations
    finally:
        await operations.close()
