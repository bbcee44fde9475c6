"""What every HTTP surface shares: problems, bodies, CORS, the request log."""
