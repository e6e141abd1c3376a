"""A recipe run and evaluated, and what was reported for it beside what came out."""
