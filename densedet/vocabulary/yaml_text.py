"""YAML as data alone: every scalar is text, and nothing can refer to anything else."""

from typing import Any

import yaml

from densedet.errors import VocabularyError

_MOST_CHARACTERS = 10_000_000  # PyYAML reads some 100,000 a second


class _PlainLoader(yaml.BaseLoader):
    """No tags, no aliases, no key twice; "no", "on" and "12" are names, not values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise VocabularyError(f"line {mark.line + 1} has a YAML alias (*...); write it out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise VocabularyError(f"the key {twice!r} stands there twice; remove one")
        return mapping


def decode_yaml(text: str) -> object:
    """Lists, mappings and text of a YAML document; VocabularyError where it is not valid."""
    if len(text) > _MOST_CHARACTERS:
        raise VocabularyError(
            f"{len(text):,} characters of YAML are too many for a vocabulary; replace the file"
        )
    try:
        return yaml.load(text, _PlainLoader)
    except VocabularyError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise VocabularyError(f"not valid YAML ({place}{error.problem}); correct it") from error
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        # odd characters; a thousand brackets; a list for a key
        raise VocabularyError(f"cannot be decoded as YAML ({error}); correct it") from error
