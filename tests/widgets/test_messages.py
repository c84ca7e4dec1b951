"""Tests of messages that are handled in the middle of a cell, in a real kernel.

`make test` runs them on the kernels of Colab and Kaggle, and on the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Iterator
from functools import partial

import pytest
from kernel_client import KernelClient

from llamatelemetry.widgets._messages import can_handle, handle_messages

PRELUDE = """
import signal, time
import ipywidgets
from llamatelemetry.widgets._messages import can_handle, handle_messages

kernel = get_ipython().kernel
clicks = []
button = ipywidgets.Button(description="count")
label = ipywidgets.Label()

def count(_):
    clicks.append(True)
    label.value = str(len(clicks))

button.on_click(count)

def loop(ends, handle=handle_messages):
    print("begun", flush=True)
    handled = 0
    give_up = time.monotonic() + 20
    while not ends():
        assert time.monotonic() < give_up, "the loop did not end"
        handled += handle(kernel) or 0
        time.sleep(0.01)
    return handled
"""


@pytest.fixture(scope="module")
def started() -> Iterator[KernelClient]:
    """One kernel for all tests here, which must not harm it."""
    with KernelClient() as kernel:
        yield kernel


@pytest.fixture
def kernel(started: KernelClient) -> Iterator[KernelClient]:
    """That kernel with a button that counts; afterwards it still runs cells."""
    started.run(PRELUDE)
    yield started
    started.run("ipywidgets.Widget.close_all()")
    request = started.run("print('still here')")[0].parent
    assert started.text_of(request).strip() == "still here"


def button_of(kernel: KernelClient) -> str:
    """Return the button's id."""
    return kernel.widget("ButtonModel", description="count")


def shown(kernel: KernelClient) -> list[str]:
    """Return what the label has shown."""
    label = kernel.widget("LabelModel")
    return [update.state["value"] for update in kernel.updates(label)]


def states_of(kernel: KernelClient, request: str) -> list[str]:
    """Return the states that the kernel has told about a request."""
    found = kernel.of(request, "status")
    return [status.content["execution_state"] for status in found]


def test_a_plain_loop_leaves_buttons_dead(kernel: KernelClient) -> None:
    """Without its help, a click is handled when the cell has ended, and no sooner."""
    with kernel.running("""
until = time.monotonic() + 1
loop(lambda: clicks or time.monotonic() > until, lambda _: 0)
print(f"saw {len(clicks)}")
""") as request:
        kernel.click(button_of(kernel))
    assert "saw 0" in kernel.text_of(request)
    kernel.wait_for(lambda: shown(kernel) == ["1"])


def test_a_click_takes_effect_within_the_loop(kernel: KernelClient) -> None:
    """A handler runs in the main thread and its changes leave before the loop ends."""
    kernel.run("""
import threading
threads = []
button.on_click(lambda _: threads.append(threading.current_thread()))
""")
    with kernel.running("""
print(can_handle(kernel))
print("handled", loop(lambda: len(clicks) == 2))
print(set(threads) == {threading.main_thread()})
""") as request:
        first = kernel.click(button_of(kernel))
        kernel.wait_for(lambda: shown(kernel) == ["1"])
        assert not kernel.is_over(request)
        # A page holds back a control's next change until it hears of this.
        kernel.wait_for(lambda: kernel.is_over(first))
        kernel.click(button_of(kernel))
    assert kernel.text_of(request).split() == ["True", "begun", "handled", "2", "True"]
    assert shown(kernel) == ["1", "2"]


def test_changes_answer_what_caused_them(kernel: KernelClient) -> None:
    """A handler's messages name the click as their cause, the cell's name the cell.

    By that name ipywidgets 8 tells its own changes from others.
    """
    with kernel.running("""
loop(lambda: clicks)
label.value = "from the cell"
""") as request:
        click = kernel.click(button_of(kernel))
    updates = kernel.updates(kernel.widget("LabelModel"))
    assert [update.state["value"] for update in updates] == ["1", "from the cell"]
    assert [update.parent for update in updates] == [click, request]


