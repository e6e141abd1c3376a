"""The training side: the divergence in chunks, batches, the learner, and the Ray Train shell around it."""
