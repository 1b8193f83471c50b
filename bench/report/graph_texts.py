"""What a drawing of the coupled groups says: names, widths, and what a pointer that rests on a shape is told."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Sequence

from pruneport.bench.report.graph_content import DrawnGroup, DrawnLayer, GraphContent
from pruneport.export.card.words import clean, shorten

__all__ = ["GraphTexts", "counted", "end_of"]

_MOST_REASONS = 12
_TIP_GROUPS = 12


class GraphTexts:
    """The texts of one drawing.

    Attributes:
        letters: Of the commonest reasons why groups stay dense.
        reasons: How many groups each reason keeps dense.
    """

    def __init__(self, content: GraphContent) -> None:
        self._content = content
        self.reasons = Counter(group.reason for group in content.groups if group.dense)
        common = [reason for reason, _ in self.reasons.most_common(_MOST_REASONS)]
        self.letters = dict(zip(common, string.ascii_lowercase, strict=False))

    def summary(self) -> str:
        """How many groups and layers there are."""
        content = self._content
        dense = sum(self.reasons.values())
        others = len(content.groups) - dense
        done = f"{others} pruned, {dense} left dense" if content.pruned else f"{others} prunable, {dense} not"
        return f"{counted(len(content.groups), 'coupled group')} ({done}) of {counted(len(content.layers), 'layer')}"

    def why_dense(self) -> list[tuple[str, str]]:
        """Letter and text of each reason why groups stay dense."""
        return [
            (letter, f"{_plain(reason) or 'no reason was recorded'} ({counted(self.reasons[reason], 'group')})")
            for reason, letter in self.letters.items()
        ]

    def of_group(self, group: DrawnGroup) -> str:
        """Units kept and all; or all, with the letter of the reason."""
        if group.dense:
            return f"{group.width} {self.letters.get(group.reason, '')}".strip()
        return f"{group.width}" if group.kept is None else f"{group.kept}/{group.width}"

    def of_groups(self, numbers: Sequence[int]) -> str:
        """The same of several groups in one."""
        groups = [self._content.groups[number] for number in numbers]
        kept = f"{sum(group.kept or 0 for group in groups)}/" if self._content.pruned else ""
        return f"{len(groups)} groups: {kept}{sum(group.width for group in groups)}"

    def group_tip(self, number: int) -> str:
        """What a group is and what becomes of it, and why."""
        group = self._content.groups[number]
        roles = {
            "filters": "inside a block",
            "stream": "residual stream, or what feeds one",
            "representation": "read by the output layer",
            "output": "leaves the network",
        }
        if group.kept is None:
            state = f"{group.width} units, {'not prunable' if group.dense else 'prunable'}"
        else:
            state = f"{group.width} units, left dense" if group.dense else f"{group.kept} of {group.width} units kept"
        reason = f"; {_plain(group.reason)}" if group.reason else ""
        return f"group {shorten(group.name, 120)}: {state}; {roles[group.role]}{reason}"

    def groups_tip(self, numbers: Sequence[int]) -> str:
        """Which groups they are."""
        shown = "; ".join(
            f"{shorten(group.name, 60)} {self.of_group(group)}"
            for group in (self._content.groups[number] for number in numbers[:_TIP_GROUPS])
        )
        more = len(numbers) - _TIP_GROUPS
        return f"{len(numbers)} groups: {shown}" + (f"; and {more} more" if more > 0 else "")

    def layer_tip(self, layer: DrawnLayer) -> str:
        """A layer's whole name, and the widths of what it reads and makes."""
        reads, makes = (
            " + ".join(self.of_group(self._content.groups[group]) for group in groups[:_TIP_GROUPS])
            for groups in (layer.reads, layer.makes)
        )
        if layer.reads == layer.makes:
            return f"{clean(layer.name)}: {'entries' if layer.parameter else 'channels'} {reads}"
        return f"{clean(layer.name)}: in {reads or 'the input'}, out {makes or 'not pruned'}"


def end_of(name: str, chars: int) -> str:
    """A long name without the modules that it begins with: what tells it from its neighbours stands at its end."""
    text = clean(name)
    while len(text) > chars and "." in text:
        text = text.partition(".")[2]
    cut = "" if text == clean(name) else "…"
    return shorten(cut + text, chars)


def _plain(reason: str) -> str:
    """A reason without the signs that mark the names of options."""
    return clean(reason).replace("`", "")


def counted(count: int, what: str) -> str:
    """A number with what it counts."""
    return f"{count} {what}{'' if count == 1 else 's'}"
