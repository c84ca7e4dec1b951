"""Joules of the cards while a load runs."""

from __future__ import annotations

import pytest
from nvml_tools import StandInDriver, t4

from llamatelemetry import GPUMonitor
from llamatelemetry.bench._energy import Meter, idle_watts_of, joules_of
from llamatelemetry.gpu import GPUSample
from llamatelemetry.gpu._run import SystemClock


def tick(moment: float, *watts: float | None) -> tuple[float, tuple[GPUSample, ...]]:
    """Return what cards said at a moment: their power."""
    return moment, tuple(
        GPUSample(index=index, time=0.0, power_watts=power)
        for index, power in enumerate(watts)
    )


def test_power_over_time_is_energy() -> None:
    """Power is taken to change evenly between samples, and cards are added up."""
    ticks = [tick(100.0, 10.0, 50.0), tick(102.0, 30.0, 50.0), tick(103.0, 30.0, 70.0)]

    assert joules_of(ticks) == pytest.approx((40 + 30) + (100 + 60))


@pytest.mark.parametrize(
    "ticks",
    [
        [],
        [tick(1.0, 10.0)],
        [tick(1.0, 10.0), tick(2.0, None)],
        [tick(1.0, None, 10.0), tick(2.0, 10.0, 10.0)],
        [tick(1.0, 10.0), tick(2.0, 10.0, 10.0)],
        [tick(1.0), tick(2.0)],
    ],
)
def test_what_is_not_told_is_none(
    ticks: list[tuple[float, tuple[GPUSample, ...]]],
) -> None:
    """A part of the energy is never taken for the whole, nor nothing for 0."""
    assert joules_of(ticks) is None


def test_power_at_rest_is_that_of_cards_that_do_nothing() -> None:
    """One card at work, or one that does not tell, and it is not known."""

    def sample(load: int | None, watts: float | None) -> GPUSample:
        return GPUSample(0, 1.0, utilization_percent=load, power_watts=watts)

    assert idle_watts_of([sample(0, 9.5), sample(0, 10.0)]) == 19.5
    assert idle_watts_of([sample(0, 9.5), sample(3, 30.0)]) is None
    assert idle_watts_of([sample(0, 9.5), sample(0, None)]) is None
    assert idle_watts_of([]) is None


def test_cards_of_this_machine_are_watched(driver: StandInDriver) -> None:
    """Two cards that draw 9.5 W each take 19 joules in a second."""
    driver.describe(t4(0), t4(1))
    with Meter(None, local=True) as meter:
        meter.begin()
        joules = meter.end()
        assert meter.cards == ("Tesla T4", "Tesla T4")
        assert meter.idle_watts == pytest.approx(19.0)

    assert joules is not None
    assert 0 < joules < 19 * 10  # of the moment between the two


class ClockSetBack(SystemClock):
    """A clock that is an hour behind whenever it is looked at again."""

    behind = 0

    def time(self) -> float:
        """Seconds since 1970."""
        self.behind += 3600
        return super().time() - self.behind


def test_a_clock_that_is_set_back_changes_no_energy(driver: StandInDriver) -> None:
    """An hour less on the wall between two samples is no hour of the load."""
    driver.describe(t4(0), t4(1))
    with Meter(GPUMonitor(_clock=ClockSetBack()), local=True) as meter:
        meter.begin()
        joules = meter.end()

    assert joules is not None
    assert 0 < joules < 19 * 10  # of the moment between the two


def test_the_cards_here_say_nothing_of_another_machine(driver: StandInDriver) -> None:
    """A server elsewhere has no energy, unless a monitor is named."""
    driver.describe(t4(0))
    with Meter(None, local=False) as meter:
        meter.begin()

        assert meter.end() is None
        assert meter.cards == ()

    monitor = GPUMonitor()
    with Meter(monitor, local=False) as meter:
        meter.begin()
        assert meter.end() is not None
        assert monitor.running
    assert not monitor.running  # it stood still before


def test_a_monitor_that_runs_goes_on(driver: StandInDriver) -> None:
    """Who watches already is not stopped, and is not told of ticks for ever."""
    driver.describe(t4(0))
    with GPUMonitor() as monitor:
        with Meter(monitor, local=True) as meter:
            meter.begin()  # and interrupted: no end()
        assert monitor.running
        assert monitor._subscribers == []


def test_without_cards_nothing_is_known(driver: StandInDriver) -> None:
    """No card is no energy, and no error."""
    driver.describe()
    with Meter(None, local=True) as meter:
        meter.begin()

        assert meter.end() is None
        assert meter.idle_watts is None
