"""`tureen bench`: measures the speed of each engine of a bundle on this machine, and recommends server settings."""
