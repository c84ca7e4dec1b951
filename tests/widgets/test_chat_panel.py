"""The chat panel: clicks and methods, on real engines and at stated rates."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from client_tools import StandIn
from hostile_answers import ANSWERS
from manager_tools import wait_for
from panel_tools import Recorder, change, click, every_widget, find, upload
from tiny_model import write_tiny_model

from llamatelemetry.api.client import LlamaCppClient
from llamatelemetry.exceptions import ConfigurationError
from llamatelemetry.pool import ServerPool
from llamatelemetry.server import Engine, ServerConfig, ServerManager
from llamatelemetry.widgets import chat_panel
from llamatelemetry.widgets._chat_follow import Follower
from llamatelemetry.widgets._chat_pictures import _files
from llamatelemetry.widgets._generation import Progress
from llamatelemetry.widgets._transcript import Turn, from_json
from llamatelemetry.widgets.chat_panel import ChatPanel

PICTURE = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00"
    b"\x00\x00\x1f\x15\xc4\x89\x00\x00\x00\rIDATx\x9cc\xf8\xff\xff?\x00\x05\xfe\x02"
    b"\xfe\xa75\x81\x84\x00\x00\x00\x00IEND\xaeB`\x82"
)
Make = Callable[..., ChatPanel]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make panels, closed whatever the test does."""
    panels: list[ChatPanel] = []

    def make_one(client: Any, **options: Any) -> ChatPanel:
        options.setdefault("mode", "threads")
        panels.append(ChatPanel(client, **options))
        return panels[-1]

    yield make_one
    for panel in panels:
        panel.close()


@pytest.fixture
def slow_client(engine: Engine, tmp_path: Path) -> Iterator[LlamaCppClient]:
    """A client of a model large enough to be caught at work, in two slots."""
    model = write_tiny_model(
        tmp_path / "m.gguf", layers=6, width=512, context_length=8192
    )
    config = ServerConfig(model, port=0, context_size=8192, parallel=2, threads=1)
    with ServerManager(config, engine=engine, timeout=60) as server:
        yield LlamaCppClient(server.get_url())


def button(panel: ChatPanel, text: str) -> Any:
    """Return the button that says this now."""
    return find(panel.widget, "Button", text)


def ask(panel: ChatPanel, text: str) -> None:
    """Write a message and click Send."""
    change(find(panel.widget, "Textarea", "Message"), text)
    click(button(panel, "Send"))


def shown(panel: ChatPanel) -> str:
    """Return all HTML that the page shows now."""
    return "\n".join(
        str(widget.value)
        for widget in every_widget(panel.widget)
        if type(widget).__name__ == "HTML"
    )


def blocks(panel: ChatPanel) -> list[Any]:
    """Return the widgets of the finished answers."""
    assert panel._face is not None
    return list(panel._face.view._page.children[:-1])


def settle(panel: ChatPanel, answers: int) -> None:
    """Wait until this many answers are over and shown as that."""
    assert panel.wait(60)
    wait_for(lambda: len(blocks(panel)) == answers and panel._follower is None, 30)
    with panel._lock:  # what is shown with it is there, too
        pass


def let_come(client: LlamaCppClient, pieces: int) -> None:
    """Have a stand-in with ``steps=1`` send so many more pieces of an answer."""
    for _ in range(pieces):
        client.health()


def is_answering(panel: ChatPanel) -> bool:
    """Whether text has come and more may."""
    return panel.is_answering and bool(panel.transcript[-1].content)


# ── asking ───────────────────────────────────────────────────────────────────────────


def test_a_question_is_sent_and_answered(
    client: LlamaCppClient, page: Recorder, make: Make
) -> None:
    """Send asks the real model; the answer stands below with what it took."""
    panel = make(client, system="Be short.", temperature=0)
    ask(panel, "Hello!")
    settle(panel, 1)

    question, answer = panel.transcript
    assert (question.role, question.content) == ("user", "Hello!")
    assert answer.content in shown(panel)
    assert "of 1,024 tokens of the context" in shown(panel)
    assert "first token after" in shown(panel)
    assert panel.messages == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": answer.content},
    ]
    assert find(panel.widget, "Textarea", "Message").value == ""
    assert answer.sampling["temperature"] == 0
    assert answer.context_size == 1024
    assert answer.finish_reason == "stop"
    assert {message.thread.split("-")[0] for message in page.messages} <= {
        "MainThread",
        "llamatelemetry",
    }


