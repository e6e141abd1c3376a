"""The parts of bench_loop.py: TRL's side, scoring, memory, and what is told of all sides."""
