"""Regular expressions that are searched in linear time. Pure.

Python's own `re` backtracks: ``(a+)+$`` takes years on a line of forty letters. Here a pattern
becomes an automaton that is walked once over the text (Thompson, "Regular Expression Search
Algorithm", CACM 11(6), 1968), with the sets of states that were met kept as in RE2. So a text
of n characters takes at most n times the size of the pattern, whatever both are.

Syntax and meaning are those of `re`, whose parser is used. What cannot be done this way is
refused: look-around, back-references, conditions, atomic groups and possessive quantifiers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MAX_STATES = 2000
"""Of one pattern: ``(abc){500}`` has 1,500."""

MAX_SETS = MAX_MOVES = 1000
"""Sets of states that are remembered, and characters for each; beyond, all are forgotten and
found again."""

Test = Callable[[str], bool]
Edge = tuple[Any, int]
"""What leads to the next state: a `Test` of one character, the name of a place, or ``None``."""

_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}
_PLACES = {
    op.AT_BEGINNING: "^",
    op.AT_BEGINNING_STRING: r"\A",
    op.AT_END: "$",
    op.AT_END_STRING: r"\Z",
    op.AT_BOUNDARY: r"\b",
    op.AT_NON_BOUNDARY: r"\B",
}


class _Node:
    """A set of states after some character, and where the next one leads."""

    __slots__ = ("found", "moves", "states")

    def __init__(self, states: frozenset[int], *, found: bool = False) -> None:
        self.states = states
        self.found = found
        self.moves: dict[str, _Node] = {}


_FOUND = _Node(frozenset(), found=True)


class PatternError(Exception):
    """Completes the sentence "the pattern ..."."""


class Pattern:
    """One compiled pattern.

    Raises:
        PatternError: it is none, it holds something that is not allowed here, or it is too big.
    """

    def __init__(self, source: str) -> None:
        try:
            tree = _parser.parse(source)
        except (re.error, OverflowError, RecursionError) as error:
            raise PatternError(f"is not a regular expression ({error})") from error
        self._flags = tree.state.flags
        self._edges: list[list[Edge]] = [[]]
        self._tests: dict[Any, Test] = {}
        end = self._sequence(tree, 0)
        self._end = end
        self._placed = any(isinstance(test, str) for edges in self._edges for test, _ in edges)
        self._nodes: dict[frozenset[int], _Node] = {}
        self._between: dict[str, str] = {}

    def search(self, text: str) -> bool:
        """Whether the pattern is found anywhere in ``text``."""
        node = self._node(frozenset())
        places = before = ""
        last = len(text) - 1
        for index, here in enumerate(text):
            if self._placed:
                pair = before + here
                if 0 < index < last and pair in self._between:
                    places = self._between[pair]
                else:
                    places = self._places(before, here, last=index == last)
                    if 0 < index < last and len(self._between) < MAX_MOVES:
                        self._between[pair] = places
                before = here
            known = node.moves.get(here + places)
            following = known or self._move(node, here, places)
            if following.found:
                return True
            node = following
        places = self._places(text[-1:], "", last=False)
        return self._end in self._closure(node.states, places)

    # --- the walk -------------------------------------------------------------------------

    def _places(self, before: str, here: str, *, last: bool) -> str:
        """The names of all that is true between two characters (empty: the text's ends)."""
        multiline = bool(self._flags & re.MULTILINE)
        true = r"\b" if _is_word(before) != _is_word(here) else r"\B"
        if not before or (multiline and before == "\n"):
            true += " ^"
        if not before:
            true += r" \A"
        if not here or (here == "\n" and (last or multiline)):
            true += " $"
        if not here:
            true += r" \Z"
        return true

    def _move(self, node: _Node, here: str, places: str) -> _Node:
        """Find and cache where ``here`` leads from ``node``."""
        states = self._closure(node.states, places)
        if self._end in states:
            following = _FOUND
        else:
            reached = frozenset(
                target
                for state in states
                for test, target in self._edges[state]
                if callable(test) and test(here)
            )
            following = self._node(reached)
        if len(node.moves) >= MAX_MOVES:
            node.moves.clear()
        node.moves[here + places] = following
        return following

    def _node(self, states: frozenset[int]) -> _Node:
        known = self._nodes.get(states)
        if known is None:
            if len(self._nodes) >= MAX_SETS:
                self._nodes.clear()
            known = self._nodes[states] = _Node(states)
        return known

    def _closure(self, states: frozenset[int], places: str) -> set[int]:
        """``states`` and the beginning, since a match may begin anywhere, and what is reached
        from them without a character."""
        holds = set(places.split())
        reached = {0, *states}
        waiting = list(reached)
        while waiting:
            for test, target in self._edges[waiting.pop()]:
                if target not in reached and (test is None or test in holds):
                    reached.add(target)
                    waiting.append(target)
        return reached

    # --- the automaton --------------------------------------------------------------------

    def _state(self) -> int:
        if len(self._edges) >= MAX_STATES:
            raise PatternError("is too big")
        self._edges.append([])
        return len(self._edges) - 1

    def _link(self, source: int, test: Any = None) -> int:
        target = self._state()
        self._edges[source].append((test, target))
        return target

    def _sequence(self, items: Iterable[Any], start: int) -> int:
        """Add ``items`` after ``start``; the state after them."""
        for kind, argument in items:
            start = self._item(kind, argument, start)
        return start

    def _item(self, kind: Any, argument: Any, start: int) -> int:
        if kind in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            return self._link(start, self._test(kind, argument))
        if kind is op.AT:
            return self._link(start, _PLACES[argument])
        if kind is op.BRANCH:
            ends = [self._sequence(branch, self._link(start)) for branch in argument[1]]
            joined = self._state()
            for end in ends:
                self._edges[end].append((None, joined))
            return joined
        if kind is op.SUBPATTERN:
            _, added, removed, items = argument
            if added or removed:
                raise PatternError("switches a flag inside; do so at its beginning")
            return self._sequence(items, start)
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, items = argument
            return self._repeat(least, most, items, start)
        raise PatternError(
            "holds look-around, a back-reference, a condition, an atomic group or a possessive "
            "quantifier"
        )

    def _repeat(self, least: int, most: Any, items: Any, start: int) -> int:
        if max(least, 0 if most is op.MAXREPEAT else most) > MAX_STATES:
            raise PatternError("is too big")
        for _ in range(least):
            start = self._sequence(items, start)
        if most is op.MAXREPEAT:
            loop = self._link(start)
            self._edges[self._sequence(items, loop)].append((None, loop))
            return self._link(loop)
        ends = [start]
        for _ in range(most - least):
            ends.append(self._sequence(items, ends[-1]))
        joined = self._state()
        for end in ends:
            self._edges[end].append((None, joined))
        return joined

    def _test(self, kind: Any, argument: Any) -> Test:
        """A test of one character: `re` itself, which cannot backtrack over one."""
        source = _source_of(kind, argument)
        if source not in self._tests:
            kept = self._flags & (re.IGNORECASE | re.DOTALL | re.ASCII)
            matches = re.compile(source, kept).fullmatch
            self._tests[source] = lambda character: matches(character) is not None
        return self._tests[source]


def _source_of(kind: Any, argument: Any) -> str:
    """The source of what stands for one character."""
    if kind is op.ANY:
        return "."
    if kind is op.LITERAL:
        return re.escape(chr(argument))
    if kind is op.NOT_LITERAL:
        return f"[^{_escaped(argument)}]"
    parts = []
    for inner, value in argument:
        if inner is op.NEGATE:
            parts.append("^")
        elif inner is op.LITERAL:
            parts.append(_escaped(value))
        elif inner is op.RANGE:
            parts.append(f"{_escaped(value[0])}-{_escaped(value[1])}")
        else:
            parts.append(_CATEGORIES[value])
    return f"[{''.join(parts)}]"


def _escaped(code: int) -> str:
    return f"\\U{code:08x}"


def _is_word(character: str) -> bool:
    return bool(character) and (character.isalnum() or character == "_")
