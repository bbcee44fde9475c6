import pytest

from tureen.bench.records import EngineSetup, TimedTurn
from tureen.bench.worker import Worker
from tureen.errors import EngineError


def test_a_worker_that_dies_is_an_engine_that_is_out(bundle_path):
    worker = Worker(
        EngineSetup(bundle=str(bundle_path), engine="onnxruntime", precision="fp32", threads=1, streams=1, max_batch=2)
    )
    assert len(worker.run_turn(TimedTurn(batch=2, calls=3)).call_seconds) == 3
    worker._process.kill()
    with pytest.raises(EngineError, match="ended by itself, with status -9"):
        worker.run_turn(TimedTurn(batch=1, calls=1))
    worker.close()
