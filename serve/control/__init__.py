"""The operator's settings: their values, changes, store and history, and their replica in each server."""
