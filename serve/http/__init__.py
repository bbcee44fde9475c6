"""Shared by every HTTP surface: problem responses, bodies, JSON, CORS, client identity, the request log."""
