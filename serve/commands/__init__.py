"""The commands that send requests to a running server, and `tureen batch`."""
