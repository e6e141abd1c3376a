"""What `jobs/bench_stream.py` puts in the place of vLLM, and how it measures the processes that are real."""
