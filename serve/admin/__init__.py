"""The operator's listener: HTTP through which the settings of `serve.control` are looked at and changed."""
