"""The operator's settings: values, changes, the store with its history, and the copy of the settings in each server."""
