"""A model that judges: what it is asked, how its verdict is read, and the verifier that does both."""
