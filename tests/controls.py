"""What holds for the controls of every explorer."""

import pytest


def check_every_control(explorer, changes, *, same_figure=()):
    """Each control, moved as `changes` says and in that order, changes the state, the sentence and existing traces."""
    assert changes.keys() == explorer.controls.keys()
    kept, traces = explorer.figure, [id(trace) for trace in explorer.figure.data]
    for name, value in changes.items():
        control, sentence, figure = explorer.controls[name], explorer.sentence.text, explorer.figure.to_json()
        if getattr(control, "min", 0) == getattr(control, "max", 1):
            continue  # such as the threads on one core
        control.value = value
        assert getattr(explorer.state, name) == pytest.approx(value, abs=0.05)  # a slider may round
        assert explorer.sentence.text != sentence, name
        assert name in same_figure or explorer.figure.to_json() != figure, name
    assert explorer.figure is kept
    assert [id(trace) for trace in kept.data] == traces
