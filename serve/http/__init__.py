"""The parts that all HTTP surfaces share: problem responses, bodies, JSON, CORS, client identity, request log."""
