"""The examples of docs/library.md run, one after the other, and are short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "library.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def names(own_cache, tmp_path_factory):
    """What the examples define, each run as a cell of one notebook in a folder of its own."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "data_samples").symlink_to(ROOT / "data_samples")
    defined: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, example in enumerate(EXAMPLES, 1):
            exec(compile(example, f"docs/library.md, example {number}", "exec"), defined)
        yield defined


def test_are_shorter_than_20_lines():
    assert len(EXAMPLES) == 8
    assert all(len(example.splitlines()) < 20 for example in EXAMPLES)


def test_a_model_tracks_a_clip(names):
    batch, output = names["batch"], names["output"]
    assert batch.frames.shape == (2, 4, 3, 128, 128)
    assert output.mask_logits.shape == (4, batch.num_objects, 32, 32)
    assert output.tracked.any(0).all()


def test_training_on_arrays_leaves_a_run(names):
    result = names["result"]
    assert result.best_checkpoint.is_file() and result.last_checkpoint.is_file()
    assert 0 <= result.metrics["val_iou"] <= 1
    assert not result.interrupted


def test_own_loss_and_trainer_log_and_save(names):
    trainer, module = names["trainer"], names["module"]
    assert trainer.global_step == 2
    assert {"loss", "focal", "val_loss", "val_focal", "val_iou"} <= set(trainer.callback_metrics)
    assert module.loss is names["my_loss"]
    metrics = list(Path("outputs/own").rglob("metrics.csv"))
    assert len(metrics) == 1 and "focal" in metrics[0].read_text().splitlines()[0]
    weights = module.model.state_dict()
    assert all(bool((weights[k] == v).all()) for k, v in names["model"].state_dict().items())


def test_tracking_and_scores_in_memory_and_on_disk_agree(names):
    assert [mask.shape for mask in names["tracked"]] == [(64, 64)] * 6
    in_memory = names["scorer"].result().objects()[1]
    on_disk = names["scores"].videos[0].objects()[1]
    assert in_memory["J"] > 0.5
    # A truth of one object takes the convention of DAVIS 2016, with the same frames here.
    assert on_disk["J"] == pytest.approx(in_memory["J"])
