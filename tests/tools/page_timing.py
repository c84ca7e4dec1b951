"""How long what a panel shows takes from the kernel's send to the page.

A notebook's kernel notes when it sends each picture and each answer, the page when it
shows them; both read this machine's clock. The answer is the stand-in server's, whose
words are numbered: ``w0 w1 w2 ...``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

NOTE_SENT = """
import hashlib, json, pathlib, re, time, ipywidgets
_sent, _send = [], ipywidgets.Widget._send

def _noted(widget, message, buffers=None):
    now = time.time()
    for buffer in buffers or ():
        digest = hashlib.sha256(buffer).hexdigest()
        _sent.append(("picture", now * 1000, digest))
    words = re.findall(r"w(\\d+) ", json.dumps(message.get("state", {})))
    if words:
        _sent.append(("answer", now * 1000, max(map(int, words))))
    return _send(widget, message, buffers)

ipywidgets.Widget._send = _noted

def write_sent(path):
    pathlib.Path(path).write_text(json.dumps(_sent))
"""
"""A cell that notes what widgets send from now on; ``write_sent(path)`` writes it."""

NOTE_SEEN = """() => {
  window.seen = [];
  let last = -1;
  new MutationObserver(() => {
    const now = Date.now();
    const answer = document.querySelector('.llamatelemetry-answer');
    const text = answer?.closest('.widget-vbox').textContent ?? '';
    const words = [...text.matchAll(/w(\\d+) /g)];
    const newest = words.length ? Number(words[words.length - 1][1]) : -1;
    if (newest > last) {
      last = newest;
      window.seen.push(['answer', now, newest]);
    }
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
  document.body.addEventListener('load', async event => {
    if (event.target.tagName !== 'IMG') return;
    const now = Date.now();
    const bytes = await (await fetch(event.target.src)).arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
    const hex = [...digest].map(byte => byte.toString(16).padStart(2, '0')).join('');
    window.seen.push(['picture', now, hex]);
  }, true);
}"""
"""What a page runs to note what it shows from now on, in ``window.seen``."""

Event = tuple[str, float, Any]


def delays(sent: Sequence[Event], seen: Sequence[Event]) -> dict[str, list[float]]:
    """Return the milliseconds from sending to showing, of pictures and of answers.

    Args:
        sent: What the kernel noted: a kind, milliseconds, and a digest or a word.
        seen: What the page noted, likewise.
    """
    pictures = {what: at for kind, at, what in reversed(sent) if kind == "picture"}
    answers = [(what, at) for kind, at, what in sent if kind == "answer"]
    newest: list[tuple[int, float]] = []  # the first time each further word was sent
    for word, at in answers:
        if not newest or word > newest[-1][0]:
            newest.append((word, at))
    words = [word for word, _ in newest]
    found: dict[str, list[float]] = {"picture": [], "answer": []}
    for kind, at, what in seen:
        if kind == "picture" and what in pictures:
            found[kind].append(at - pictures[what])
        elif kind == "answer" and (place := bisect_left(words, what)) < len(words):
            found[kind].append(at - newest[place][1])
    return found
