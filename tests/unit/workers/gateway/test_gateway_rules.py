"""Who may ask, who answers for a name, what is remembered, and how a refusal is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shammah.bus.messages import ChatMessage, Failed
from shammah.chat.conversation import Turn
from shammah.privacy.gate import Gate
from shammah.router.route import Override, Target
from shammah.settings.model import CloudSettings, ServerSettings, Settings
from workers.gateway.access import refuse_place, refuse_stranger
from workers.gateway.asking import Asked, models, override_of, read_wishes, room
from workers.gateway.memory import Known, Memory
from workers.gateway.refusals import Dialect, RefusedError, describe, refusal_of

KEYED = Settings(Path("/home"), cloud=CloudSettings(api_key="k"))
KEYLESS = Settings(Path("/home"))
MAIL = ChatMessage("user", "Write to anna.weber@firma-weber.de today")
HELLO, ANSWER, MORE = (
    ChatMessage("user", "Hello"),
    ChatMessage("assistant", "Ask anna.weber@firma-weber.de."),
    ChatMessage("user", "And now?"),
)


@pytest.mark.parametrize("host", ["localhost", "localhost:1", "127.0.0.1:11611", "[::1]:80"])
def test_this_machine_is_asked_by_its_own_name(host: str) -> None:
    assert refuse_place({"host": host}, ()) is None
    assert refuse_place({"host": host, "origin": f"http://{host}"}, ()) is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "evil.example"},
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.evil.example:80"},
        {"host": "localhost", "origin": "http://evil.example"},
        {"host": "localhost", "origin": "https://page.example.evil"},
        {"host": "localhost", "origin": "null"},
        {"host": "localhost", "origin": ""},
    ],
)
def test_another_place_is_refused(headers: dict[str, str]) -> None:
    refused = refuse_place(headers, ("https://page.example",))
    assert refused is not None
    assert refused.status == 403


def test_a_page_may_be_allowed() -> None:
    assert refuse_place({"host": "localhost", "origin": "https://a.b"}, ("https://a.b",)) is None


def test_the_token_comes_in_either_header() -> None:
    assert refuse_stranger({"authorization": "Bearer t"}, "t") is None
    assert refuse_stranger({"authorization": "bearer  t"}, "t") is None
    assert refuse_stranger({"x-api-key": "t"}, "t") is None
    for headers in ({}, {"authorization": "Basic t"}, {"x-api-key": "é"}, {"x-api-key": "tt"}):
        refused = refuse_stranger(headers, "t")
        assert refused is not None
        assert refused.status == 401


def test_a_name_says_who_answers() -> None:
    assert override_of("auto", KEYED, "starter") == Override()
    for name in ("local", "starter"):
        assert override_of(name, KEYED, "starter") == Override(Target.LOCAL)
    for name in ("cloud", KEYED.cloud.model, "claude-opus-5-5"):
        assert override_of(name, KEYED, "starter") == Override(Target.CLOUD)
    for name in ("gpt-4", "server:"):
        with pytest.raises(RefusedError, match=rf"'{name}'.*auto, local, starter"):
            override_of(name, KEYLESS, "starter")
    assert [name for name, _ in models(KEYED, "starter")][2] == "cloud"


def test_a_server_is_asked_by_its_name_unless_it_is_the_cloud_or_the_local_model() -> None:
    address = "http://127.0.0.1:1/v1"
    named = {
        "box": ServerSettings(address, trust="trusted"),
        "mine": ServerSettings(address),
        "shop": ServerSettings(address, trust="cloud"),
    }
    settings = replace(KEYLESS, model="server:mine/llama", servers=named)
    assert override_of("server:box", settings, "llama") == Override(Target.SERVER, server="box")
    for name in ("server:mine", "server:mine/llama", "llama"):
        assert override_of(name, settings, "llama") == Override(Target.LOCAL)
    assert [name for name, _ in models(settings, "llama")] == [
        "auto",
        "local",
        "llama",
        "server:box",
    ]
    for name in ("server:shop", "server:", "server:box/llama", "server:none"):
        with pytest.raises(
            RefusedError, match=rf"no model '{name}' here.*: .*server:box\."
        ) as found:
            override_of(name, settings, "llama")
        assert (found.value.status, found.value.code) == (404, "model_not_found")


def test_what_headers_say() -> None:
    wishes = read_wishes({"user-agent": "opencode/1.18 (linux)", "shammah-private": "yes"})
    assert (wishes.model, wishes.private, wishes.client) == ("", True, "opencode")
    assert read_wishes({"shammah-target": "Cloud"}).model == "cloud"
    assert read_wishes({"shammah-target": "server:Box"}).model == "server:Box"
    assert read_wishes({"shammah-client": "x" * 99}).client == "x" * 40
    with pytest.raises(RefusedError, match="shammah-private"):
        read_wishes({"shammah-private": "perhaps"})


def test_a_limit_beyond_ours_is_none() -> None:
    asked = Asked("auto", (HELLO,))
    assert room(asked, KEYED) is None
    assert room(replace(asked, max_tokens=128000), KEYED) is None
    assert room(replace(asked, max_tokens=4096), KEYED) == 4096


def session(home: Path) -> Any:
    return SimpleNamespace(gate=Gate(Settings(home), {}))


def test_what_is_private_stays_so_in_its_own_conversation_only(tmp_path: Path) -> None:
    memory, one = Memory(), session(tmp_path)
    assert [mark.private for mark in memory.marks(one, (HELLO, MORE))] == [False, False]
    assert memory.marks(one, (MAIL,))[0].why == "it contains an e-mail address (privacy.emails)"
    assert memory.marks(one, (ChatMessage("user", "!private Hello"),))[0].private
    memory.learn((HELLO,), Turn("Hello", "Fine.", private=True), Known(7, "k"))
    fine = ChatMessage("assistant", "Fine.")
    assert [mark.private for mark in memory.marks(one, (HELLO, fine, MORE))] == [True, True, False]
    assert not memory.marks(one, (MORE, fine, HELLO))[2].private
    assert memory.known((HELLO, fine)).number == 7
    assert memory.known((MORE, fine)).number == 0


def test_what_was_private_before_a_restart_is_known_by_question_and_answer(tmp_path: Path) -> None:
    memory, one = Memory(), session(tmp_path)
    memory.recall([("Hello", " Fine.\n")])
    fine, marked = ChatMessage("assistant", "Fine."), ChatMessage("user", "!private Hello")
    assert [mark.private for mark in memory.marks(one, (HELLO, fine, MORE))] == [True, True, False]
    assert memory.marks(one, (marked, fine, MORE))[1].private
    for said in ((HELLO, replace(fine, content="Well."), MORE), (MORE, fine, HELLO)):
        assert not any(mark.private for mark in memory.marks(one, said))


def test_what_claude_said_is_no_news_to_claude(tmp_path: Path) -> None:
    memory, one = Memory(), session(tmp_path)
    assert memory.marks(one, (HELLO, ANSWER))[1].private
    memory.learn((HELLO,), Turn("Hello", ANSWER.content, local=False), Known(1, "k"))
    assert not memory.marks(one, (HELLO, ANSWER))[1].private
    asked = replace(ANSWER, role="user")
    assert memory.marks(one, (HELLO, asked))[1].private


def test_a_long_prompt_is_refused_in_the_words_that_clients_look_for() -> None:
    said = "The question has about 20,093 tokens with the system prompt, but the local model holds "
    failure = Failed("context_too_long", f"{said}8,192, including its answer.", "Shorten it.")
    refused = refusal_of(failure)
    assert refused.status == 400
    openai: Any = describe(refused, Dialect.OPENAI)["error"]
    assert openai["code"] == "context_length_exceeded"
    assert "8192 tokens. However, your messages resulted in 20093" in openai["message"]
    claude: Any = describe(refused, Dialect.ANTHROPIC)["error"]
    assert claude["type"] == "invalid_request_error"
    assert claude["message"].startswith("prompt is too long: 20093 tokens > 8192 maximum")


def test_what_may_work_later_says_when() -> None:
    busy = refusal_of(Failed("busy", "Too many wait."))
    assert (busy.status, busy.headers) == (429, {"retry-after": "5"})
    for code, status in (("cloud_budget_spent", 403), ("worker_died", 503), ("unforeseen", 500)):
        assert refusal_of(Failed(code, "x")).status == status
    kinds = [
        describe(RefusedError(status, "x", "y"), Dialect.ANTHROPIC)["error"]["type"]  # type: ignore[index]
        for status in (401, 403, 404, 413, 429, 500, 529)
    ]
    assert kinds == [
        "authentication_error",
        "permission_error",
        "not_found_error",
        "request_too_large",
        "rate_limit_error",
        "api_error",
        "overloaded_error",
    ]
