"""The HTTP server: one compiled backbone, every request at its own β, all of them in the same batch. Never torch."""
