"""How many engines each pool should have. Pure: what is known goes in, numbers of engines come out."""
