"""HTTP/1.1 connections: parsing, limits, draining. The only room that touches uvicorn's protocol classes."""
