"""What `jobs/chaos.py` is made of: which rounds, who is struck and when, stand-ins, and what must hold afterwards."""
