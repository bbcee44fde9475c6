"""Runs a test with an open service, and reads its metrics."""

import asyncio

from serve.inference.service import Service
from serve.settings import Settings
from serve.telemetry.metrics import Metrics
from tureen.bundle.bundle import load_bundle


def serving(bundle_path, test, **changes):
    """Runs an async test with an open service, which is closed afterwards."""

    async def run():
        settings = Settings(bundle=bundle_path, engine="onnxruntime", max_batch=8, **changes)
        service = Service(settings, load_bundle(bundle_path), Metrics())
        await service.open()
        try:
            return await asyncio.wait_for(test(service), 60)
        finally:
            await service.close()

    return asyncio.run(run())


def value(service, series):
    (line,) = [line for line in service.metrics.render()[0].decode().splitlines() if line.startswith(series + " ")]
    return float(line.split()[-1])
