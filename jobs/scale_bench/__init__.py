"""What the scaling benchmark simulates: a clock that jumps, engines that sleep, and runs that are made of them."""
