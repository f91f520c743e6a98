"""Markdown as lines of styled text for a terminal of some width. Pure.

markdown-it parses and Pygments highlights; this module only lays out the blocks. Rich's own
Markdown pads code and cuts it to the width, but code must come out of a terminal's selection as it
went in, so its lines are never wrapped, indented or filled.

Colours are the terminal's own sixteen, which its owner chose to be legible.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Token
from pygments.util import ClassNotFound

from shammah.terminal.text import NARROWEST, Layout, Line, Span, cells, closed, wrap

BOLD, DIM, ITALIC, UNDERLINED, STRUCK, CYAN = "1", "2", "3", "4", "9", "36"
LONGEST_HIGHLIGHTED = 20_000
"""A code block of more characters is coloured like code without a language."""
_CODE_STYLES = {
    Token.Comment: DIM,
    Token.Keyword: "35",
    Token.Operator.Word: "35",
    Token.Literal.String: "32",
    Token.Literal.Number: CYAN,
    Token.Name.Function: BOLD,
    Token.Name.Class: BOLD,
    Token.Name.Builtin: CYAN,
    Token.Name.Decorator: "33",
    Token.Name.Tag: "35",
    Token.Name.Attribute: "33",
    Token.Generic.Deleted: "31",
    Token.Generic.Inserted: "32",
    Token.Generic.Heading: BOLD,
    Token.Generic.Subheading: "35",
}
_INLINE_STYLES = {"strong": BOLD, "em": ITALIC, "s": STRUCK, "link": UNDERLINED, "image": ITALIC}


_UNDECIDED = re.compile(
    r"""(?:
      (?:^|\n)[ \t]*(?:[-+*>]|\d{1,9}[.)]?)?[ \t]*     # perhaps a list's mark
    | (?:^|\n)[ \t]*\|[^\n]*(?:\n[ |:-]*)?             # a row of a table, or its head
    | !?\[[^\[\]\n]{1,200}\](?:\([^()\n]{0,500})?     # a link
    | [*_`~#|]+
    )$""",
    re.VERBOSE,
)
_UNDECIDED_CHARACTERS = 1000
_CODE = re.compile("`+[^`]*`+")
_STRONG = re.compile(r"\*\*(?=\S)|(?<=\S)\*\*")

_Row = tuple[Line, bool]
"""A line, and whether it is code, which nothing may precede."""


class Markdown:
    """Lays texts out; holds the parser and the lexers."""

    def __init__(self) -> None:
        # HTML stays visible as it was written. A paragraph is never a heading after the fact:
        # while a list is being written, its first dash would make one of the line before.
        options = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
        self._parser = options.disable(["lheading", "reference"])
        self._lexers: dict[str, Lexer | None] = {}

    def lay_out(self, source: str, width: int) -> Layout:
        """Lay ``source`` out in lines of at most ``width`` cells, except code."""
        lines: list[Line] = []
        opened = (0, 0)
        for first, rows in self._blocks(SyntaxTreeNode(self._parser.parse(source)).children, width):
            opened = (first, len(lines))
            lines += [line for line, _ in rows]
        return lines, *opened

    def presentable(self, source: str) -> str:
        """Return ``source`` without an end whose meaning the next piece decides, and with open
        marks closed, so that they do not appear and then vanish."""
        tail = source[-_UNDECIDED_CHARACTERS:]
        if found := _UNDECIDED.search(tail):
            source = source[: len(source) - len(tail) + found.start()]
        if "`" not in source and "**" not in source:
            return source
        text = _CODE.sub("", self._running_end(source))
        if "`" in text:
            return source.rstrip() + "`"
        if len(_STRONG.findall(text)) % 2:
            return source.rstrip() + "**"
        return source

    def _running_end(self, source: str) -> str:
        """Return the running text at the end of ``source``; empty if it ends in code."""
        node = _last_leaf(SyntaxTreeNode(self._parser.parse(source)), until="inline")
        return node.content if node.type == "inline" else ""

    # --- blocks ---------------------------------------------------------------------------

    def _blocks(
        self, nodes: Sequence[SyntaxTreeNode], width: int
    ) -> Iterator[tuple[int, list[_Row]]]:
        """Yield the rows of each block, and of the blank between two, with the source line where it
        begins. Each item of a list is a block, so that it is final when another follows."""
        before: SyntaxTreeNode | None = None
        for node, mark in _flattened(nodes):
            first = node.map[0] if node.map else 0
            if before is not None and (
                first > _end(before) or _is_code(node) or _is_code(_last_leaf(before))
            ):
                yield first, [((), False)]
            yield first, list(self._item(node, mark, width) if mark else self._block(node, width))
            before = node

    def _block(self, node: SyntaxTreeNode, width: int) -> Iterator[_Row]:
        match node.type:
            case "fence" | "code_block":
                for line in self._code(node.content, node.info.split()[:1]):
                    yield line, True
                return
            case "blockquote":
                inner = self._blocks(node.children, max(NARROWEST, width - 2))
                lines = [(("│ ", DIM), *line) for _, rows in inner for line, _ in rows]
            case "heading":
                style = f"{BOLD};{UNDERLINED}" if node.tag == "h1" else BOLD
                lines = wrap(_inline(node.children, style), width)
            case "hr":
                lines = [(("─" * min(width, 40), DIM),)]
            case "table":
                lines = list(_table(node, width))
            case _:
                lines = wrap(_inline(node.children), width)
        yield from ((line, False) for line in lines)

    def _item(self, item: SyntaxTreeNode, mark: str, width: int) -> Iterator[_Row]:
        """Lay out a list's item: all but code is to the right of its mark."""
        indent, prefix = " " * cells(mark), mark
        for _, rows in self._blocks(item.children, max(NARROWEST, width - len(indent))):
            for line, code in rows:
                if code and prefix is mark:
                    yield closed([(mark, "")]), False
                yield (line if code or not line else ((prefix, ""), *line)), code
                prefix = indent
        if prefix is mark:
            yield closed([(mark, "")]), False

    def _code(self, text: str, info: Sequence[str]) -> Iterator[Line]:
        text = text.removesuffix("\n")
        lexer = self._lexer(info[0].lower()) if info else None
        if lexer is None or len(text) > LONGEST_HIGHLIGHTED:
            for plain in text.split("\n"):
                yield ((plain, CYAN),) if plain else ()
            return
        line: list[Span] = []
        for token, piece in lexer.get_tokens(text):
            style = _code_style(token)
            for number, part in enumerate(piece.split("\n")):
                if number:
                    yield tuple(line)
                    line = []
                if part:
                    line.append((part, style))
        yield tuple(line)

    def _lexer(self, name: str) -> Lexer | None:
        if name not in self._lexers:
            try:
                self._lexers[name] = get_lexer_by_name(name, stripnl=False, ensurenl=False)
            except ClassNotFound:
                self._lexers[name] = None
        return self._lexers[name]


def _flattened(nodes: Sequence[SyntaxTreeNode]) -> Iterator[tuple[SyntaxTreeNode, str]]:
    """Yield the blocks, lists as their items, each with its mark."""
    for node in nodes:
        if node.type == "bullet_list":
            yield from ((item, "• ") for item in node.children)
        elif node.type == "ordered_list":
            first = int(node.attrs.get("start", 1))
            size = len(f"{first + len(node.children) - 1}.")
            for number, item in enumerate(node.children, first):
                yield item, f"{f'{number}.':<{size}} "
        else:
            yield node, ""


def _is_code(node: SyntaxTreeNode) -> bool:
    return node.type in ("fence", "code_block")


def _last_leaf(node: SyntaxTreeNode, until: str = "") -> SyntaxTreeNode:
    while node.children and node.type != until:
        node = node.children[-1]
    return node


def _end(node: SyntaxTreeNode) -> int:
    """Return the line after the last text of ``node``; a list's ``map`` includes the blank lines
    after it."""
    while node.children and node.type in ("bullet_list", "ordered_list", "list_item"):
        node = node.children[-1]
    return node.map[1] if node.map else 0


def _code_style(token: Any) -> str:
    kinds = reversed(token.split())  # the narrowest first
    return next((_CODE_STYLES[kind] for kind in kinds if kind in _CODE_STYLES), "")


# --- running text -------------------------------------------------------------------------


def _inline(nodes: Sequence[SyntaxTreeNode], style: str = "") -> list[Span]:
    spans: list[Span] = []
    for node in nodes:
        match node.type:
            case "softbreak" | "hardbreak":
                spans.append(("\n", ""))
            case "code_inline":
                spans.append((node.content, _with(style, CYAN)))
            case "text" | "html_inline":
                spans.append((node.content, style))
            case _:
                spans += _inline(node.children, _with(style, _INLINE_STYLES.get(node.type, "")))
                spans += _address(node)
    return spans


def _address(node: SyntaxTreeNode) -> list[Span]:
    """Return where a link leads, unless its text says so: a person should see that."""
    address = str(node.attrs.get("href") or node.attrs.get("src") or "")
    text = "".join(text for text, _ in _inline(node.children))
    if not address or address.removeprefix("mailto:") == text:
        return []
    return [(f" ({address})", DIM)]


def _with(style: str, further: str) -> str:
    return ";".join(filter(None, (style, further)))


# --- tables -------------------------------------------------------------------------------


def _table(node: SyntaxTreeNode, width: int) -> Iterator[Line]:
    """Lay out columns two blanks apart, with a rule below the head; wide cells are wrapped."""
    head, *rows = [row.children for part in node.children for row in part.children]
    ends = ["right" in str(cell.attrs.get("style", "")) for cell in head]
    texts = [[_inline(cell.children, BOLD) for cell in head]]
    texts += [[_inline(cell.children) for cell in row[: len(head)]] for row in rows]
    widths = _column_widths(texts, width)
    for number, row in enumerate(texts):
        wrapped = [wrap(cell, size) for cell, size in zip(row, widths, strict=True)]
        for parts in itertools.zip_longest(*wrapped, fillvalue=()):
            line: list[Span] = []
            for part, size, end in zip(parts, widths, ends, strict=True):
                fill = (" " * (size - _width(part)), "")
                line += [("  ", "")] if line else []
                line += [fill, *part] if end else [*part, fill]
            yield closed(line)
        if not number:
            yield closed([("  ".join("─" * size for size in widths), DIM)])


def _column_widths(rows: Sequence[Sequence[Sequence[Span]]], width: int) -> list[int]:
    """Return each column's width; the widest are narrowed until all fit, if they can."""
    natural = [max(1, *map(_width, column)) for column in zip(*rows, strict=True)]
    room = width - 2 * (len(natural) - 1)
    limit = min(max(natural), width)
    while limit > 3 and sum(min(size, limit) for size in natural) > room:
        limit -= 1
    return [min(size, limit) for size in natural]


def _width(spans: Sequence[Span]) -> int:
    return sum(cells(text) for text, _ in spans)
