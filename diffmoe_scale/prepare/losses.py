"""What is lost or dealt with on the way: counted by reason, with the names of the first ones."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from diffmoe_scale.unicode import clean_name

KEPT_NAMES = 1000
"""Names that are kept of each reason; further ones are counted only."""
SHOWN_NAMES = 10


@dataclass
class Losses:
    """Counts and names by reason, in the order in which the reasons were first met."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str, detail: str = "", *, count: int = 1) -> None:
        """Count `count` of a reason under one name. Names are made safe to print."""
        self.counts[reason] += count
        kept = self.names.setdefault(reason, [])
        if len(kept) < KEPT_NAMES:
            kept.append(clean_name(name) + (f": {clean_name(detail)}" if detail else ""))

    def extend(self, other: "Losses") -> None:
        for reason, count in other.counts.items():
            self.counts[reason] += count
            kept = self.names.setdefault(reason, [])
            kept += other.names[reason][: KEPT_NAMES - len(kept)]

    def to_json(self) -> dict[str, object]:
        """The count and the kept names of each reason, the most frequent reason first."""
        return {
            reason: {"count": count, "names": self.names[reason]}
            for reason, count in self.counts.most_common()
        }

    @classmethod
    def from_json(cls, tree: object) -> "Losses":
        """Those that `to_json` gave; what is not of that form is passed over."""
        found = cls()
        for reason, entry in tree.items() if isinstance(tree, Mapping) else ():
            count = entry.get("count") if isinstance(entry, Mapping) else None
            names = entry.get("names") if isinstance(entry, Mapping) else None
            if isinstance(count, int) and isinstance(names, list):
                found.counts[str(reason)] += count
                found.names[str(reason)] = [clean_name(str(name)) for name in names]
        return found

    def summary(self) -> str:
        """One line: the counts of all reasons."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.counts.most_common())

    def lines(self, *, limit: int = SHOWN_NAMES) -> Iterator[str]:
        """For each reason its count and at most `limit` names, for a terminal."""
        for reason, count in self.counts.most_common():
            names = self.names[reason]
            shown = names[:limit]
            yield f"{reason}: {count:,}"
            yield from (f"  {name}" for name in shown)
            # One name may stand for several, as that of a row group for its rows.
            more = (len(names) if len(names) < KEPT_NAMES else count) - len(shown)
            if more > 0:
                yield f"  and {more:,} more"
