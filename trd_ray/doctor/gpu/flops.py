"""Floating-point operations that a step must do, and what cards can do in a second: the two sides of MFU.

Counted are the matrix products and attention's, as in the literature: causal attention as its half, nothing that
activation checkpointing computes again, no embedding look-ups and nothing elementwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Dense bfloat16 TFLOP/s by NVIDIA's data sheets, without sparsity. The first name that the card's name holds counts.
PEAKS = {
    "GB200": 2500, "B200": 2250, "B100": 1750, "H200 NVL": 835, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756,
    "H100": 989, "GH200": 989, "H800": 989, "H20": 148, "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10G": 70,
    "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "RTX 6000 Ada": 364, "RTX A6000": 155, "RTX 5090": 210,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def peak_tflops(card: str) -> float | None:
    """None for a card whose data sheet is not known here."""
    return next((float(peak) for name, peak in PEAKS.items() if name in card), None)


@dataclass(frozen=True)
class Shape:
    """The sizes of a dense model of the Qwen3 kind."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def layer_parameters(self) -> int:
        """In the matrices of one layer."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """With embedding and head counted apart, as Qwen3-8B has them."""
        return self.layers * self.layer_parameters + 2 * self.vocabulary * self.hidden

    def products(self, lengths: Sequence[int]) -> float:
        """The layers' matrix products of one forward pass over sequences of these lengths."""
        return 2.0 * self.layers * self.layer_parameters * sum(lengths)

    def attention(self, lengths: Sequence[int]) -> float:
        """Scores and weighted values of one forward pass: two products of length x length x head size, half of each."""
        return 2.0 * self.layers * self.heads * self.head_dim * sum(n * n for n in lengths)


QWEN3_8B = Shape(4096, 12288, 36, 32, 8, 128, 151_936)
QWEN3_1P7B = Shape(2048, 6144, 28, 16, 8, 128, 151_936)


def head(tokens: int, hidden: int, teacher_hidden: int, vocabulary: int, *, trained: bool) -> float:
    """Logits of both sides, the gradient of the student's hidden states and, where it is trained, of its head."""
    return 2.0 * tokens * vocabulary * (teacher_hidden + hidden * (3 if trained else 2))


def step(
    student: Shape, teacher: Shape, student_lengths: list[int], teacher_lengths: list[int], tokens: int, *, lora: bool
) -> float:
    """One optimizer step on `tokens` response tokens; the lengths are of prompt and response.

    The backward pass of a product is two products. With LoRA the frozen weights get no gradient, so it is one; the
    adapters' own products are small and left out.
    """
    backward = 1 if lora else 2
    total = teacher.products(teacher_lengths) + teacher.attention(teacher_lengths)
    total += student.products(student_lengths) * (1 + backward) + student.attention(student_lengths) * 3
    return total + head(tokens, student.hidden, teacher.hidden, student.vocabulary, trained=not lora)
