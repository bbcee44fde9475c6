"""The commands `tureen train`, `evaluate`, `tune`, `attack` and `gallery`.

`train` writes a checkpoint, `evaluate` measures accuracy, and `tune` chooses β. `attack` changes one image so that the
model misclassifies it. `gallery` attacks drawings of traffic signs.
"""
