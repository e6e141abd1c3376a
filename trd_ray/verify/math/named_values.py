r"""Values with names: what they are called, and in which order they stand where the names are left out.

    p=5, q=2; p=7, q=2     ->  solutions  ->  a list of two `labelled` groups
    x = -5, p = 14/3       ->  one `labelled` group; bare it is (-5, 14/3)
    S_1:S_2                ->  ratio_names  ->  ("S_1", "S_2")

The order of bare values is that of a tuple of the problem, "find all pairs $(n, k)$", where it has one with these
names; else that of the alphabet where the names are neighbours in it, (x, y) or (a, b, c); else the order in which they
were written.
"""

import re
from collections.abc import Callable

from trd_ray.verify.math.forms import Form, Group, Relation, read
from trd_ray.verify.math.relations import is_label, latex_of

_NEIGHBOURS = ("abcdefgh", "mn", "pqrst", "uvw", "xyz", "ABCDEFGH", "MN", "PQRST", "UVW", "XYZ")
_ARGUMENT = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_FRACTION_OF_NAMES = re.compile(rf"\\frac{_ARGUMENT}{_ARGUMENT}")
_PARENTHESES = re.compile(r"\(([^()]{3,60})\)")

Equal = Callable[[Form, Form], bool]


def solutions(form: Form) -> Form:
    """Values with names as `labelled` groups; `x = 3, x = 4` and `x_1 = 3, x_2 = 4` as lists; else the form itself."""
    if not isinstance(form, Group) or form.kind not in ("list", "set", "()"):
        return form
    names = [name_of(item) for item in form.items]
    if not names or not all(names):
        if any(isinstance(item, Group) for item in form.items):
            return Group(form.kind, tuple(map(solutions, form.items)))
        return form
    if form.kind == "list" and len({name.partition("_")[0] for name in names}) == 1:
        return Group("list", tuple(map(_value_of, form.items)))
    names, items = _without_numbers(names, form.items)
    size = len(set(names))
    if size < 2 or len(names) % size or (form.kind != "list" and size < len(names)):
        return form
    solved = [names[i : i + size] for i in range(0, len(names), size)]
    if any(set(some) != set(names) for some in solved):
        return form
    groups = tuple(Group("labelled", items[i : i + size]) for i in range(0, len(names), size))
    return groups[0] if len(groups) == 1 else Group("list", groups)


def _without_numbers(names: list[str], items: tuple[Form, ...]) -> tuple[list[str], tuple[Form, ...]]:
    """`x_1 = 1, y_1 = 2, x_2 = 2, y_2 = 1` with the names x, y, x, y: the numbers only count the solutions."""
    stems, numbers = zip(*(name.partition("_")[::2] for name in names), strict=True)
    size = len(set(stems))
    counted = [set(numbers[i : i + size]) for i in range(0, len(names), size)]
    if size == len(names) or any(len(number) != 1 or number == {""} for number in counted):
        return names, items
    bare = (Relation((s, *i.parts[1:]), i.signs) for s, i in zip(stems, items, strict=True) if isinstance(i, Relation))
    return list(stems), tuple(bare)


def name_of(form: Form) -> str:
    """`x` for `x = 3`, "" for what gives no name a value."""
    if isinstance(form, Relation) and form.signs == ("=",) and is_label(form.parts[0]):
        return latex_of(form.parts[0])
    return ""


def same_named(gold: Form, answer: Form, equal: Equal, problem: str) -> bool:
    """Whether two forms, of which at least one is labelled, give the same values."""
    if is_labelled(gold) and is_labelled(answer):
        assert isinstance(gold, Group) and isinstance(answer, Group)
        there = {name_of(item): _value_of(item) for item in answer.items}
        return there.keys() == {name_of(item) for item in gold.items} and all(
            equal(_value_of(item), there[name_of(item)]) for item in gold.items
        )
    bare = answer if is_labelled(gold) else gold
    if not isinstance(bare, Group) or bare.kind not in ("list", "()"):
        return False
    values = bare_values(gold if is_labelled(gold) else answer, problem)
    pairs = zip(values, bare.items, strict=False) if is_labelled(gold) else zip(bare.items, values, strict=False)
    return len(values) == len(bare.items) and all(equal(one, other) for one, other in pairs)


def is_labelled(form: Form) -> bool:
    return isinstance(form, Group) and form.kind == "labelled"


def bare_values(labelled: Form, problem: str) -> list[Form]:
    """The values of a labelled group in the order that a tuple of them has."""
    assert isinstance(labelled, Group)
    value_of = {name_of(item): _value_of(item) for item in labelled.items}
    names = list(value_of)
    for match in _PARENTHESES.finditer(problem):
        in_problem = [latex_of(name) for name in match[1].split(",")]
        if sorted(in_problem) == sorted(names):
            return [value_of[name] for name in in_problem]
    if any(all(len(name) == 1 and name in letters for name in names) for letters in _NEIGHBOURS):
        names.sort()
    return [value_of[name] for name in names]


def _value_of(form: Form) -> Form:
    assert isinstance(form, Relation)
    return read(form.parts[1])


# Ratios


def names_a_value(part: str) -> bool:
    r"""`x`, `f(x)`, `S_1:S_2` or `\frac{AB}{BC}`: what stands before the sign of equality is no part of the answer."""
    return is_label(part) or bool(ratio_names(part))


def ratio_names(part: str) -> tuple[str, ...]:
    """The names whose ratio this is; none for anything else."""
    bare = latex_of(part)
    if match := _FRACTION_OF_NAMES.fullmatch(bare):
        names = match.groups()
    else:
        names = tuple(bare.split(":") if ":" in bare else bare.split("/"))
    good = 1 < len(names) < 6 and len(set(names)) == len(names) and all(n and n[0] != "(" for n in names)
    return names if good and all(map(is_label, names)) else ()


def same_ratio(gold: Relation, answer: Relation, equal: Equal) -> bool:
    """Whether two named ratios say the same; `b:a = 3:2` says `a:b = 2:3`."""
    here, there = ratio_names(gold.parts[0]), ratio_names(answer.parts[0])
    value, other = read(gold.parts[-1]), read(answer.parts[-1])
    if here == there[::-1] and len(here) == 2:
        other = _inverse(other, answer.parts[-1])
    elif here != there:
        return False
    return equal(value, other)


def _inverse(form: Form, written: str) -> Form:
    if isinstance(form, Group):
        return Group(form.kind, form.items[::-1])
    return read(rf"\frac{{1}}{{{latex_of(written)}}}")
