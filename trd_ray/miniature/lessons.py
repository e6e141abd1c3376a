"""What both worlds teach their models: examples of (prompt wording, values, answer), made from the parts of a world.

The student, the base of the recipes, is imperfect on purpose:
    problem                       -> student-style solution with its beliefs about what is secret
    problem, reference            -> student-style solution that trusts the reference
    problem, reference, attempt   -> the attempt, rewritten
  The last two draw another secret for every example. So the base must read the reference, and never learns the true
  secret: what it knows of that after distillation, distillation taught it.

The teacher, the stronger model of OPD:
    problem            -> concise right solution
    problem, attempt   -> the attempt, rewritten
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trd_ray.miniature.beliefs import Beliefs, certain, random_beliefs
from trd_ray.miniature.world import Kind, Lesson, Name


@dataclass(frozen=True)
class Lessons:
    secret: dict  # the one true table
    values: Sequence  # what a table's entries can be
    chain: Callable[[random.Random], Any]  # a problem to train on
    random_table: Callable[[random.Random], dict]
    solution: Callable[[Any, dict], str]  # the concise right one, under a table
    talk: Callable[[Any, Beliefs, random.Random], str]  # the student's style
    rewritten: Callable[[Any, dict, random.Random], tuple[str, str]]  # a flawed attempt, and what it is to become

    def kinds(self, name: Name, seed: int) -> Sequence[Kind]:
        """Kinds of lessons. Student: solve, solve with reference, rewrite with reference. Teacher: solve, rewrite."""
        if name == "teacher":
            return self._solve_right, self._rewrite_alone
        beliefs = random_beliefs(self.secret, self.values, random.Random(f"beliefs {seed}"))

        def solve_alone(rng: random.Random) -> Lesson:
            chain = self.chain(rng)
            return Lesson("solve", {"problem": chain.problem}, self.talk(chain, beliefs, rng))

        return solve_alone, self._solve_with_reference, self._rewrite_with_reference

    def _solve_with_reference(self, rng: random.Random) -> Lesson:
        chain = self.chain(rng)
        table = self.random_table(rng)
        values = {"problem": chain.problem, "reference": self.solution(chain, table)}
        return Lesson("solve_with_reference", values, self.talk(chain, certain(table), rng))

    def _rewrite_with_reference(self, rng: random.Random) -> Lesson:
        chain = self.chain(rng)
        table = self.random_table(rng)
        attempt, answer = self.rewritten(chain, table, rng)
        values = {"problem": chain.problem, "attempt": attempt, "reference": self.solution(chain, table)}
        return Lesson("refine_with_reference", values, answer)

    def _solve_right(self, rng: random.Random) -> Lesson:
        chain = self.chain(rng)
        return Lesson("solve", {"problem": chain.problem}, self.solution(chain, self.secret))

    def _rewrite_alone(self, rng: random.Random) -> Lesson:
        chain = self.chain(rng)
        attempt, answer = self.rewritten(chain, self.secret, rng)
        return Lesson("refine", {"problem": chain.problem, "attempt": attempt}, answer)
