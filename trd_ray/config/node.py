"""The class of every group of keys, and what paths and names in a group may look like."""

import re
import types
from typing import Any, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def folder_name(name: str) -> str:
    """The name, unchanged. Raises ValueError where it cannot name a folder within another, on any file system."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(
            "names a folder, so it must begin with a letter or a digit and hold nothing but letters, digits, _, . and "
            f"-, but found {name!r}: another place is for run_dir (of a comparison: directory) to say"
        )
    return name


def source_name(name: str) -> str:
    """The name, unchanged. Raises ValueError where it cannot be part of the name of a metric."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(
            "stands in the names of metrics, so it must begin with a letter or a digit and hold nothing but letters, "
            f"digits, _, . and -, but found {name!r}"
        )
    return name


def plain_path(path: str | None) -> str | None:
    """The path, unchanged. Raises ValueError where a newline, a null or another control character is in it."""
    if path and not path.isprintable():
        raise ValueError(f"must be a path without control characters, but found {path!r}")
    return path


def place_elsewhere(url: str | None) -> str | None:
    """The place, unchanged. Raises ValueError where it cannot be one, or where it has a password in it."""
    if not plain_path(url):
        return url
    parts = urlsplit(url)
    if parts.password:
        raise ValueError(
            "must not hold a password, which would be written into recipe.yaml: the environment has it (for S3 "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    if not parts.scheme and not str(url).startswith("/"):
        raise ValueError(
            f"must be a place such as s3://bucket/runs, gs://bucket/runs or /an/absolute/path, but found {url!r}"
        )
    return url


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or bool in get_args(annotation)


class Node(BaseModel):
    # Not strict, since YAML reads 2e-6 as text, of which pydantic then makes the number.
    model_config = ConfigDict(
        extra="forbid", strict=False, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _a_switch_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and not _takes_bool(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("must not be true or false")
        return value


def group_of(annotation: Any) -> type[Node] | None:
    """The group of keys in `Group` or `Group | None`; None for a list or a dict of groups, which is one value."""
    either = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    groups = [one for one in (annotation, *either) if isinstance(one, type) and issubclass(one, Node)]
    return groups[0] if groups else None


def members_of(annotation: Any) -> type[Node] | None:
    """The group of keys of which `dict[str, Group]` or `list[Group]` holds several."""
    found = get_args(annotation)[-1:] if get_origin(annotation) in (dict, list) else ()
    return group_of(found[0]) if found else None
