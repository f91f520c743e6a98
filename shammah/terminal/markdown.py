"""Markdown as lines of styled text for a terminal of some width. Pure.

markdown-it parses and Pygments highlights; what is here is only how a block looks. Rich has its
own Markdown, which puts code into padded boxes and cuts it to the width; code must come out of a
terminal's selection as it went in, so its lines are never wrapped, indented or filled.

Colours are the terminal's own sixteen, which its owner has chosen to be legible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Token
from pygments.util import ClassNotFound

from shammah.terminal.styled_text import Line, Span, closed, get_width, merged, wrap

BOLD, DIM, ITALIC, UNDERLINED, STRUCK, CYAN = "1", "2", "3", "4", "9", "36"
LONGEST_HIGHLIGHTED = 20_000
"""Characters of a code block; a longer one has the colour of code without a language."""
NARROWEST = 8
"""Cells that text gets at least, however deep it is in lists."""

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


@dataclass(frozen=True, slots=True)
class Layout:
    """A text laid out.

    ``lines`` are those of the whole text. From source line ``open_source`` on, which is
    ``lines[open_line]``, further text may still change how it looks; what is before is final.
    """

    lines: tuple[Line, ...]
    open_source: int = 0
    open_line: int = 0


class Markdown:
    """Lays texts out; keeps the parser and the lexers."""

    def __init__(self) -> None:
        # HTML stays visible as it was written. A paragraph is never a heading after the fact:
        # while a list is being written, its first dash would make one of the line before.
        options = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
        self._parser = options.disable(["lheading", "reference"])
        self._lexers: dict[str, Lexer | None] = {}

    def lay_out(self, source: str, width: int) -> Layout:
        """``source`` in lines of at most ``width`` cells, but for code."""
        blocks = _top(SyntaxTreeNode(self._parser.parse(source)))
        texts = source.split("\n")
        lines: list[Line] = []
        opened = (0, 0)
        for number, (block, mark) in enumerate(blocks):
            first = block.map[0] if block.map else 0
            if number and (_blank_before(texts, first) or _ends_in_code(blocks[number - 1][0])):
                lines.append(())
            if number == len(blocks) - 1:
                opened = (first, len(lines))
            lines += self._item(block, mark, width) if mark else self._block(block, width)
        return Layout(tuple(lines), *opened)

    def open_inline(self, source: str) -> str:
        """The running text that ``source`` ends in; empty if it ends in code."""
        tree = SyntaxTreeNode(self._parser.parse(source))
        while tree.children and tree.type != "inline":
            tree = tree.children[-1]
        return tree.content if tree.type == "inline" else ""

    # --- blocks ---------------------------------------------------------------------------

    def _blocks(self, nodes: Sequence[SyntaxTreeNode], width: int) -> Iterator[Line]:
        end = None
        for node in nodes:
            if end is not None and node.map and (node.map[0] > end or _is_code(node)):
                yield ()
            yield from self._block(node, width)
            end = _last_source_line(node)

    def _block(self, node: SyntaxTreeNode, width: int) -> Iterator[Line]:
        match node.type:
            case "fence" | "code_block":
                yield from self._code(node.content, node.info.split()[:1])
            case "heading":
                style = f"{BOLD};{UNDERLINED}" if node.tag == "h1" else BOLD
                yield from wrap(_inline(node.children, style), width)
            case "blockquote":
                for line in self._blocks(node.children, _narrowed(width, 2)):
                    yield (("│ ", DIM), *line)
            case "bullet_list" | "ordered_list":
                for number, (item, mark) in enumerate(_items(node)):
                    if number and _is_loose(node):
                        yield ()
                    yield from self._item(item, mark, width)
            case "hr":
                yield (("─" * min(width, 40), DIM),)
            case "table":
                yield from _table(node, width)
            case _:
                yield from wrap(_inline(node.children), width)

    def _item(self, item: SyntaxTreeNode, mark: str, width: int) -> Iterator[Line]:
        """A list's item: everything but code stands to the right of its mark."""
        indent = " " * get_width(mark)
        prefix = mark
        for block in item.children:
            if block is not item.children[0] and block.map:
                before = item.children[item.children.index(block) - 1]
                if block.map[0] > _last_source_line(before) or _is_code(block):
                    yield ()
            lines = self._block(block, _narrowed(width, len(indent)))
            for line in lines:
                yield line if _is_code(block) or not line else ((prefix, ""), *line)
                prefix = indent
        if prefix is mark:
            yield ((mark.rstrip(), ""),)

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


