"""`trd check`: whether the verifier, the data and the prompts of a recipe are what they should be, on some rows."""
