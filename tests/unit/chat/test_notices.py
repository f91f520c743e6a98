"""What the person should read is read once, in its order, by the thread that writes."""

from __future__ import annotations

from shammah.chat.session import Notices


def test_each_is_taken_once_and_each_put_is_told() -> None:
    notices, told = Notices(), []
    notices.put("before anybody listens")
    notices.on_put = lambda: told.append(len(told))
    notices.put("one")
    notices.put(lambda: ["two", "three"])
    notices.put(list)
    assert told == [0, 1, 2]
    assert notices.take() == ["before anybody listens", "one", "two", "three"]
    assert notices.take() == []


def test_what_is_to_be_done_is_done_when_it_is_taken() -> None:
    notices, done = Notices(), []

    def do() -> list[str]:
        done.append(None)
        return ["Done."]

    notices.put(do)
    assert not done
    assert notices.take() == ["Done."]
    assert len(done) == 1