def test_output_stays_with_the_cell(kernel: KernelClient) -> None:
    """What cell and handlers print and show belongs to the running cell all along."""
    kernel.run("""
button.on_click(lambda _: print("handler"))
button.on_click(lambda _: display("shown"))
""")
    with kernel.running("""
print("before", flush=True)
print("unflushed, ", end="")
loop(lambda: len(clicks) == 5)
print("after")
""") as request:
        clicks = [kernel.click(button_of(kernel)) for _ in range(5)]
    text = kernel.text_of(request)
    assert text.split()[:2] == ["before", "unflushed,"]
    assert text.split()[-1] == "after"
    assert text.count("handler") == 5
    assert len(kernel.of(request, "display_data")) == 5
    for click in clicks:
        kernel.wait_for(partial(kernel.is_over, click))
        assert not kernel.text_of(click)
        assert not kernel.of(click, "display_data")


def test_the_page_sees_a_busy_kernel(kernel: KernelClient) -> None:
    """After each handled message the kernel is said to be busy, as the cell is."""
    with kernel.running("loop(lambda: clicks and not time.sleep(0.2))"):
        before = len(kernel.published)
        click = kernel.click(button_of(kernel))
        kernel.wait_for(lambda: kernel.is_over(click))
        kernel.wait_for(
            lambda: (
                [
                    message.content["execution_state"]
                    for message in kernel.published[before:]
                    if message.kind == "status"
                ][:3]
                == ["busy", "idle", "busy"]
            )
        )


def test_cells_wait_their_turn(kernel: KernelClient) -> None:
    """Cells sent during the loop run after it, in order, each once with one reply."""
    kernel.run("order = []")
    with kernel.running("""
loop(lambda: len(clicks) == 21)
order.append("loop")
"loop"
""") as request:
        cells = []
        for number in range(10):
            code = f"order.append({number}); print({number}); {number} * 11"
            cells.append(kernel.send(code))
            kernel.click(button_of(kernel))
            kernel.click(button_of(kernel))
            kernel.collect(0.01)
        assert not any(map(kernel.replies_to, cells))
        kernel.click(button_of(kernel))
    for number, cell in enumerate(cells):
        assert kernel.reply_to(cell).content["status"] == "ok"
        kernel.wait_for(partial(kernel.is_over, cell))
        assert kernel.text_of(cell).strip() == str(number)
        (result,) = kernel.of(cell, "execute_result")
        assert result.content["data"]["text/plain"] == str(number * 11)
        assert len(kernel.of(cell, "execute_input")) == 1
    kernel.run("assert order == ['loop', *range(10)], order")
    assert all(len(kernel.replies_to(one)) == 1 for one in (request, *cells))


def test_cells_sent_before_the_loop_asks_wait_too(kernel: KernelClient) -> None:
    """What lay in the kernel's queue before the first look keeps its place."""
    with kernel.running("""
print("begun", flush=True)
time.sleep(0.3)
loop(lambda: clicks)
"""):
        first = kernel.send("len(clicks)")
        kernel.click(button_of(kernel))
        second = kernel.send("print(In[-2])")
    for cell in (first, second):
        assert kernel.reply_to(cell).content["status"] == "ok"
    (result,) = kernel.of(first, "execute_result")
    assert result.content["data"]["text/plain"] == "1"
    kernel.wait_for(lambda: "len(clicks)" in kernel.text_of(second))


def test_a_burst_of_200_messages(kernel: KernelClient) -> None:
    """Each of 200 clicks at once is handled once, in order, with a cell among them."""
    with kernel.running('print("handled", loop(lambda: len(clicks) >= 200))') as one:
        clicks = [kernel.click(button_of(kernel)) for _ in range(100)]
        cell = kernel.send("len(clicks)")
        clicks += [kernel.click(button_of(kernel)) for _ in range(100)]
    assert "handled 200" in kernel.text_of(one)
    assert kernel.reply_to(cell).content["status"] == "ok"
    assert shown(kernel) == [str(number) for number in range(1, 201)]
    for click in clicks:
        assert states_of(kernel, click) == ["busy", "idle"]


def test_a_control_that_is_dragged(kernel: KernelClient) -> None:
    """Changes of values come through as clicks do."""
    kernel.run("""
slider = ipywidgets.IntSlider()
slider.observe(lambda change: setattr(label, "value", str(change["new"])), "value")
""")
    with kernel.running("loop(lambda: slider.value == 42)"):
        for value in (7, 21, 42):
            kernel.change(kernel.widget("IntSliderModel"), value=value)
    assert shown(kernel) == ["7", "21", "42"]


