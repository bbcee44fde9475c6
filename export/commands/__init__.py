"""The commands `tureen export`, `calibrate`, `adapt` and `attack`.

`tureen export` writes a bundle. `tureen calibrate` measures the strength curve and the temperatures of a bundle again.
`tureen adapt` learns a token for a bundle. `tureen attack` changes one image so that the model of a bundle or a
checkpoint misclassifies it.
"""
