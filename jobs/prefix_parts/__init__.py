"""The parts of prefix_failure.py: rollouts as teachers see them, what stands at each position, gradients."""
