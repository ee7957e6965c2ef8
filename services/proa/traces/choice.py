"""Which requests' stories have come to rest, and are wanted."""

from __future__ import annotations

from proa.traces.book import Book
from proa.traces.story import Story, assemble

WANTS = ("any", "reconstructed", "hedge", "replica", "retry", "failed", "slow")
JUDGED_MAX = 256  # stories told in one look

# The more there is to see, the earlier; a source that stands nowhere here comes last.
_INTEREST = ("reconstructed", "failed", "hedge", "retry", "replica", "worker")


class Choice:
    """Hands out each wanted story once, when nothing of it came for `settle_s` seconds.

    `trace_id`: only requests of that trace (a prefix is enough).
    """

    def __init__(self, book: Book, want: str, settle_s: float, trace_id: str = "") -> None:
        assert want in WANTS
        self._book = book
        self._want = want
        self._settle_s = settle_s
        self._trace_id = trace_id
        self.seen = 0  # requests whose story came to rest, wanted or not

    def take(self, now_s: float) -> list[Story]:
        """What has come to rest since the last look, the most telling first."""
        found = []
        for story in self._settled(now_s):
            self.seen += 1
            if wanted(story, self._want) and story.root.trace_id.startswith(self._trace_id):
                found.append(story)
        return sorted(found, key=_rank)

    def _settled(self, now_s: float) -> list[Story]:
        found: list[Story] = []
        for key in tuple(self._book.waiting):
            heard = self._book.get(key)
            if heard is None or now_s - heard.at_s < self._settle_s:
                continue
            story = assemble(self._book, key)
            if story is not None and now_s - story.heard_s >= self._settle_s:
                del self._book.waiting[key]
                found.append(story)
            if len(found) >= JUDGED_MAX:
                break
        return found


def wanted(story: Story, want: str) -> bool:
    """Whether `story` is of the kind that was asked for."""
    if want == "slow":
        return "slow" in story.root.text("proa.kept")
    return want in ("any", story.source)


def _rank(story: Story) -> tuple[int, int]:
    source = story.source
    place = _INTEREST.index(source) if source in _INTEREST else len(_INTEREST)
    return place, story.root.start_ns
