"""What a key of the recipe changes, said at the key: `lr: Annotated[float, NUMBERS] = Field(...)`.

- A group says so too (`refiner: Annotated[RefinerConfig, ROWS, ENGINES]`), because one class may stand for two groups.
  A key affects what it says, but no more than its group does.
- Code that must know whether two recipes may differ in a key asks `trd_ray.config.keys` by these effects. No other
  module keeps a list of keys.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Effect:
    meaning: str


ROWS = Effect("the rows of a step: which problems, what is sampled and refined for them, what is selected")
NUMBERS = Effect("what is learned from the rows of a step, by more than rounding")
VERDICTS = Effect("what a verifier says of a text")
ANSWERS = Effect("an answer to a held-out problem, besides the weights that give it")
SCORES = Effect("which problems are held out, how many answers each gets, and how they are counted")
LENGTH = Effect("how many steps a run has, and nothing of the steps that it has done")
ENGINES = Effect("what a pool of engines is started with")
MACHINES = Effect("what a program that samples and verifies asks of machines, and no result")
NOTHING = Effect("no result and no engine")
# These two are said at a key at the top of the tree, and hold for all that is below it.
COMPARISON = Effect("whether methods can be compared: it is equal for all methods of a comparison")
TUNING = Effect("how learning rates are tuned: a comparison's tuning may have its own")
