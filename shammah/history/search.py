"""The index of the words in ``history.db`` (FTS5), and how a search is put to it.

The index holds no text of its own: it refers to the table of turns and is kept up to date by
whoever writes there.

What is searched for may stand anywhere in a word, as in a compound: the index is first asked for
the words that it has with that in them (fts5vocab), and then for the turns that have one of those.
For scripts without blanks the turns themselves are read. A trigram index would be several times as
large, and could not find two ideographs, which is what most Chinese words are.
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
"""Characters before and after what was found without the index."""

SHORTEST = 2
"""Characters that are looked for within words; fewer are in too many."""
MOST_WORDS = 1000

_ACCENTS = re.compile("[\u0300-\u036f]")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u2e80-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_TERMS = re.compile(r'"([^"]*)"|([^\s"]+)')


def prepare(database: sqlite3.Connection) -> None:
    """Have a true index; that of an earlier Shammah, on a Python without FTS5, may be stale.

    Raises:
        ShammahError: ``history_unusable``: this is such a Python.
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
    """Make the index from the turns. Inside a transaction.

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
    """Index the words of turn ``number``. Inside a transaction."""
    database.execute(
        "INSERT INTO words (rowid, question, answer) "
        "SELECT number, question, answer FROM turns WHERE number = ?",
        (number,),
    )


def forget(database: sqlite3.Connection, number: int) -> None:
    """Take the words of turn ``number`` out of the index, before its text changes. Inside a
    transaction."""
    database.execute(
        "INSERT INTO words (words, rowid, question, answer) "
        "SELECT 'delete', number, question, answer FROM turns WHERE number = ?",
        (number,),
    )


def split_terms(text: str) -> list[str]:
    """The words of a search; what stands between double quotes is one."""
    terms = (phrase or word for phrase, word in _TERMS.findall(text.replace("\0", " ")))
    return [term for term in terms if any(character.isalnum() for character in term)]


def as_query(terms: list[str], holding: Callable[[str], list[str]]) -> str:
    """An FTS5 query for turns that have all of ``terms``, each perhaps as a part of a word.

    In quotes nothing is syntax, whatever people type.

    Args:
        holding: the words that have a term in them, or some of very many.
    """
    return " AND ".join(
        f'("{term}"*' + "".join(f' OR "{word}"' for word in holding(term)) + ")" for term in terms
    )


def find_words(database: sqlite3.Connection, term: str) -> list[str]:
    """The words of the index that have ``term`` in them, those of most turns first."""
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
    """Whether ``term`` is in a script without blanks between words, where FTS5 takes all between
    two marks for one word: that is of no use."""
    return _UNSPACED.search(term) is not None


def _without_accents(text: str) -> str:
    # As "remove_diacritics 2" does: the voice marks of Japanese are none.
    return unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", text)))


def as_pattern(term: str) -> str:
    r"""``term`` for LIKE ... ESCAPE '\'."""
    escaped = re.sub(r"([\\%_])", r"\\\1", term)
    return f"%{escaped}%"


def cut_snippet(text: str, terms: list[str]) -> str:
    """What FTS5's ``snippet`` does, for a text that was found without the index."""
    pattern = re.compile("|".join(map(re.escape, terms)), re.IGNORECASE)
    first = pattern.search(text)
    if first is None:
        return ""
    start, end = max(0, first.start() - _AROUND), first.end() + _AROUND
    marked = pattern.sub(lambda found: f"{MARK}{found[0]}{END_MARK}", text[start:end])
    return ("…" if start else "") + marked + ("…" if end < len(text) else "")