def test_the_answer_appears_while_it_comes(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Words are on the page before the end, and finished answers are not sent again."""
    client = stand_in.client(tokens=40, steps=1)
    panel = make(client)
    ask(panel, "first")
    let_come(client, 5)
    wait_for(lambda: "w3" in shown(panel))
    assert panel.is_answering
    let_come(client, 35)
    settle(panel, 1)
    first = blocks(panel)[0]
    sent = len(page.of(first))
    ask(panel, "second")
    settle(panel, 2)
    assert len(page.of(first)) == sent
    assert blocks(panel)[0] is first
    assert "w39" in first.value


def test_send_becomes_stop(stand_in: StandIn, page: Recorder, make: Make) -> None:
    """Stop ends the answer, keeps its text, and the panel is usable at once."""
    url = stand_in.url(tokens=5000, pace=0.01)
    panel = make(LlamaCppClient(url))
    ask(panel, "first")
    wait_for(lambda: is_answering(panel))
    panel._sent_at = 0.0  # a reader takes longer than this test
    assert button(panel, "Stop").button_style == "danger"
    assert button(panel, "Regenerate").disabled
    click(button(panel, "Stop"))
    assert not panel.is_answering
    assert button(panel, "Send").button_style == "primary"
    text = panel.transcript[-1].content
    ask(panel, "second")
    wait_for(lambda: is_answering(panel))
    panel.stop()
    settle(panel, 2)

    assert [turn.content for turn in panel.transcript][:3] == ["first", text, "second"]
    assert panel.transcript[1].finish_reason == "cancelled"
    wait_for(lambda: "Stopped" in blocks(panel)[0].value)
    body = [one["body"] for one in stand_in.seen(url) if "chat" in one["path"]][-1]
    assert [message["content"] for message in body["messages"]] == [
        "first",
        text,
        "second",
    ]


def test_the_second_click_of_a_double_click_is_no_stop(
    stand_in: StandIn, page: Recorder, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send pressed twice sends once, and does not stop what it has begun."""
    # However long this machine takes from one click to the next.
    monkeypatch.setattr(chat_panel, "_DOUBLE_CLICK_SECONDS", 60.0)
    client = stand_in.client(tokens=5, steps=1)
    panel = make(client)
    ask(panel, "once")
    click(button(panel, "Stop"))
    assert panel.is_answering
    let_come(client, 5)
    settle(panel, 1)
    assert panel.transcript[-1].finish_reason == "stop"


def test_a_stop_on_a_real_engine_is_proven_by_its_slot(
    slow_client: LlamaCppClient, page: Recorder, make: Make
) -> None:
    """The panel says "stopping", and when the slot was seen idle; two panels differ."""
    endless = {"extra_body": {"ignore_eos": True}}
    panel, other = make(slow_client, **endless), make(slow_client, **endless)
    ask(panel, "Hello!")
    ask(other, "Hello!")
    wait_for(lambda: is_answering(panel) and is_answering(other), 30)
    panel._sent_at = 0.0
    click(button(panel, "Stop"))
    assert panel.wait(30)
    assert sum(slot["is_processing"] for slot in slow_client.get_slots()) == 1
    settle(panel, 1)
    assert "slot idle after" in shown(panel)
    assert other.is_answering
    other.close()
    wait_for(
        lambda: not any(slot["is_processing"] for slot in slow_client.get_slots()), 30
    )


def test_the_next_question_need_not_wait_for_the_slot(
    slow_client: LlamaCppClient, page: Recorder, make: Make
) -> None:
    """Stopped while the prompt is read, the panel goes on, and tells it later."""
    panel = make(slow_client, max_tokens=3)
    ask(panel, "hello the hell in there " * 120)
    wait_for(lambda: "Reading the prompt" in shown(panel), 30)
    panel.stop()
    assert "Stopping" in shown(panel)
    ask(panel, "Hello!")
    settle(panel, 2)
    wait_for(lambda: "slot idle after" in blocks(panel)[0].value, 30)
    assert panel.messages[0]["content"] == "Hello!"


def test_only_one_answer_at_a_time(stand_in: StandIn, make: Make) -> None:
    """A second question while one is answered is refused, and says what to do."""
    panel = make(stand_in.client(tokens=5000, pace=0.01), mode="text")
    panel.send("first")
    for forbidden in (
        panel.regenerate,
        lambda: panel.send("x"),
        lambda: panel.edit_last("x"),
    ):
        with pytest.raises(ConfigurationError, match=r"stop\(\) it"):
            forbidden()
    panel.stop()
    panel.send("second")
    assert len(panel.transcript) == 4


def test_nothing_is_sent_for_an_empty_message(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Send without a message says so at the foot, and sends nothing."""
    url = stand_in.url()
    panel = make(LlamaCppClient(url))
    ask(panel, "  ")
    assert "write one first" in shown(panel)
    assert panel.transcript == []
    assert not [one for one in stand_in.seen(url) if "chat" in one["path"]]
    for button_text in ("Regenerate", "Edit last", "Clear", "Save JSON", "To a cell"):
        assert button(panel, button_text).disabled


# ── changing what was said ───────────────────────────────────────────────────────────


def test_regenerate_replaces_the_last_answer(
    client: LlamaCppClient, page: Recorder, make: Make
) -> None:
    """The same question is asked again with another seed, and its block is replaced."""
    panel = make(client)
    ask(panel, "Hello!")
    settle(panel, 1)
    before = panel.transcript[-1].sampling["seed"]
    click(button(panel, "Regenerate"))
    settle(panel, 1)
    assert len(panel.transcript) == 2
    assert panel.transcript[-1].sampling["seed"] != before


def test_the_last_message_is_edited(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Edit puts it back into the input; sending replaces it; cancelling leaves it."""
    panel = make(stand_in.client())
    for number, text in enumerate(("first", "secnod"), 1):
        ask(panel, text)
        settle(panel, number)
    message = find(panel.widget, "Textarea", "Message")
    click(button(panel, "Edit last"))
    assert message.value == "secnod"
    assert "Sending replaces" in shown(panel)
    click(button(panel, "Cancel edit"))
    assert message.value == ""
    assert len(panel.transcript) == 4
    click(button(panel, "Edit last"))
    ask(panel, "second")
    settle(panel, 2)
    asked = [turn.content for turn in panel.transcript if turn.role == "user"]
    assert asked == ["first", "second"]
    assert "secnod" not in shown(panel)
    assert button(panel, "Edit last").description == "Edit last"


def test_clear_can_be_undone_once(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Clear asks nothing; Undo clear has it back until the next question."""
    panel = make(stand_in.client())
    ask(panel, "primero")
    settle(panel, 1)
    click(button(panel, "Clear"))
    assert panel.transcript == []
    assert blocks(panel) == []
    click(button(panel, "Undo clear"))
    settle(panel, 1)
    assert "primero" in shown(panel)
    panel.clear()
    ask(panel, "second")
    settle(panel, 1)
    with pytest.raises(ConfigurationError, match="nothing was cleared"):
        panel.undo_clear()
    assert "primero" not in shown(panel)


def test_clear_stops_the_answer(stand_in: StandIn, page: Recorder, make: Make) -> None:
    """What is being given is stopped; undone, it stands there as stopped."""
    panel = make(stand_in.client(tokens=5000, pace=0.01))
    ask(panel, "first")
    wait_for(lambda: is_answering(panel))
    click(button(panel, "Clear"))
    assert not panel.is_answering
    click(button(panel, "Undo clear"))
    settle(panel, 1)
    assert "Stopped" in shown(panel)


def test_too_long_a_conversation_offers_to_drop(
    engine: Engine, tiny_model: Path, page: Recorder, make: Make
) -> None:
    """It is said before sending; one click drops the oldest and asks again."""
    config = ServerConfig(tiny_model, port=0, context_size=256, threads=1)
    with ServerManager(config, engine=engine, timeout=60) as server:
        # The same words each time: what it says counts in the next prompt.
        sure = {"temperature": 0.0, "extra_body": {"ignore_eos": True}}
        client = LlamaCppClient(server.get_url())
        panel = make(client, max_tokens=4, **sure)
        for number in (1, 2):
            ask(panel, "hello " * 20)
            settle(panel, number)
        ask(panel, "hello " * 46)
        settle(panel, 3)
        assert "<b>Error:</b> The conversation has" in shown(panel)
        drop = button(panel, "Drop 1 oldest")
        assert drop.layout.display is None
        click(drop)
        settle(panel, 2)
        assert panel.transcript[-1].finish_reason == "length"  # it was answered
        assert drop.layout.display == "none"


def test_what_failed_is_not_sent_again(stand_in: StandIn, make: Make) -> None:
    """A question that got no answer is shown, and left out of what is sent next."""

    @dataclass
    class Source:
        client: LlamaCppClient

    source = Source(stand_in.client(status=500))
    panel = make(source, mode="text")
    panel.send("first")
    assert panel.wait(10)
    assert "Error: " in repr(panel)
    assert panel.messages == []
    source.client = stand_in.client()
    panel.send("second")
    assert panel.wait(10)
    assert panel.messages == [
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "w0 w1 w2 "},
    ]
    assert [turn.finish_reason for turn in panel.transcript][1::2] == ["error", "stop"]


# ── controls ─────────────────────────────────────────────────────────────────────────


def test_the_controls_are_what_is_sent(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Each control reaches the request; a seed that is none is refused in words."""
    url = stand_in.url()
    panel = make(LlamaCppClient(url), stop=["END"])
    widget = panel.widget
    change(find(widget, "Textarea", "System prompt"), "Be kind.")
    change(find(widget, "BoundedFloatText", "Temperature"), 0.3)
    change(find(widget, "BoundedFloatText", "Top p"), 0.5)
    change(find(widget, "BoundedIntText", "Top k"), 7)
    change(find(widget, "BoundedFloatText", "Repeat"), 1.3)
    change(find(widget, "BoundedIntText", "Most tokens"), 99)
    change(find(widget, "Text", "Seed"), "12")
    change(find(widget, "Text", "Seed"), "twelve")
    assert "a seed is a whole number" in shown(panel)
    change(find(widget, "Dropdown", "Thinking"), "off")
    ask(panel, "Hello!")
    settle(panel, 1)
    body = stand_in.asked(url)["body"]
    assert body["messages"][0] == {"role": "system", "content": "Be kind."}
    assert body["temperature"] == 0.3
    assert body["top_p"] == 0.5
    assert body["top_k"] == 7
    assert body["repeat_penalty"] == 1.3
    assert body["max_tokens"] == 99
    assert body["seed"] == 12
    assert body["stop"] == ["END"]
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_the_arguments_are_what_the_controls_show(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """What the panel was made with stands in the controls; emptied they mean random."""
    url = stand_in.url()
    panel = make(LlamaCppClient(url), max_tokens=5, seed=3, thinking=True, top_k=1)
    widget = panel.widget
    assert find(widget, "Text", "Seed").value == "3"
    assert find(widget, "BoundedIntText", "Most tokens").value == 5
    assert find(widget, "Dropdown", "Thinking").value == "on"
    assert find(widget, "BoundedIntText", "Top k").value == 1
    change(find(widget, "Text", "Seed"), "")
    change(find(widget, "BoundedIntText", "Most tokens"), 0)
    ask(panel, "Hello!")
    settle(panel, 1)
    body = stand_in.asked(url)["body"]
    assert "max_tokens" not in body
    assert body["seed"] != 3


def test_what_a_panel_does_not_take(stand_in: StandIn) -> None:
    """No client, an option that does not exist, or one that makes no text: refused."""
    with pytest.raises(ConfigurationError, match="takes a client or a session"):
        ChatPanel("http://127.0.0.1:1")
    for name in ("temprature", "n", "tools"):
        with pytest.raises(ConfigurationError, match=f"no option '{name}'"):
            ChatPanel(stand_in.client(), **{name: 1})
    with pytest.raises(ConfigurationError, match="thinking='auto' is none of True"):
        ChatPanel(stand_in.client(), thinking="auto")


def test_oldest_questions_are_dropped_by_method(stand_in: StandIn, make: Make) -> None:
    """The last one stays whatever the number."""
    panel = make(stand_in.client(), mode="text", temperature=None)
    for text in ("a", "b", "c"):
        panel.send(text)
        assert panel.wait(10)
    panel.drop_oldest()
    assert [turn.content for turn in panel.transcript][::2] == ["b", "c"]
    panel.drop_oldest(9)
    assert [turn.content for turn in panel.transcript][::2] == ["c"]
    panel.clear()
    panel.drop_oldest()
    with pytest.raises(ConfigurationError, match="no question yet"):
        panel.regenerate()
    with pytest.raises(ConfigurationError, match="no question yet"):
        panel.edit_last("x")


def test_a_panel_of_a_server_that_is_down_can_be_shown(
    page: Recorder, make: Make
) -> None:
    """It is there before its server; sending says what to do."""
    panel = make(LlamaCppClient("http://127.0.0.1:9"))
    ask(panel, "Hello!")
    settle(panel, 1)
    assert "does not answer" in shown(panel)
    assert panel._looked_at is None


# ── images ───────────────────────────────────────────────────────────────────────────


def test_images_go_with_the_message(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Chosen images are named, can be taken away, and are sent as parts."""
    url = stand_in.url()
    panel = make(LlamaCppClient(url))
    box = find(panel.widget, "FileUpload").description
    assert box == "Add images"
    assert panel._face is not None
    pictures = panel._face.pictures
    assert pictures.box.layout.display == "none"
    wait_for(lambda: panel._looked_at is not None)
    with panel._lock:  # the server's own answer, that it sees none, comes before this
        pictures.offer(sees_pictures=True)
    assert pictures.box.layout.display is None
    upload(find(panel.widget, "FileUpload"), "a<b>.png", PICTURE)
    assert "a&lt;b&gt;.png" in shown(panel)
    click(button(panel, "Remove images"))
    assert "With the next message" not in shown(panel)
    upload(find(panel.widget, "FileUpload"), "cat.png", PICTURE)
    ask(panel, "What is this?")
    settle(panel, 1)
    content = stand_in.asked(url)["body"]["messages"][0]["content"]
    assert content[0] == {"type": "text", "text": "What is this?"}
    assert content[1]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "with an image" in shown(panel)
    assert "(with an image)" in repr(panel)
    click(button(panel, "Edit last"))
    assert "With the next message: image 1" in shown(panel)
    panel.edit_last("And now?")
    settle(panel, 1)
    assert len(panel.transcript[0].images) == 1


def test_uploads_are_read_in_both_versions() -> None:
    """Version 7 of ipywidgets holds them by name, version 8 in a row."""
    assert list(_files({"a.png": {"content": b"1"}})) == [("a.png", b"1")]
    assert list(_files(({"name": "a.png", "content": memoryview(b"1")},))) == [
        ("a.png", b"1")
    ]


def test_a_file_that_is_no_image_is_refused(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """It says so at the foot, and another file can be chosen."""
    panel = make(stand_in.client())
    first = find(panel.widget, "FileUpload")
    upload(first, "notes.txt", b"no image at all", "text/plain")
    assert "<b>Error:</b>" in shown(panel)
    assert "With the next message" not in shown(panel)
    assert find(panel.widget, "FileUpload") is not first


def test_a_model_without_eyes_gets_no_images(
    client: LlamaCppClient, page: Recorder, make: Make
) -> None:
    """The server is asked once whether its model sees; the demo model does not."""
    panel = make(client)
    assert panel.widget is not None
    wait_for(lambda: panel._looked_at is client)
    assert panel._face is not None
    assert panel._face.pictures.box.layout.display == "none"


# ── what is shown ────────────────────────────────────────────────────────────────────


def test_hostile_answers_are_shown_and_never_sent_as_html(
    stand_in: StandIn, tmp_path: Path, page: Recorder, make: Make
) -> None:
    """No message to the page holds a tag that could run or load, at any moment."""
    names = [name for name, text in ANSWERS.items() if len(text) < 5000]
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({name: ANSWERS[name] for name in names}))
    panel = make(stand_in.client(texts=str(texts).replace("/", "%2F")))
    for name in names:
        panel.clear()
        ask(panel, name)
        settle(panel, 1)
    sent = [
        str(message.state.get("value", "")).lower()
        for message in page.messages
        if message.state.get("_model_name") in (None, "HTMLModel")
    ]
    for tag in ("script", "img", "iframe", "svg", "object", "link", "form", "base"):
        assert not [value for value in sent if f"<{tag}" in value], tag
    ask(panel, "<img src=x onerror=alert(1)>")
    settle(panel, 2)
    assert "<img" not in shown(panel)
    assert "<img" not in panel._repr_html_()


def test_reasoning_is_folded_apart(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """While it comes it fills a folded part; at the end it is a folded one above."""
    client = stand_in.client(thoughts=150, tokens=2, steps=1)
    panel = make(client)
    assert panel.widget is not None
    assert panel._face is not None
    view = panel._face.view
    ask(panel, "Think!")
    let_come(client, 20)
    wait_for(lambda: "Thinking" in view._status.value)
    assert view._folded.layout.display is None
    assert not view.is_reasoning_open
    change(view._unfold, True)
    wait_for(
        lambda: "t9" in view._reasoning._tail.value + str(view._reasoning._sections)
    )
    let_come(client, 132)
    settle(panel, 1)
    assert "<details><summary>Reasoning, 150 words</summary>" in shown(panel)
    assert panel.transcript[-1].reasoning.startswith("t0 t1 ")
    assert panel.transcript[-1].content == "w0 w1 "
    assert view._folded.layout.display == "none" or view._live.layout.display == "none"


def test_the_first_thought_is_shown_at_once(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """That it was looked for a moment before does not put it off for a second."""
    panel = make(stand_in.client(tokens=1))
    ask(panel, "Hello!")
    settle(panel, 1)
    assert panel._face is not None
    view = panel._face.view
    follower = Follower(panel._history.exchanges[0], view, panel._lock)
    follower._show(Progress("waiting"))
    assert view._folded.layout.display == "none"
    follower._answer.feed(reasoning="Hm, ")
    follower._show(Progress("answering"))
    assert view._folded.layout.display is None
    assert "Hm," in view._reasoning._tail.value


def test_think_tags_in_the_answer_are_reasoning(
    stand_in: StandIn, tmp_path: Path, page: Recorder, make: Make
) -> None:
    """A server that leaves them there changes nothing about page and transcript."""
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"q": "<think>\nhm, well\n</think>\n\nYes."}))
    panel = make(stand_in.client(texts=str(texts).replace("/", "%2F")))
    ask(panel, "q")
    settle(panel, 1)
    assert panel.transcript[-1].content.strip() == "Yes."
    assert panel.transcript[-1].reasoning.strip() == "hm, well"
    assert "<summary>Reasoning, 2 words</summary>" in shown(panel)
    assert "&lt;think" not in shown(panel)
    assert panel.messages[-1]["content"].strip() == "Yes."


def test_a_long_answer_is_sent_in_pieces_that_are_used_again(
    stand_in: StandIn, tmp_path: Path, page: Recorder, make: Make
) -> None:
    """Finished sections keep their widgets; the next answer takes the same ones."""
    texts = tmp_path / "texts.json"
    parts = [f"Paragraph {number}. " + "word " * 60 for number in range(40)]
    texts.write_text(json.dumps({"q": "\n\n".join(parts)}))
    told = str(texts).replace("/", "%2F")
    client = stand_in.client(texts=told, pace=0.04, steps=1)
    panel = make(client)
    ask(panel, "q")
    assert panel._face is not None
    stream = panel._face.view._answer
    for number in (10, 20, 30):  # what comes between two looks may be one section
        let_come(client, 13)
        wait_for(lambda number=number: f"Paragraph {number}." in shown(panel), 30)
    with panel._lock:
        assert len(stream._sections) > 2
        assert "Paragraph 0." in stream._sections[0].value
        assert list(stream.box.children) == [*stream._sections, stream._tail]
    let_come(client, 40)
    settle(panel, 1)
    assert all(f"Paragraph {number}." in blocks(panel)[0].value for number in range(40))
    assert stream._tail.value == ""
    assert not any(section.value for section in stream._sections)
    sections = list(stream._sections)
    opened = len([one for one in page.messages if one.kind == "comm_open"])
    ask(panel, "q")
    settle(panel, 2)
    assert stream._sections[: len(sections)] == sections
    more = len(stream._sections) - len(sections)
    assert len([one for one in page.messages if one.kind == "comm_open"]) == (
        opened + 1 + more
    )


def test_a_finished_answer_is_one_widget(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Each further answer adds one widget to the kernel, and Clear takes them away."""
    panel = make(stand_in.client())
    for number in (1, 2):
        ask(panel, "Hello!")
        settle(panel, number)
    opened = [one for one in page.messages if one.kind == "comm_open"]
    for number in (3, 4, 5):
        ask(panel, "Hello!")
        settle(panel, number)
    assert (
        len([one for one in page.messages if one.kind == "comm_open"])
        == len(opened) + 3
    )
    closed = len([one for one in page.messages if one.kind == "comm_close"])
    panel.clear()
    assert len([one for one in page.messages if one.kind == "comm_close"]) == closed + 5


def test_a_panel_shown_later_shows_what_was_said(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Finished answers and the one that is coming are there when it is first shown."""
    panel = make(stand_in.client(tokens=5000, pace=0.01))
    panel.send("first")
    wait_for(lambda: is_answering(panel))
    panel.stop()
    assert panel.wait(10)
    panel.send("second")
    assert "first" in shown(panel)
    assert button(panel, "Stop").description == "Stop"
    panel.stop()
    settle(panel, 2)
    assert "second" in blocks(panel)[1].value


def test_without_widgets_everything_is_text(stand_in: StandIn, make: Make) -> None:
    """In mode "text" questions are asked by method; text and HTML show all of it."""
    panel = make(stand_in.client(tokens=3), mode="text")
    assert repr(panel) == "ChatPanel, 0 questions"
    assert "nothing asked yet" in panel._repr_html_()
    panel.send("a\x1b[31m\tb\n<i>")
    assert panel.wait(10)
    assert repr(panel).startswith(
        "ChatPanel, 1 question\n\nYou: a\ufffd[31m  b\n<i>\nModel: w0 w1 w2 \n("
    )
    assert "&lt;i&gt;" in panel._repr_html_()
    with pytest.raises(ConfigurationError, match="has no widget"):
        _ = panel.widget


@pytest.mark.parametrize("mode", ["ticks", "loop"])
def test_where_threads_may_not_send_it_waits(
    stand_in: StandIn, page: Recorder, make: Make, mode: str
) -> None:
    """Only who flushes sends: the answer's threads send nothing by themselves."""
    panel = make(stand_in.client(tokens=10), mode=mode)
    assert panel.widget is not None
    panel.send("Hello!")
    assert panel.wait(10)
    wait_for(lambda: panel._follower is None)
    with panel._lock:  # what is to be shown with it is kept, too
        pass
    assert "w9" not in shown(panel)
    panel._outbox.flush()
    assert "w9" in shown(panel)
    assert {message.thread for message in page.messages} == {"MainThread"}


# ── the transcript ───────────────────────────────────────────────────────────────────


def test_the_transcript_is_written_and_read_back(
    stand_in: StandIn, tmp_path: Path, make: Make
) -> None:
    """JSON holds all of it; Markdown is for reading; nothing is overwritten unasked."""
    panel = make(stand_in.client(), mode="text", system="Be kind.")
    panel.send("Hello!")
    assert panel.wait(10)
    path = panel.save(tmp_path / "chat.json")
    turns, system = from_json(path.read_text())
    assert turns == panel.transcript
    assert system == "Be kind."
    with pytest.raises(FileExistsError, match="overwrite=True"):
        panel.save(path)
    panel.save(path, overwrite=True)
    assert "w0 w1 w2" in panel.save(tmp_path / "chat.md").read_text()
    with pytest.raises(ConfigurationError, match=r"neither \.json nor \.md"):
        panel.save(tmp_path / "chat.txt")


def test_the_buttons_save_beside_the_notebook(
    stand_in: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: Recorder,
    make: Make,
) -> None:
    """Each click writes a new file into the working folder and says which."""
    monkeypatch.chdir(tmp_path)
    panel = make(stand_in.client())
    ask(panel, "Hello!")
    settle(panel, 1)
    for _ in range(3):
        click(button(panel, "Save JSON"))
    click(button(panel, "Save Markdown"))
    assert "Saved as" in shown(panel)
    assert len(list(tmp_path.glob("chat-*.json"))) == 3
    assert len(list(tmp_path.glob("chat-*.md"))) == 1


def test_a_cell_asks_the_same_again(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Its source is shown to be copied, is Python, and names the server."""
    url = stand_in.url()
    panel = make(LlamaCppClient(url))
    ask(panel, "Hello!")
    settle(panel, 1)
    source = find(panel.widget, "Textarea", "Copy this")
    click(button(panel, "To a cell"))
    assert source.layout.display is None
    ast.parse(source.value)
    assert url in source.value
    assert "Hello!" in source.value
    click(button(panel, "To a cell"))
    assert source.layout.display == "none"


# ── clients and the end ──────────────────────────────────────────────────────────────


def test_a_session_is_asked_for_its_client_each_time(
    stand_in: StandIn, make: Make
) -> None:
    """After a relaunch the next question goes to the new client."""

    @dataclass
    class Session:
        client: LlamaCppClient
        url: str = "http://127.0.0.1:5"

    session = Session(stand_in.client(tokens=1))
    panel = make(session, mode="text")
    panel.send("first")
    assert panel.wait(10)
    session.client = stand_in.client(tokens=2)
    panel.send("second")
    assert panel.wait(10)
    assert [turn.content for turn in panel.transcript if turn.role == "assistant"] == [
        "w0 ",
        "w0 w1 ",
    ]


def test_a_pool_is_chatted_with_like_a_server(
    engine: Engine, tiny_model: Path, make: Make
) -> None:
    """The pool's client answers, and the cell names a server all the same."""
    config = ServerConfig(tiny_model, port=0, context_size=2048, threads=1)
    with ServerPool(config, gpus=[[], []], engine=engine, timeout=60) as pool:
        panel = make(pool, mode="text", extra_body={"ignore_eos": True}, max_tokens=9)
        panel.send("Hello!")
        assert panel.wait(30)
        assert panel.transcript[-1].completion_tokens == 9
        assert "LlamaCppClient(" in panel.to_cell()


def test_closing_ends_the_answer(stand_in: StandIn, page: Recorder, make: Make) -> None:
    """After close() the server is no longer asked, no thread runs, nothing is sent."""
    url = stand_in.url(tokens=5000, pace=0.01)
    panel = make(LlamaCppClient(url))
    ask(panel, "Hello!")
    wait_for(lambda: is_answering(panel))
    panel.close()
    wait_for(lambda: stand_in.asked(url)["hung_up_after"] is not None)
    wait_for(
        lambda: (
            not [
                thread
                for thread in threading.enumerate()
                if thread.name.startswith("llamatelemetry-panel")
            ]
        )
    )
    with pytest.raises(ConfigurationError, match="was closed"):
        panel.send("more")
    assert "Stopped" in repr(panel)
    panel.close()


def test_turns_are_values() -> None:
    """What the panel hands out cannot change under the caller."""
    turn = Turn(role="user", content="a")
    with pytest.raises(AttributeError):
        turn.content = "b"  # type: ignore[misc]


def test_what_was_dropped_is_not_asked_about_any_more(
    slow_client: LlamaCppClient, make: Make
) -> None:
    """A stopped answer that is asked again, dropped or forgotten ends its thread."""
    panel = make(slow_client, mode="text", max_tokens=3)
    panel.send("hello the hell in there " * 120)
    dropped = panel._history.exchanges[0].generation
    wait_for(lambda: dropped.state == "reading", 30)
    panel.stop()
    panel.clear()
    assert not dropped._left.is_set()
    panel.undo_clear()
    panel.edit_last("Hello!")
    assert dropped._left.is_set()
    assert panel.wait(30)
    for forget in (panel.drop_oldest, panel.clear):
        first = panel._history.exchanges[0].generation
        panel.send("Hello!")
        assert panel.wait(30)
        forget()
        panel.send("Hello!")
        assert panel.wait(30)
        assert first._left.is_set()


def test_questions_that_are_not_sent_take_no_room(
    engine: Engine, tiny_model: Path, page: Recorder, make: Make
) -> None:
    """One click makes the room that is needed, also where the oldest had failed."""
    config = ServerConfig(tiny_model, port=0, context_size=256, threads=1)
    with ServerManager(config, engine=engine, timeout=60) as server:
        panel = make(LlamaCppClient(server.get_url()), max_tokens=4, temperature=0)
        for number, words in enumerate((400, 25, 25, 50), 1):
            ask(panel, "hello " * words)
            settle(panel, number)
        said = [turn.finish_reason != "error" for turn in panel.transcript[1::2]]
        assert said == [False, True, True, False]
        needed = panel._situation().drop
        click(button(panel, f"Drop {needed} oldest"))
        settle(panel, 3 - needed)
        assert panel.transcript[-1].finish_reason != "error"


def test_a_cell_asks_what_was_part_of_the_conversation(
    stand_in: StandIn, make: Make
) -> None:
    """A question that failed is not in it: it was not sent with the next ones."""

    @dataclass
    class Source:
        client: LlamaCppClient

    source = Source(stand_in.client(status=500))
    panel = make(source, mode="text")
    panel.send("in vain")
    assert panel.wait(10)
    source.client = stand_in.client()
    panel.send("well")
    assert panel.wait(10)
    cell = panel.to_cell()
    assert "in vain" not in cell
    assert "well" in cell


def test_two_that_save_at_once_do_not_overwrite(
    stand_in: StandIn, tmp_path: Path, make: Make
) -> None:
    """Of many threads that save under one name, one does; the others are told."""
    panel = make(stand_in.client(), mode="text")
    results: list[str] = []

    def save() -> None:
        try:
            results.append(panel.save(tmp_path / "chat.json").name)
        except FileExistsError:
            results.append("there")

    threads = [threading.Thread(target=save) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["chat.json", *["there"] * 15]
    (tmp_path / "led.json").symlink_to(tmp_path / "nowhere.json")
    with pytest.raises(FileExistsError):
        panel.save(tmp_path / "led.json")


def test_a_folder_that_cannot_be_written_to_is_said(
    stand_in: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: Recorder,
    make: Make,
) -> None:
    """The button says so in a sentence, and where else it can be written."""
    gone = tmp_path / "gone"
    gone.mkdir()
    panel = make(stand_in.client())
    ask(panel, "Hello!")
    settle(panel, 1)
    monkeypatch.chdir(gone)
    gone.rmdir()
    click(button(panel, "Save JSON"))
    assert "<b>Error:</b> nothing was saved" in shown(panel)
    assert "panel.save(path)" in shown(panel)


def test_chosen_images_can_be_taken_away_from_a_blind_model(
    stand_in: StandIn, page: Recorder, make: Make
) -> None:
    """Their row stays while there are any; a bad file of several is named."""
    panel = make(stand_in.client())
    assert panel.widget is not None
    assert panel._face is not None
    pictures = panel._face.pictures
    pictures.offer(sees_pictures=True)
    upload(find(panel.widget, "FileUpload"), "cat.png", PICTURE)
    pictures.offer(sees_pictures=False)
    assert pictures.box.layout.display is None
    click(button(panel, "Remove images"))
    assert pictures.box.layout.display == "none"
    pictures.offer(sees_pictures=True)
    upload(find(panel.widget, "FileUpload"), "n<o>.txt", b"none", "text/plain")
    assert "<b>Error:</b> n&lt;o&gt;.txt: " in shown(panel)
    for strange in ({"type": "image_url"}, ["cat.png"]):
        with pytest.raises(ConfigurationError, match="image_part"):
            panel.send("What is this?", strange)  # type: ignore[arg-type]


def test_a_static_page_is_not_typeset(stand_in: StandIn, make: Make) -> None:
    """A server's error may hold a formula that runs a script when it is clicked."""
    panel = make(stand_in.client(finish="$%5Chref{javascript:a}{b}$"), mode="text")
    panel.send("Hello!")
    assert panel.wait(10)
    html = panel._repr_html_()
    assert "href{javascript" in html
    assert html.index("mathjax_ignore") < html.index("You</b>")
    assert html.endswith("</div></div>")
