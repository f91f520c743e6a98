"""The index of the words in ``history.db`` (FTS5), and its queries.

The index holds no text of its own: it refers to the table of turns, and every write there updates
it.

A term may be anywhere in a word, as in a compound: a search first finds the indexed words that
contain it (fts5vocab), then the turns with one of those. For scripts without blanks it reads the
turns themselves. A trigram index would be several times as large, and could not find two
ideographs, which is what most Chinese words are.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Callable

from shammah.errors import ShammahError
from shammah.history.record import END_MARK, MARK
from shammah.storage.sqlite import transact

CURRENT = "current"

SNIPPET_WORDS = 16
_AROUND = 60
"""Characters shown before and after a match that was found without the index."""

SHORTEST = 2
"""A term of fewer characters is not looked for within words: it is in too many."""
MOST_WORDS = 1000

_ACCENTS = re.compile("[\u0300-\u036f]")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_TERMS = re.compile(r'"([^"]*)"|([^\s"]+)')


def prepare(database: sqlite3.Connection) -> None:
    """Make the index if it is stale, as that of a Shammah on a Python without FTS5 may be.

    Raises:
        ShammahError: ``history_unusable``: this Python has no FTS5.
    """
    _require_fts5(database)
    row = database.execute("SELECT value FROM facts WHERE name = 'words'").fetchone()
    if row is None or row[0] != CURRENT:
        transact(database, build)


def _require_fts5(database: sqlite3.Connection) -> None:
    if not database.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone():
        raise ShammahError(
            "history_unusable",
            "The history needs SQLite with FTS5, which this Python does not have.",
            'Use another Python, or set history = "off" in config.toml.',
        )


def build(database: sqlite3.Connection) -> None:
    """Make the index from the turns, inside a transaction.

    Raises:
        ShammahError: as `prepare` does.
    """
    _require_fts5(database)
    database.execute("DROP TABLE IF EXISTS words")
    database.execute(
        "CREATE VIRTUAL TABLE words USING fts5(question, answer, content = 'turns', "
        "content_rowid = 'number', tokenize = \"unicode61 remove_diacritics 2\", prefix = '2 3')"
    )
    database.execute("INSERT INTO words (words) VALUES ('rebuild')")
    database.execute("REPLACE INTO facts VALUES ('words', ?)", (CURRENT,))


def add(database: sqlite3.Connection, number: int) -> None:
    """Index the words of turn ``number``, inside a transaction."""
    database.execute(
        "INSERT INTO words (rowid, question, answer) "
        "SELECT number, question, answer FROM turns WHERE number = ?",
        (number,),
    )


def forget(database: sqlite3.Connection, number: int) -> None:
    """Remove the words of turn ``number`` from the index before its text changes, inside a
    transaction."""
    database.execute(
        "INSERT INTO words (words, rowid, question, answer) "
        "SELECT 'delete', number, question, answer FROM turns WHERE number = ?",
        (number,),
    )


def split_terms(text: str) -> list[str]:
    """Return the terms of a search; text in double quotes is one term."""
    terms = (phrase or word for phrase, word in _TERMS.findall(text.replace("\0", " ")))
    return [term for term in terms if any(character.isalnum() for character in term)]


def as_query(terms: list[str], holding: Callable[[str], list[str]]) -> str:
    """Return an FTS5 query for turns that have all of ``terms``, each perhaps as a part of a word.
    In quotes nothing is syntax, whatever people type.

    Args:
        terms: what to find.
        holding: returns the words that contain a term, or some of very many.
    """
    return " AND ".join(
        f'("{term}"*' + "".join(f' OR "{word}"' for word in holding(term)) + ")" for term in terms
    )


def find_words(database: sqlite3.Connection, term: str) -> list[str]:
    """Return the indexed words that contain ``term``, those of most turns first."""
    if len(term) < SHORTEST or not term.isalnum():
        return []
    database.execute(
        "CREATE VIRTUAL TABLE IF NOT EXISTS temp.vocabulary USING fts5vocab(main, words, row)"
    )
    rows = database.execute(
        "SELECT term FROM temp.vocabulary WHERE instr(term, ?) OR instr(term, ?) "
        "ORDER BY doc DESC LIMIT ?",
        (term.lower(), _without_accents(term.lower()), MOST_WORDS),
    )
    return [str(row[0]).replace('"', '""') for row in rows]


def is_unspaced(term: str) -> bool:
    """Return whether ``term`` is in a script without blanks, where FTS5 takes all text between two
    punctuation marks for one word."""
    return _UNSPACED.search(term) is not None


def _without_accents(text: str) -> str:
    # As "remove_diacritics 2" does: the voice marks of Japanese are none.
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


def as_pattern(term: str) -> str:
    r"""``term`` for LIKE ... ESCAPE '\'."""
    escaped = re.sub(r"([\\%_])", r"\\\1", term)
    return f"%{escaped}%"


def cut_snippet(text: str, terms: list[str]) -> str:
    """Do what FTS5's ``snippet`` does, for a text that was found without the index."""
    pattern = re.compile("|".join(map(re.escape, terms)), re.IGNORECASE)
    first = pattern.search(text)
    if first is None:
        return ""
    start, end = max(0, first.start() - _AROUND), first.end() + _AROUND
    marked = pattern.sub(lambda found: f"{MARK}{found[0]}{END_MARK}", text[start:end])
    return ("…" if start else "") + marked + ("…" if end < len(text) else "")
