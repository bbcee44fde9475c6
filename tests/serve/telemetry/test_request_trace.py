import asyncio

from serve.telemetry.request_trace import REQUEST_TRACE, RequestTrace


def test_concurrent_requests_have_separate_traces_and_their_tasks_share_them():
    async def image(beta):
        await asyncio.sleep(0)
        REQUEST_TRACE.get().images.append(((beta,), None))

    async def request(beta):
        trace = RequestTrace()
        REQUEST_TRACE.set(trace)
        await asyncio.gather(image(beta), image(beta))
        return [betas for betas, _ in trace.images]

    async def both():
        return await asyncio.gather(request(0.0), request(1.0))

    assert asyncio.run(both()) == [[(0.0,)] * 2, [(1.0,)] * 2]
    assert REQUEST_TRACE.get() is None
