"""HTTP/1.1 connections: parsing, limits, graceful shutdown. The only room that uses uvicorn's protocol classes."""
