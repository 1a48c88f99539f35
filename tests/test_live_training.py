"""LiveTraining without a browser."""

import pytest

from qtutor.explorers.training import LiveTraining


def test_counts_batches_and_draws_points():
    with LiveTraining("Training", 6, ["a", "b"]) as live:
        for name in ("a", "b"):
            assert [*live.batches(range(3))] == [0, 1, 2]
            live.point(name, 1, 50.0)
    assert live.finished
    assert live.bar.value == 6
    assert live.button.disabled
    assert [list(trace.y) for trace in live.figure.data] == [[50.0], [50.0]]
    assert "6 of 6 batches, finished" in live.status.value


def test_the_button_ends_this_loop_and_the_next():
    with LiveTraining("Training", 9, "a") as live:
        seen = []
        for batch in live.batches(range(5)):
            seen.append(batch)
            if batch == 2:
                live.button.click()
        assert [*live.batches(range(4))] == []
    assert seen == [0, 1, 2]
    assert not live.finished
    assert "3 of 9 batches, stopped" in live.status.value


def test_an_interrupt_stops_and_other_errors_pass():
    with LiveTraining("Training", 9, "a") as live:
        raise KeyboardInterrupt
    assert live.stopped
    with pytest.raises(ZeroDivisionError), LiveTraining("Training", 9, "a"):
        _ = 1 / 0


@pytest.mark.parametrize("arguments", [(0, ["a"]), (3, []), (3, list("abcde"))])
def test_needs_batches_and_one_to_four_series(arguments):
    with pytest.raises(ValueError, match="batches and 1 to 4 series"):
        LiveTraining("Training", *arguments)
