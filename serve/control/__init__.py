"""The operator's settings of a running service: what they are, who changed them, and how every process gets them."""
