"""`tureen bench`: how fast each engine runs a bundle here, and the settings of `tureen serve` that suit it best."""
