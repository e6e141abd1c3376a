"""The miniature world of code: programs over a list of numbers, with made-up instructions and tests."""
