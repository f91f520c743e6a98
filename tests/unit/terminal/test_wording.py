"""Words for people, and nothing that a terminal would obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.bus.messages import (
    Done,
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    Provenance,
    Ready,
    State,
    Timings,
    Usage,
)
from shammah.bus.transfers import Transfer, Transferring
from shammah.chat.conversation import Turn
from shammah.chat.summary import describe_answer, describe_empty
from shammah.router.explanation import REASONS
from shammah.router.route import Reason, RouteDecision, Target
from shammah.terminal.output import styled
from shammah.terminal.text import PrintablePieces, printable
from shammah.terminal.wording import (
    describe_background,
    describe_bytes,
    describe_coming,
    describe_failure,
    describe_state,
    download_under_way,
)

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\x08\x7f\r"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (None, "Starting"),
        (Initializing(), "Initializing"),
        (Downloading("m", 5 * 10**8, 2 * 10**9), "Downloading m: 25%, 0.5 of 2.0 GB"),
        (
            Downloading("m", 10**6, 3 * 10**6, 2.5e5, 8.0),
            "Downloading m: 33%, 1.0 of 3.0 MB, 0.2 MB/s, 8 s left",
        ),
        (Downloading("m", 12_000_000), "Downloading m: 12.0 MB"),
        (Loading("m", "weights", 1, 4), "Loading m: weights (2/4)"),
        (Ready("m"), "Ready: m"),
        (Ready("m", dtype="float32", device="cpu"), "Ready: m (float32, cpu)"),
        (
            Ready("m", dtype="float32", device="cpu", quantization="int8"),
            "Ready: m (int8 weights computed in float32, cpu)",
        ),
        (Ready("m", context_length=8192), "Ready: m (8,192 tokens)"),
        (Ready("m", fallback=True), "Ready: m (a small fallback model)"),
        (
            Ready("starter", fallback=True, successor=Downloading("acme/big", 41, 100)),
            "Ready: starter (a small fallback model) · fetching big: 41%, 0.0 of 0.0 MB",
        ),
        (
            Ready("starter", successor=Downloading("acme/big", 10**9, 3 * 10**9, 24e6, 72.0)),
            "Ready: starter · fetching big: 33%, 1.0 of 3.0 GB, 24.0 MB/s, 1 min 12 s left",
        ),
        (Ready("starter", note="No network."), "Ready: starter · No network."),
        (Transferring(), "Idle"),
        (
            Transferring((Transfer("m", "c", "running", 41, 100), Transfer("n"))),
            "m running: 41%, 0.0 of 0.0 MB; n waiting",
        ),
        (
            Transferring((Transfer("m", "c", "running", 41, 100, detail="HTTP 503"),)),
            "m running (HTTP 503): 41%, 0.0 of 0.0 MB",
        ),
        (NotAvailable("No network."), "Not available: No network."),
        (Failed("c", "Broken."), "Failed: Broken."),
    ],
)
def test_a_state_in_one_line(state: State | None, words: str) -> None:
    assert describe_state(state) == words


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (Loading("m", "weights", 1, 4), "Loading m: weights (2/4)"),
        (Ready("m"), ""),
        (Ready("m", note="No network."), ""),
        (
            Ready("starter", successor=Downloading("acme/big", 41, 100)),
            "fetching big: 41%, 0.0 of 0.0 MB",
        ),
        (NotAvailable("No network."), "Not available: No network."),
    ],
)
def test_what_is_coming_in_one_line(state: State, words: str) -> None:
    assert describe_coming(state) == words


COMING = Downloading("acme/big", 41, 100)


@pytest.mark.parametrize(
    ("state", "download"),
    [
        (None, None),
        (COMING, COMING),
        (Ready("starter", successor=COMING), COMING),
        (Ready("acme/big"), None),
        (Loading("acme/big", "weights"), None),
    ],
)
def test_which_download_is_under_way(state: State | None, download: Downloading | None) -> None:
    assert download_under_way(state) == download


@pytest.mark.parametrize(
    ("download", "words"),
    [
        (
            COMING,
            "The download of acme/big continues in the background (41%). To see it",
        ),
        (
            Downloading("acme/big"),
            "The download of acme/big continues in the background. To see it: `shammah",
        ),
        (
            Transfer("acme/big", "c", "running", 41, 100),
            "The download of acme/big continues in the background (41%). To see it",
        ),
        (
            Transfer("acme/big", "c", "paused", 41, 100),
            "The download of acme/big stays paused (41%). To continue it: `shammah models",
        ),
    ],
)
def test_what_to_know_of_a_download_when_leaving(
    download: Downloading | Transfer, words: str
) -> None:
    said = describe_background(download)
    assert said.startswith(words)
    assert said.endswith("to cancel it: `shammah models pull --cancel acme/big`.")


def test_what_must_come_again_has_its_time() -> None:
    assert describe_bytes(100, 100, 0.0, 8.0) == "100%, 0.0 of 0.0 MB, 8 s left"
    assert describe_bytes(100, 100, 0.0, 0.0) == "100%, 0.0 of 0.0 MB"


def test_loading_never_counts_beyond_its_total() -> None:
    assert describe_state(Loading("m", "ready", 4, 4)) == "Loading m: ready (4/4)"
    assert "(1/0)" not in describe_state(Loading("m", "weights"))


def done(**changes: object) -> Done:
    fields: dict[str, object] = {
        "request_id": "r",
        "finish_reason": "stop",
        "usage": Usage(10, 20),
        "timings": Timings(),
        "provenance": Provenance("inference", "starter"),
    }
    return Done(**{**fields, **changes})  # type: ignore[arg-type]


LOCAL = RouteDecision(Target.LOCAL, Reason.MODEL_READY)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (done(), "local: starter · local model ready · 20 tokens"),
        (
            done(timings=Timings(ttft_s=0.123, decode_tokens_per_second=31.26)),
            "local: starter · local model ready · 20 tokens · 31.3 tok/s · first token 0.12 s",
        ),
        (
            done(provenance=Provenance("inference", "starter", fallback=True)),
            "local: starter, a small fallback model · local model ready · 20 tokens",
        ),
    ],
)
def test_an_answer_in_one_line(answer: Done, words: str) -> None:
    assert describe_answer(answer, LOCAL) == words


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        ("stop", "20 tokens"),
        ("cancelled", "20 tokens"),
        ("length", "cut at the length limit"),
        ("refusal", "refused"),
        ("timeout", "cut at the time limit"),
        ("tool_call", "ended with a tool call"),
        ("other", "stopped for an unknown reason"),
    ],
)
def test_an_answer_that_ended_otherwise_says_so(reason: str, ending: str) -> None:
    assert describe_answer(done(finish_reason=reason), LOCAL).endswith(ending)


@pytest.mark.parametrize(
    ("role", "reason", "thought", "words"),
    [
        ("inference", "length", True, "limit of 20 tokens before it began to answer: it was still"),
        ("inference", "length", True, "have it think less (inference.think_tokens)"),
        ("inference", "length", False, "Raise --max-tokens, or inference.max_new_tokens"),
        ("cloud", "length", False, "before it began to answer. Raise --max-tokens, or cloud.max"),
        ("cloud", "refusal", False, "Claude refused to answer. Rephrase the question, or use --l"),
        (
            "inference",
            "refusal",
            False,
            "local model refused to answer. Rephrase the question.",
        ),
        ("cloud", "tool_call", False, "Claude called a tool instead of answering"),
        ("cloud", "stop", False, "Claude returned no text. Ask again"),
        ("inference", "stop", True, "The local model returned no text after thinking."),
        ("cloud", "other", False, "for an unknown reason. A notice. Ask again, or"),
    ],
)
def test_an_answer_without_text_says_what_happened_and_what_to_do(
    role: str, reason: str, thought: bool, words: str
) -> None:
    ended = done(finish_reason=reason, provenance=Provenance(role, "m"), notices=("A notice.",))
    empty = describe_empty(Turn("q", end=ended, thoughts="Hm." * thought))
    assert empty is not None
    assert words in describe_failure(empty)


def test_one_token_is_one_token() -> None:
    assert "1 token" in describe_answer(done(usage=Usage(1, 1)), LOCAL)
    assert "1 tokens" not in describe_answer(done(usage=Usage(1, 1)), LOCAL)


def test_every_reason_has_its_words() -> None:
    assert REASONS.keys() == set(Reason)


def test_a_failure_is_its_message_and_its_hint() -> None:
    assert describe_failure(Failed("c", "Broken.", "Mend it.")) == "Broken. Mend it."
    assert describe_failure(Failed("c", "Broken.")) == "Broken."


DECEPTIVE = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\ufeff")


@given(st.text())
def test_what_is_printable_has_no_control_characters_but_newline_and_tab(text: str) -> None:
    left = printable(text)
    assert not {c for c in left if (ord(c) < 32 or 127 <= ord(c) < 160) and c not in "\n\t"}
    assert not set(left) & DECEPTIVE
    assert printable(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "Zürich ☃ 你好 👩‍👩‍👧 العربية\n\tcode\u00a0\u00ad",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a joiner
        "שלום\u200f! (abc)\u200e",
        "❤\ufe0f 🏳\ufe0f\u200d🌈",
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",  # Scotland
        "ភាសា\u200bខ្មែរ",  # Khmer, whose words U+200B parts
        "葛\U000e0100城",  # a variant of an ideograph
    ],
)
def test_what_is_harmless_stays(text: str) -> None:
    assert printable(text) == text
    pieces = PrintablePieces()
    assert "".join(map(pieces.feed, text)) + pieces.finish() == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photo\u202egpj.exe", "photo<U+202E>gpj.exe"),
        ("a\u2066b\u2069", "a<U+2066>b<U+2069>"),
        ("pay\u200bpal", "pay<U+200B>pal"),
        ("x\U000e0068\U000e0069", "x<U+E0068><U+E0069>"),
        ("😊\U000e0153", "😊<U+E0153>"),
        ("\ufeffx\u2060y\u2028z", "<U+FEFF>x<U+2060>y<U+2028>z"),
        ("🏴\U000e0067", "🏴<U+E0067>"),
        ("\u200b", "<U+200B>"),
    ],
)
def test_what_hides_text_or_turns_it_round_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown
    pieces = PrintablePieces()
    assert "".join(map(pieces.feed, text)) + pieces.finish() == shown


@given(st.lists(st.text()))
def test_pieces_are_shown_as_the_whole(pieces: list[str]) -> None:
    shown = PrintablePieces()
    assert "".join(map(shown.feed, pieces)) + shown.finish() == printable("".join(pieces))


@pytest.mark.parametrize(
    "said",
    [
        describe_failure(Failed("c", ESCAPES, ESCAPES)),
        describe_state(Failed("c", ESCAPES)),
        describe_state(NotAvailable(ESCAPES)),
        describe_state(Loading(ESCAPES, ESCAPES)),
        describe_state(Downloading(ESCAPES)),
        describe_state(Ready(ESCAPES, dtype=ESCAPES, device=ESCAPES)),
        describe_answer(done(provenance=Provenance("cloud", ESCAPES)), LOCAL),
    ],
    ids=["failure", "failed", "not-available", "loading", "downloading", "ready", "answer"],
)
def test_what_others_have_written_cannot_steer_the_terminal(said: str) -> None:
    """A server's error text, a model's name or path: all of it ends on the screen."""
    assert said == printable(said)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("environ", "terminal", "coloured"),
    [
        ({}, True, True),
        ({"TERM": "xterm"}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),  # as no-color.org has it: "when present and not empty"
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_style_is_for_terminals_that_want_it(
    environ: dict[str, str], terminal: bool, coloured: bool
) -> None:
    text = styled("text", "2", environ, terminal=terminal)
    assert text == ("\x1b[2mtext\x1b[0m" if coloured else "text")
