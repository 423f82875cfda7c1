"""The bar is there on a terminal only, and draws nothing while times are measured."""

import threading

import pytest

from onnxptq.calibrate.progress import Bar


@pytest.mark.parametrize("by_itself", [True, False])
def test_no_thread_draws_a_bar_that_is_drawn_at_each_step(
    by_itself: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    bar, before = Bar(by_itself=by_itself), threading.active_count()

    bar.start("measuring", 2)
    more = threading.active_count() - before
    bar.advance()
    bar.finish()

    assert more == int(by_itself)
    if not by_itself:
        assert "50%" in capsys.readouterr().err


def test_a_pipe_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar(by_itself=False)

    bar.start("measuring", 1)
    bar.advance()
    bar.finish()

    assert capsys.readouterr().err == ""
