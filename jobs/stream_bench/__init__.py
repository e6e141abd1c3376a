"""What `jobs/bench_stream.py` puts in the place of vLLM and of the learner, and how it measures what is real."""