def _top(tree: SyntaxTreeNode) -> list[tuple[SyntaxTreeNode, str]]:
    """The blocks in order, each item of a list a block with its mark: an item that has been
    followed by another is final."""
    found: list[tuple[SyntaxTreeNode, str]] = []
    for node in tree.children:
        found += _items(node) if node.type in ("bullet_list", "ordered_list") else [(node, "")]
    return found


def _items(node: SyntaxTreeNode) -> list[tuple[SyntaxTreeNode, str]]:
    if node.type == "bullet_list":
        return [(item, "• ") for item in node.children]
    first = int(node.attrs.get("start", 1))
    last = str(first + len(node.children) - 1)
    return [
        (item, f"{f'{first + number}.':<{len(last) + 1}} ")
        for number, item in enumerate(node.children)
    ]


def _is_code(node: SyntaxTreeNode) -> bool:
    return node.type in ("fence", "code_block")


def _ends_in_code(node: SyntaxTreeNode) -> bool:
    while node.children and not _is_code(node):
        node = node.children[-1]
    return _is_code(node)


def _is_loose(node: SyntaxTreeNode) -> bool:
    return any(
        after.map and after.map[0] > _last_source_line(before)
        for before, after in zip(node.children, node.children[1:], strict=False)
    )


def _last_source_line(node: SyntaxTreeNode) -> int:
    """The line after the last one that has any text of ``node``; a list's ``map`` includes the
    blank lines after it."""
    while node.children and node.type in ("bullet_list", "ordered_list", "list_item"):
        node = node.children[-1]
    return node.map[1] if node.map else 0


def _blank_before(texts: Sequence[str], line: int) -> bool:
    return line > 0 and not texts[line - 1].strip()


def _narrowed(width: int, by: int) -> int:
    return max(NARROWEST, width - by)


def _code_style(token: object) -> str:
    while token is not None:
        if token in _CODE_STYLES:
            return _CODE_STYLES[token]
        token = token.parent  # type: ignore[attr-defined]
    return ""


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
    """Where a link leads, unless its text says so: a person should see that."""
    address = str(node.attrs.get("href") or node.attrs.get("src") or "")
    text = "".join(text for text, _ in _inline(node.children))
    if not address or address.removeprefix("mailto:") == text:
        return []
    return [(f" ({address})", DIM)]


def _with(style: str, further: str) -> str:
    return ";".join(filter(None, (style, further)))


# --- tables -------------------------------------------------------------------------------


def _table(node: SyntaxTreeNode, width: int) -> Iterator[Line]:
    """Columns two blanks apart, a rule below the head; cells that are too wide are wrapped."""
    rows = [row for part in node.children for row in part.children]
    columns = len(rows[0].children)
    texts = [[_inline(cell.children) for cell in row.children][:columns] for row in rows]
    widths = _column_widths(texts, width)
    ends = ["right" in str(cell.attrs.get("style", "")) for cell in rows[0].children]
    for number, row in enumerate(texts):
        style = "" if number else BOLD
        cells = [
            wrap([(text, _with(own, style)) for text, own in cell], size)
            for cell, size in zip(row, widths, strict=True)
        ]
        for index in range(max(map(len, cells))):
            parts = [cell[index] if index < len(cell) else () for cell in cells]
            yield _table_line(parts, widths, ends)
        if not number:
            yield merged([("  ".join("─" * size for size in widths), DIM)])


def _column_widths(rows: Sequence[Sequence[Sequence[Span]]], width: int) -> list[int]:
    """What each column takes; the widest are made narrower until all fit, if they can."""
    natural = [
        max(1, *(sum(get_width(text) for text, _ in cell) for cell in column))
        for column in zip(*rows, strict=True)
    ]
    room = width - 2 * (len(natural) - 1)
    limit = min(max(natural), width)
    while limit > 3 and sum(min(size, limit) for size in natural) > room:
        limit -= 1
    return [min(size, limit) for size in natural]


def _table_line(parts: Sequence[Line], widths: Sequence[int], ends: Sequence[bool]) -> Line:
    line: list[Span] = []
    for number, (part, size, end) in enumerate(zip(parts, widths, ends, strict=True)):
        fill = (" " * (size - sum(get_width(text) for text, _ in part)), "")
        line += [("  ", "")] if number else []
        line += [fill, *part] if end else [*part, fill]
    return closed(line)