def test_an_error_in_a_handler_breaks_nothing(kernel: KernelClient) -> None:
    """The loop goes on after a handler's error, and so do the other handlers."""
    kernel.run("""
def broken(_):
    raise RuntimeError("a handler has failed")

button.on_click(broken)
""")
    with kernel.running("loop(lambda: len(clicks) == 3)"):
        for _ in range(3):
            kernel.click(button_of(kernel))
    assert shown(kernel) == ["1", "2", "3"]


def test_a_handler_that_waits_is_ended(kernel: KernelClient) -> None:
    """What cannot be done in a cell is logged and ended; the page hears "idle"."""
    kernel.run("""
import asyncio, logging

class Memory(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())

logged, ended, memory = [], [], Memory(logging.ERROR)
usual = kernel.shell_handlers["comm_info_request"]

async def wait(*_):
    try:
        await asyncio.sleep(20)
    finally:
        ended.append(True)
""")
    with kernel.running("""
kernel.shell_handlers["comm_info_request"] = wait
kernel.log.addHandler(memory)
try:
    loop(lambda: clicks)
finally:
    kernel.log.removeHandler(memory)
    kernel.shell_handlers["comm_info_request"] = usual
"""):
        asked = kernel.ask("comm_info_request", {})
        kernel.wait_for(lambda: kernel.is_over(asked))
        kernel.click(button_of(kernel))
    assert states_of(kernel, asked) == ["busy", "idle"]
    kernel.run("assert ended == [True], ended")
    kernel.run("assert logged == ['a message could not be handled'], logged")


def test_unknown_and_malformed_messages(kernel: KernelClient) -> None:
    """A message for a widget that is gone, or without sense, is passed over."""
    with kernel.running("loop(lambda: clicks)"):
        kernel.click("0" * 32)
        kernel.comm_message(button_of(kernel), {"method": "nonsense"})
        kernel.ask("comm_msg", {})
        kernel.ask("no_such_request", {})
        kernel.ask("comm_close", {"comm_id": "1" * 32, "data": {}})
        kernel.click(button_of(kernel))
    assert shown(kernel) == ["1"]


def test_forged_and_broken_messages(kernel: KernelClient) -> None:
    """What is wrongly signed, or signed and no JSON, is not handled, and harms none."""
    session = kernel.client.session
    socket = kernel.client.shell_channel.socket
    click = {"method": "custom", "content": {"event": "click"}}
    content = {"comm_id": button_of(kernel), "data": click}
    mark, signature, *parts = session.serialize(session.msg("comm_msg", content))
    wrong = bytes(reversed(signature))
    broken = [*parts[:-1], b"{"]
    with kernel.running("loop(lambda: clicks and not time.sleep(0.2))"):
        socket.send_multipart([mark, wrong, *parts])
        socket.send_multipart([mark, session.sign(broken), *broken])
        socket.send_multipart([b"nonsense"])
        kernel.click(button_of(kernel))
    assert shown(kernel) == ["1"]


def test_a_page_that_is_loaded_anew(kernel: KernelClient) -> None:
    """A new page hears in the middle of the loop what widgets there are, and how."""
    with kernel.running("loop(lambda: clicks)") as request:
        info = kernel.ask("kernel_info_request", {})
        widgets = kernel.ask("comm_info_request", {"target_name": "jupyter.widget"})
        assert kernel.reply_to(info).content["status"] == "ok"
        assert button_of(kernel) in kernel.reply_to(widgets).content["comms"]
        asked = kernel.comm_message(button_of(kernel), {"method": "request_state"})
        kernel.wait_for(lambda: kernel.is_over(asked))
        (state,) = kernel.of(asked, "comm_msg")
        assert state.state["description"] == "count"
        assert not kernel.is_over(request)
        kernel.click(button_of(kernel))
    assert len(kernel.replies_to(widgets)) == 1


def test_an_interrupt_ends_the_loop(kernel: KernelClient) -> None:
    """The notebook's stop button raises KeyboardInterrupt in the loop."""
    request = kernel.send("loop(lambda: False)")
    kernel.wait_for(lambda: "begun" in kernel.text_of(request))
    kernel.click(button_of(kernel))
    kernel.wait_for(lambda: shown(kernel) == ["1"])
    kernel.interrupt()
    assert kernel.reply_to(request).content["ename"] == "KeyboardInterrupt"


