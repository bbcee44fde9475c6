"""`tureen bench`: measures how fast each engine runs a bundle on this machine, and recommends server settings."""
