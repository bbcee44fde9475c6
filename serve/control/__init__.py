"""The operator's settings: their values, changes, store and history, and the replica that each server follows."""
