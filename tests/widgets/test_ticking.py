"""A Play widget that ticks in the page, whichever version of ipywidgets is there."""

from __future__ import annotations

from panel_tools import Recorder, every_widget, ipywidgets, set_traits, tick

from llamatelemetry.widgets._ticking import make_ticking


def test_it_begins_when_a_page_shows_it_and_ticks(page: Recorder) -> None:
    """In 8 a view makes it play, hidden; in 7 its button is there to be clicked."""
    ticks: list[int] = []
    toolkit = ipywidgets()
    parts = make_ticking(toolkit, lambda: ticks.append(1))
    everything = [one for part in parts for one in every_widget(part)]
    (play,) = [one for one in everything if type(one).__name__ == "Play"]

    if play.has_trait("playing"):
        assert play.layout.display == "none"
        assert not play.playing
        set_traits(play, _view_count=1)
        assert play.playing
        set_traits(play, _view_count=0)  # a page was closed: nothing to begin
        assert page.values(play, "playing") == [True]
    else:
        (row,) = parts
        assert row.layout.display is None
        assert "Press ▶ once" in everything[-1].value
        # The script is constant but for the mark that names the button.
        assert everything[-1].value.count("llamatelemetry-tick-") == 1
    tick(play)
    tick(play)

    assert ticks == [1, 1]
    assert parts[0].layout.display == "none"
