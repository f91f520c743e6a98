"""What is asked of the Messages API."""

from __future__ import annotations

import pytest

from shammah.bus.messages import ChatMessage, Generate, Sampling
from shammah.errors import ShammahError
from shammah.settings.model import CloudSettings
from workers.cloud.request import ANTHROPIC_URL, Peer, build_call

ANTHROPIC = Peer.of("")
CUSTOM = Peer.of("http://127.0.0.1:8080")
SETTINGS = CloudSettings(api_key="k", model="claude-test", max_tokens=4096)


def generate(*messages: tuple[str, str], **fields: object) -> Generate:
    chat = tuple(ChatMessage(role, content) for role, content in messages)
    return Generate("r1", chat, **fields)  # type: ignore[arg-type]


def turns(*messages: tuple[str, str]) -> list[tuple[str, str]]:
    call = build_call(generate(*messages), SETTINGS, ANTHROPIC)
    return [(turn["role"], str(turn["content"])) for turn in call.turns]


def test_system_messages_leave_the_conversation() -> None:
    request = generate(("system", "Be brief."), ("user", "Hi"), ("system", "In French."))
    call = build_call(request, SETTINGS, ANTHROPIC)
    assert call.system == "Be brief.\n\nIn French."
    assert call.turns == [{"role": "user", "content": "Hi"}]


def test_turns_of_one_role_become_one() -> None:
    assert turns(
        ("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d"), ("user", "e")
    ) == [("user", "a\n\nb"), ("assistant", "c\n\nd"), ("user", "e")]


def test_turns_around_a_system_message_or_a_blank_one_become_one() -> None:
    assert turns(("user", "a"), ("system", "s"), ("user", "b")) == [("user", "a\n\nb")]
    assert turns(("user", "a"), ("assistant", " \n"), ("user", "b")) == [("user", "a\n\nb")]


def test_a_conversation_never_begins_with_the_assistant() -> None:
    assert turns(("assistant", "hello"), ("assistant", "?"), ("user", "a")) == [("user", "a")]


@pytest.mark.parametrize(
    "messages", [(), (("system", "s"),), (("user", " "),), (("assistant", "a"),)]
)
def test_nothing_to_ask_is_refused(messages: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(ShammahError) as caught:
        build_call(generate(*messages), SETTINGS, ANTHROPIC)
    assert caught.value.code == "cloud_bad_request"


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ShammahError, match="unknown role 'critic'"):
        build_call(generate(("user", "a"), ("critic", "b")), SETTINGS, ANTHROPIC)


def test_the_request_may_ask_for_less_than_the_setting() -> None:
    assert build_call(generate(("user", "a")), SETTINGS, ANTHROPIC).max_tokens == 4096
    request = generate(("user", "a"), max_new_tokens=5)
    assert build_call(request, SETTINGS, ANTHROPIC).max_tokens == 5


def test_claude_takes_no_sampling_and_the_person_is_told() -> None:
    sampling = Sampling(temperature=0.0, seed=7)
    call = build_call(generate(("user", "a"), sampling=sampling), SETTINGS, ANTHROPIC)
    assert call.extra_body == {}
    assert call.notices == (
        "Claude does not accept a temperature; it was ignored.",
        "Claude does not accept a seed; it was ignored.",
    )


def test_a_custom_server_is_sent_what_it_may_know() -> None:
    sampling = Sampling(temperature=0.0, top_p=0.9, top_k=5, repetition_penalty=1.1)
    call = build_call(generate(("user", "a"), sampling=sampling), SETTINGS, CUSTOM)
    assert call.extra_body == {"temperature": 0.0, "top_p": 0.9, "top_k": 5}
    assert call.notices == (
        "The server at 127.0.0.1:8080 does not accept a repetition penalty; it was ignored.",
    )


def test_nothing_set_is_nothing_sent_and_nothing_said() -> None:
    call = build_call(generate(("user", "a")), SETTINGS, CUSTOM)
    assert (call.extra_body, call.notices, call.system) == ({}, (), "")


@pytest.mark.parametrize("url", ["", " ", ANTHROPIC_URL, "https://API.anthropic.com/"])
def test_anthropics_own_address(url: str) -> None:
    peer = Peer.of(url)
    assert peer.is_anthropic
    assert peer.subject == "Claude"


@pytest.mark.parametrize(
    ("url", "subject"),
    [
        ("http://127.0.0.1:8080/anthropic", "The server at 127.0.0.1:8080"),
        ("http://[::1]:80", "The server at [::1]:80"),
        ("https://someone:secret@proxy.example", "The server at proxy.example"),
        ("https://api.anthropic.com.example", "The server at api.anthropic.com.example"),
    ],
)
def test_another_address_is_named_without_its_secrets(url: str, subject: str) -> None:
    peer = Peer.of(url)
    assert not peer.is_anthropic
    assert peer.subject == subject


@pytest.mark.parametrize(
    "url", ["me:secret@host:8080", "secret", "ftp://secret", "http:///secret", "http://h:secret"]
)
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ShammahError) as caught:
        Peer.of(url)
    assert caught.value.code == "cloud_address_invalid"
    assert "secret" not in str(caught.value)
