"""The commands `tureen export`, which writes a bundle, and `tureen calibrate`.

`tureen calibrate` measures the strength curve and the temperatures of an existing bundle again.
"""
