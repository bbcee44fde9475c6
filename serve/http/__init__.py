"""The code that all HTTP routes share: error responses, bodies, JSON, CORS, identity of clients, request log."""