def test_an_interrupt_comes_out_of_a_handler(kernel: KernelClient) -> None:
    """It ends a handler that hangs; the messages behind it are handled after all."""
    kernel.run("""
def hang(_):
    button.on_click(hang, remove=True)
    label.value = "hanging"
    time.sleep(20)

button.on_click(hang)
""")
    with kernel.running("""
try:
    loop(lambda: False)
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
label.value = "gone on"
""") as request:
        clicks = [kernel.click(button_of(kernel)) for _ in range(3)]
        cell = kernel.send("'cell'")
        kernel.wait_for(lambda: "hanging" in shown(kernel))
        kernel.interrupt()
    assert "interrupted True" in kernel.text_of(request)
    assert kernel.reply_to(cell).content["status"] == "ok"
    kernel.wait_for(lambda: all(map(kernel.is_over, clicks)))
    # Its own name is back: what the cell did afterwards is the cell's.
    (gone_on,) = [
        update
        for update in kernel.updates(kernel.widget("LabelModel"))
        if update.state["value"] == "gone on"
    ]
    assert gone_on.parent == request
    kernel.run("assert len(clicks) == 3, clicks")


def test_interrupts_at_any_moment_lose_nothing(kernel: KernelClient) -> None:
    """Interrupted at random moments of a burst, it loses no message and no cell.

    The signal is Ctrl-C's own. A handler that it strikes has done what it has done, but
    the page always hears that the message was handled, once.
    """
    kernel.run("""
import random, threading
interrupts = 0
done = threading.Event()
stop = ipywidgets.Button(description="stop")
stop.on_click(lambda _: done.set())

def interrupt_often():
    while not done.wait(random.uniform(0.0001, 0.005)):
        signal.raise_signal(signal.SIGINT)

def interrupted_loop():
    global interrupts
    thread = threading.Thread(target=interrupt_often)
    print("begun", flush=True)
    time.sleep(0.2)  # so that a burst lies there
    thread.start()
    while thread.is_alive():
        try:
            handle_messages(kernel)
        except KeyboardInterrupt:
            interrupts += 1
""")
    stop = kernel.widget("ButtonModel", description="stop")
    with kernel.running("interrupted_loop()") as request:
        cells, clicks = [], []
        for number in range(10):
            cells.append(kernel.send(str(number)))
            clicks += [kernel.click(button_of(kernel)) for _ in range(10)]
        while not kernel.is_over(request):
            clicks.append(kernel.click(stop))
            kernel.collect()
    for cell in cells:
        assert kernel.reply_to(cell).content["status"] == "ok"
    kernel.run("assert interrupts and 100 - interrupts <= len(clicks) <= 100")
    assert all(len(kernel.replies_to(cell)) == 1 for cell in cells)
    for click in clicks:
        assert states_of(kernel, click) == ["busy", "idle"]


def test_a_handler_that_loops_itself(kernel: KernelClient) -> None:
    """A loop within a handler handles nothing, and the outer one goes on after it."""
    kernel.run("""
inner = []
button.on_click(lambda _: inner.append(handle_messages(kernel)))
""")
    with kernel.running("loop(lambda: len(clicks) == 2)"):
        kernel.click(button_of(kernel))
        kernel.click(button_of(kernel))
    kernel.run("assert inner == [0, 0], inner")


def test_not_in_a_thread(kernel: KernelClient) -> None:
    """A thread cannot handle messages, says so, and touches none."""
    with kernel.running("""
import threading
found = []
print("begun", flush=True)

def elsewhere():
    for _ in range(50):
        found.append((can_handle(kernel), handle_messages(kernel)))
        time.sleep(0.01)

thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
print(set(found))
""") as request:
        kernel.click(button_of(kernel))
    assert "{(False, 0)}" in kernel.text_of(request)
    kernel.wait_for(lambda: shown(kernel) == ["1"])


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_what_is_no_kernel(in_a_loop: bool) -> None:
    """Of a kernel whose inside looks different nothing is touched."""

    async def look() -> None:
        for other in (None, object(), types.SimpleNamespace(shell_stream=None)):
            assert can_handle(other) is False
            assert handle_messages(other) == 0

    if in_a_loop:
        asyncio.run(look())
    else:
        with contextlib.suppress(StopIteration):
            look().send(None)
