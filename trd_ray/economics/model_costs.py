"""What a token costs a model in bytes and floating-point operations, from its shapes."""

from dataclasses import dataclass

from trd_ray.models import ModelFacts


@dataclass(frozen=True)
class ModelCosts:
    """Of the whole model, before any tensor parallelism."""

    parameters: int
    body: int  # of the layers, whose matrices every token meets
    kv_bytes: float  # keys and values of a token
    attention: float  # FLOPs of causal attention over a sequence of n tokens, forward: this times n squared
    head: float  # FLOPs of the logits of a token
    layers: int
    width: int  # bytes of a number

    @property
    def read(self) -> float:
        """Numbers that an iteration reads: all but the embedding, of which each token looks up a row."""
        return self.body + self.head / 2  # the head has two FLOPs a number


def model_costs(facts: ModelFacts, width: int = 2, kv_width: int | None = None) -> ModelCosts:
    """The costs with numbers of `width` bytes. Tied matrices are counted once, as in `facts.parameters`."""
    table = facts.vocab_size * facts.hidden_size
    tables = table if facts.tied_embeddings else 2 * table
    # A pair of matrix products of n x n x head_dim for each head, 2 FLOPs a product, half of it masked.
    attention = 2.0 * facts.layers * facts.attention_heads * facts.head_dim
    return ModelCosts(
        parameters=facts.parameters,
        body=max(1, facts.parameters - tables),
        kv_bytes=2.0 * facts.layers * facts.kv_heads * facts.head_dim * (kv_width or width),
        attention=attention,
        head=2.0 * table,
        layers=facts.layers,
        width=width,
    )
