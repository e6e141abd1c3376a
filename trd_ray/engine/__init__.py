"""vLLM engines as Ray actors, and pools of them. An engine knows prompts and weights, not what a teacher is.

- launch: a recipe becomes pools. pool: the gate, routing, status. fleet: when engines start, restart and stop
- client: how a request reaches an engine. leases: what the pool counts of that
- update: one weight update, as the pool sees it. sync: the same update, as the trainer sees it
- actor: how one engine starts, answers and stops. deaths: what a death looks like
- transfers: a gloo backend for vLLM's weight transfer, for machines without a GPU
"""
