"""Docstrings as the site shows them.

``:meth:`replace``` becomes a link, and ``Example:`` a section: mkdocstrings knows only
its plural, and would take the singular for a box with a text in it.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^(\s*)Example:\s*$", re.MULTILINE)
# Two colons announce a text as it stands; in Markdown being indented is enough.
AS_IT_STANDS = re.compile(r"(?P<words>\S?)::[ \t]*$", re.MULTILINE)
ROLE = re.compile(r":(?:meth|class|func|mod|attr|data|exc):`(?P<target>[^`]+)`")


def one_colon(match: re.Match[str]) -> str:
    """Return the end of a line that announces a text as it stands."""
    return f"{match['words']}:" if match["words"] else ""


def linked(text: str, where: griffe.Object) -> str:
    """Return a docstring whose roles are links; to nothing where there is no page."""

    def link(match: re.Match[str]) -> str:
        target = match["target"].lstrip("~")
        shown = target.rpartition(".")[2] if "~" in match["target"] else target
        try:
            identifier = where.resolve(target)
        except griffe.NameResolutionError:
            identifier = target
        if isinstance(where.parent, griffe.Class) and target in where.parent.members:
            identifier = f"{where.parent.path}.{target}"
        if where.is_class and target in where.members:
            identifier = f"{where.path}.{target}"
        return (
            f'<autoref identifier="{identifier}" optional>'
            f"<code>{shown}</code></autoref>"
        )

    text = EXAMPLE.sub(r"\1Examples:", AS_IT_STANDS.sub(one_colon, text))
    return ROLE.sub(link, text.replace("``", "`"))


class Roles(griffe.Extension):
    """Rewrites every docstring of the package when it has been read."""

    def on_object(self, *, obj: griffe.Object, **_more: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = linked(obj.docstring.value, obj)
