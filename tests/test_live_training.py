"""LiveTraining without a browser."""

import asyncio

from qtutor.explorers import LiveTraining, training

import pytest


async def train(live, epochs, size, *, click_at=None, error=None):
    """Take the batches of some epochs; what came is kept in `live.seen`."""
    live.seen = []
    async with live:
        for _ in range(epochs):
            async for batch in live.batches(range(size)):
                live.seen.append(batch)
                if len(live.seen) == click_at:
                    live.button.click()
        if error:
            raise error
    return live


def test_counts_batches_and_draws_points():
    live = asyncio.run(train(LiveTraining("Training", 6, ["a", "b"]), 2, 3))
    live.point("a", 1, 50.0)
    live.point("a", 2, 60.0)
    assert live.seen == [0, 1, 2] * 2
    assert live.finished
    assert live.bar.value == 6
    assert live.button.disabled
    assert list(live.figure.data[0].y) == [50.0, 60.0]
    assert "6 of 6 batches, finished" in live.status.value


def test_the_button_ends_this_epoch_and_the_next():
    live = asyncio.run(train(LiveTraining("Training", 9, "a"), 2, 5, click_at=3))
    assert live.seen == [0, 1, 2]
    assert not live.finished
    assert "3 of 9 batches, stopped" in live.status.value


def test_a_kernel_that_hears_no_click_gets_no_button_and_says_how_to_stop(monkeypatch):
    monkeypatch.setattr(training, "_HEARS_CLICKS", False)
    live = LiveTraining("Training", 2, "a")
    assert live.button not in live.children[0].children
    live._show()
    assert "interrupt the kernel" in live.status.value


def test_other_tasks_are_heard_between_batches():
    live = LiveTraining("Training", 500, "a")

    async def click():
        live.stop()

    async def both():
        await asyncio.gather(train(live, 1, 500), click())

    asyncio.run(both())
    assert len(live.seen) < 500


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
def test_an_interrupt_stops_and_the_cell_ends_well(error):
    assert asyncio.run(train(LiveTraining("Training", 9, "a"), 1, 2, error=error)).stopped


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError):
        asyncio.run(train(LiveTraining("Training", 9, "a"), 1, 2, error=ZeroDivisionError()))


@pytest.mark.parametrize("arguments", [(0, ["a"]), (3, []), (3, list("abcdef"))])
def test_needs_batches_and_one_to_five_series(arguments):
    with pytest.raises(ValueError, match="batches and 1 to 5 series"):
        LiveTraining("Training", *arguments)
