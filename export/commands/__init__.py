"""The commands `tureen export` and `tureen calibrate`.

`tureen export` writes a bundle. `tureen calibrate` measures the strength curve and the temperatures of a bundle again.
"""
