"""The commands besides `tureen serve`: `beta` and `jobs` send requests to a running server's admin listener.

`credentials` changes the store of the settings directly. `batch` runs a batch job in its own process, without a server.
"""
