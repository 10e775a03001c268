"""Training curves are updated in a notebook during training."""

from __future__ import annotations

import os
import threading

import pytest
from matplotlib.figure import Figure

from sam2kit.viz import live_curves as live
from sam2kit.viz.plots import training_curves

HEAD = "epoch,step,loss,learning_rate,loss_iou,val_iou,val_loss\r\n"


def lines(figure: Figure) -> dict[str, dict[str, list[tuple[int, float]]]]:
    return {
        axes.get_title(): {
            line.get_label(): list(zip(*map(list, line.get_data()), strict=True))
            for line in axes.lines
        }
        for axes in figure.axes
    }


def test_training_curves(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text(f"{HEAD}0,1,3.5,0.01,0.9,,\r\n0,2,2.5,0.01,0.8,,\r\n0,2,,,,0.25,3.0\r\n")
    assert lines(training_curves(file)) == {
        "training loss": {"loss": [(1, 3.5), (2, 2.5)], "loss_iou": [(1, 0.9), (2, 0.8)]},
        "validation loss": {"val_loss": [(2, 3.0)]},
        "validation IoU": {"val_iou": [(2, 0.25)]},
    }


@pytest.mark.parametrize("text", ["", HEAD, f"{HEAD}0,1,3."])
def test_incomplete_lines_are_ignored(tmp_path, text):
    file = tmp_path / "metrics.csv"
    file.write_text(text)
    assert training_curves(file) is None and training_curves(tmp_path / "missing.csv") is None


class FakeFrontEnd:
    """Replaces the notebook front end and records the displayed figures."""

    def __init__(self):
        self.figures, self.new = [], threading.Event()

    def display(self, figure, display_id):
        assert display_id is True
        self.update(figure)
        return self

    def update(self, figure):
        self.figures.append(lines(figure)["training loss"]["loss"])
        self.new.set()

    def wait(self):
        assert self.new.wait(60)
        self.new.clear()


@pytest.fixture
def shown(monkeypatch):
    shown = FakeFrontEnd()
    monkeypatch.setattr(live, "display", shown.display)
    return shown


def test_one_figure_is_updated_and_drawn_a_last_time_after_an_error(tmp_path, shown):
    file = tmp_path / "metrics.csv"
    with (
        pytest.raises(RuntimeError, match="training failed"),
        live.show_live_curves(tmp_path, 0.01),
    ):
        text = HEAD
        for line in ("0,1,3.5,0.01,0.9,,\r\n", "0,2,2.5,0.01,0.8,,\r\n"):
            text += line
            new = tmp_path / "new.csv"
            new.write_text(text)
            os.utime(new, (1000, 1000))  # the same time, as of writes within a tick of the clock
            new.replace(file)
            shown.wait()
        raise RuntimeError("training failed")
    assert shown.figures == [[(1, 3.5)], [(1, 3.5), (2, 2.5)]]
    assert "live curves" not in [thread.name for thread in threading.enumerate()]


def test_a_training_that_ends_before_the_first_update_is_drawn(tmp_path, shown):
    with live.show_live_curves(tmp_path, seconds=1000):
        (tmp_path / "metrics.csv").write_text(f"{HEAD}0,1,3.5,0.01,0.9,,\r\n")
    with live.show_live_curves(tmp_path / "nothing", seconds=1000):
        pass
    assert shown.figures == [[(1, 3.5)]]
