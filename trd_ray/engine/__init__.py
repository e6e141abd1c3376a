"""vLLM engines as Ray actors, and pools of them. An engine knows prompts and weights, not what a teacher is."""
