"""vLLM engines as Ray actors, and pools of them. An engine knows prompts and weights, not what a teacher is.

- launch: a recipe becomes pools. pool: the gate, status. routing: which engine gets a request
- fleet: when engines start, restart, rest and stop. life: one of them. keeper: how they outlive the pool's process
- client: how a request reaches an engine. leases: what the pool counts of that. generations: requests and answers
- update: one weight update, as the pool sees it. sync: the same update, as the trainer sees it
- actor: how one engine starts, answers and stops. own_process: whether it is hung. deaths: what a death looks like
- transfers: a gloo backend for vLLM's weight transfer, for machines without a GPU
"""
