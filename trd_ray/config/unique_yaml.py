"""YAML as PyYAML's safe loader reads it, but a key that stands twice in a mapping is an error, not a silent choice.

YAML itself forbids it (https://yaml.org/spec/1.2.2/#mapping). A key that replaces one merged with `<<` does not stand
twice.

A text may begin with @, which YAML keeps for later use, without quotes: `solve: @prompts/solve.md`.
"""

from typing import Any

import yaml


class RepeatedKey(yaml.YAMLError):
    """A key stands twice. The message says which key, and in which lines."""


class _Loader(yaml.SafeLoader):
    def check_plain(self) -> bool:
        return self.peek() == "@" or super().check_plain()

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # The check is here, before merged keys are written out among the others.
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in seen:
                first = seen[key.tag, key.value]
                where = f"in line {line}" if line == first else f"in lines {first} and {line}"
                raise RepeatedKey(f"the key {key.value!r} stands twice, {where}: keep one")
            seen[key.tag, key.value] = line
        return node


def read(text: str) -> Any:
    """What a YAML text holds. Raises yaml.YAMLError, and RepeatedKey, one of these, for a repeated key."""
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
