"""What can be priced: every component, the usage count it prices, and how components lie inside each other.

Token counts form trees: a cached token is an input token, an audio token that was read from the cache is both. A count
of a tree's root is the total, and every other count of the tree is a part of it. Flat counts stand for themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

MILLION: Final = 1_000_000
MS_PER_HOUR: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Component:
    """A priced kind of use. A rate of it is nano-dollars for `per` units of the usage count `count`.

    `tree` names the root component that it is a part of (its own name for a root), None for a flat count. `traits` say
    which part: a component lies inside another of its tree when its traits include the other's.
    """

    name: str
    count: str
    tree: str | None = None
    traits: frozenset[str] = frozenset()
    per: int = MILLION

    def is_inside(self, other: "Component") -> bool:
        """Whether every unit of this component is one of `other`, too."""
        return self.tree is not None and self.tree == other.tree and self.traits > other.traits


def _part(name: str, count: str, tree: str, traits: str = "") -> Component:
    return Component(name, count, tree, frozenset(traits.split()))


_ALL: Final = (
    _part("input", "input_tokens", "input"),
    _part("cache_read", "cache_read_tokens", "input", "cache_read"),
    _part("cache_write", "cache_write_tokens", "input", "cache_write"),
    _part("cache_write_1h", "cache_write_1h_tokens", "input", "cache_write 1h"),
    _part("audio_input", "audio_input_tokens", "input", "audio"),
    _part("audio_cache_read", "audio_cache_read_tokens", "input", "audio cache_read"),
    _part("image_input", "image_input_tokens", "input", "image"),
    _part("image_cache_read", "image_cache_read_tokens", "input", "image cache_read"),
    _part("video_input", "video_input_tokens", "input", "video"),
    _part("output", "output_tokens", "output"),
    _part("reasoning", "reasoning_tokens", "output", "reasoning"),
    _part("citation", "citation_tokens", "output", "citation"),
    _part("audio_output", "audio_output_tokens", "output", "audio"),
    _part("image_output", "image_output_tokens", "output", "image"),
    _part("video_output", "video_output_tokens", "output", "video"),
    _part("page", "pages", "page"),
    _part("annotated_page", "annotated_pages", "page", "annotated"),
    Component("request", "requests"),
    Component("character", "characters"),
    Component("text_message", "text_messages"),
    Component("image", "images"),
    Component("audio_duration", "audio_ms", per=MS_PER_HOUR),
    Component("web_search", "web_searches"),
    Component("file_search", "file_searches"),
    Component("social_search", "social_searches"),
    Component("code_execution", "code_executions"),
    Component("rerank_search", "rerank_searches"),
)

COMPONENTS: Final[Mapping[str, Component]] = {each.name: each for each in _ALL}
BY_COUNT: Final[Mapping[str, Component]] = {each.count: each for each in _ALL}
TREES: Final = ("input", "output", "page")
# The parts of each tree, those inside others first: each gets its units before what it lies in.
PARTS: Final[Mapping[str, tuple[Component, ...]]] = {
    tree: tuple(
        sorted(
            (each for each in _ALL if each.tree == tree and each.name != tree),
            key=lambda each: -len(each.traits),
        )
    )
    for tree in TREES
}
FLAT: Final = tuple(each for each in _ALL if each.tree is None)

# Traits that a token has only when the request asks for it; any other may come of its own accord.
MODAL_TRAITS: Final = frozenset({"audio", "image", "video", "1h"})
