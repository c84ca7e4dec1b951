"""The memory of who read a prompt's beginning last."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from llamatelemetry.pool._prefixes import PrefixMemory, Prompt, Sighting


def chat(*texts: str) -> dict[str, object]:
    """Return a chat's body; roles alternate."""
    roles = ("user", "assistant")
    return {
        "messages": [
            {"role": roles[place % 2], "content": text}
            for place, text in enumerate(texts)
        ]
    }


def digests(body: dict[str, object]) -> tuple[bytes, ...]:
    """Return the digests of a body's prompt."""
    return Prompt.of(body).digests


def test_a_chat_has_a_digest_for_each_message() -> None:
    """Chats that begin alike have digests that begin alike, and differ from there."""
    short, long = digests(chat("a", "b")), digests(chat("a", "b", "c"))

    assert len(short) == 2
    assert short == long[:2]
    assert digests(chat("x", "b"))[1] != short[1]


def test_tools_are_part_of_the_beginning() -> None:
    """The same messages with other tools are another prompt."""
    with_tools = chat("a") | {"tools": [{"type": "function"}]}

    assert digests(with_tools) != digests(chat("a"))


def test_a_prompt_has_a_digest_for_each_block() -> None:
    """Plain prompts are compared by 256 characters; shorter ones have no digest."""
    assert digests({"prompt": "x" * 255}) == ()
    assert len(digests({"prompt": "x" * 513})) == 2
    one, two = {"prompt": "x" * 300}, {"prompt": "x" * 256 + "y" * 300}
    assert digests(one) == digests(two)[:1]


def test_half_a_character_is_no_error() -> None:
    """What JSON can say and UTF-8 cannot has a digest too."""
    assert len(digests({"prompt": "\ud800" * 256})) == 1
    assert len(digests(chat("\ud800"))) == 1


def test_other_requests_have_no_beginning() -> None:
    """What is no prompt is not remembered."""
    for body in (None, [], {"input": "text"}, {"prompt": [1, 2]}, {"messages": []}):
        assert Prompt.of(body) == Prompt()


def test_the_longest_beginning_counts_and_the_last_reader() -> None:
    """The sighting is of the longest known beginning, and of who read it last."""
    memory = PrefixMemory()
    memory.note(Prompt.of(chat("a", "b", "c")), 0)
    memory.note(Prompt.of(chat("a", "x")), 1)

    seen = memory.last(Prompt.of(chat("a", "b", "c", "d", "e")))
    assert seen == Sighting(server=0, next_turn=True)
    # Two requests began with "a"; the second one was sent to server 1.
    assert memory.last(Prompt.of(chat("a", "z"))) == Sighting(1, next_turn=False)
    assert memory.last(Prompt.of(chat("other"))) is None
    assert memory.last(Prompt()) is None


def test_the_same_request_again_is_no_next_turn() -> None:
    """A repeated prompt may go anywhere; only one that goes on is a next turn."""
    memory = PrefixMemory()
    memory.note(Prompt.of(chat("a")), 0)

    assert memory.last(Prompt.of(chat("a"))) == Sighting(0, next_turn=False)
    assert memory.last(Prompt.of(chat("a", "b", "c"))) == Sighting(0, next_turn=True)


def test_only_turns_of_a_chat_go_on() -> None:
    """Neither a system prompt that warms up nor a plain prompt makes next turns."""
    memory = PrefixMemory()
    system = {"role": "system", "content": "Be brief."}
    question = {"role": "user", "content": "Why?"}
    memory.note(Prompt.of({"messages": [system]}), 0)
    memory.note(Prompt.of({"prompt": "x" * 300}), 0)

    for body in ({"messages": [system, question]}, {"prompt": "x" * 900}):
        assert memory.last(Prompt.of(body)) == Sighting(0, next_turn=False)
    memory.note(Prompt.of({"messages": ["no message"]}), 0)
    longer = Prompt.of({"messages": ["no message", question]})
    assert memory.last(longer) == Sighting(0, next_turn=False)


def test_a_beginning_that_was_whole_once_stays_so() -> None:
    """A later request that goes on does not make the earlier one less of a turn."""
    memory = PrefixMemory()
    memory.note(Prompt.of(chat("a")), 0)
    memory.note(Prompt.of(chat("a", "b", "c")), 0)

    assert memory.last(Prompt.of(chat("a", "y", "z"))) == Sighting(0, next_turn=True)


def test_the_oldest_are_forgotten() -> None:
    """The memory is bounded; what was not used for longest goes first."""
    memory = PrefixMemory(most=2)
    for text in ("a", "b", "a", "c"):
        memory.note(Prompt.of(chat(text)), 0)

    assert memory.last(Prompt.of(chat("a"))) is not None
    assert memory.last(Prompt.of(chat("b"))) is None


def test_a_server_that_ended_has_read_nothing() -> None:
    """What a server read is forgotten with it, what others read is not."""
    memory = PrefixMemory()
    memory.note(Prompt.of(chat("a")), 0)
    memory.note(Prompt.of(chat("b")), 1)
    memory.forget(0)

    assert memory.last(Prompt.of(chat("a"))) is None
    assert memory.last(Prompt.of(chat("b"))) is not None


def test_threads_may_share_it() -> None:
    """Notes from eight threads lose nothing and never go beyond the bound."""
    memory = PrefixMemory(most=64)

    def work(number: int) -> None:
        for step in range(200):
            memory.note(Prompt.of(chat(f"{number}", f"{step}")), number % 2)
            memory.last(Prompt.of(chat(f"{number}", f"{step}", "more")))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert len(memory._kept) == 64
