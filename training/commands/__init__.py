"""The commands `tureen train`, `evaluate`, `tune`, `attack` and `gallery`.

`evaluate` measures accuracy, and `tune` chooses β. `attack` changes one image. `gallery` attacks drawn traffic signs.
"""
