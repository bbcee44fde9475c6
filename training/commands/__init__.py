"""The commands `tureen train`, `evaluate`, `tune` and `gallery`.

`train` writes a checkpoint, `evaluate` measures accuracy, and `tune` chooses β. `gallery` attacks drawings of traffic
signs.
"""
