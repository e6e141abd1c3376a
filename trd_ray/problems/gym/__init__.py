"""`reasoning_gym:FAMILY`: problems that reasoning_gym generates, and their own scorer as the verifier.

    path, split, arguments  ->  family.cut()  ->  Cut: which items of which family, as what config
    a Cut                   ->  items.load()  ->  table of rows.PROBLEM, what was set aside and why

The library is asked in a process of its own (trd_ray.verify.gym), which the driver starts for this alone.
"""
