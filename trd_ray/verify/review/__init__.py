"""A person as the verifier: responses wait in a file, and verdicts come back in another."""
