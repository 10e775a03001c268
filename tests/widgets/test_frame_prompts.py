"""Test random draws of prompts, and prompt files of another size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sam2kit.config.schema import DatasetConfig
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.io import load_video_prompts
from sam2kit.utils.errors import DataError


def test_draw_prompts_as_in_training(session):
    side = session.image_size
    for kind in ("mask", "box", "point"):
        recipe = DatasetConfig(prompt_types=[kind], num_positive_points=2, num_negative_points=1)
        session.draw(1, 0, recipe, seed=3)
        prompt, truth = session.prompts[1, 0], session.truth(0)[1]
        if kind == "mask":
            assert (prompt.mask == truth).all()
        elif kind == "box":
            ys, xs = np.nonzero(truth)
            tight = (xs.min(), ys.min(), xs.max(), ys.max())
            assert np.abs(np.subtract(prompt.box, tight)).max() <= 160 / side + 1
        else:
            assert prompt.labels == (1, 1, 0)
            inside = [truth[y, x] for x, y in prompt.points]
            assert inside[0] and not inside[2]
    drawn = []
    for seed in (1, 1, 2):
        session.draw(1, 0, replace(recipe, include_center=False), seed)
        drawn.append(session.prompts[1, 0].points)
    assert drawn[0] == drawn[1] != drawn[2]
    session.add_object("new")
    with pytest.raises(DataError, match="object new is not visible on frame 0"):
        session.draw("new", 0, recipe, 0)


def test_draw_uses_the_prompt_generator(session, monkeypatch):
    seen = []
    call = PromptGenerator.__call__
    monkeypatch.setattr(
        PromptGenerator, "__call__", lambda self, *a: seen.append(self.box_noise) or call(self, *a)
    )
    session.draw(1, 0, DatasetConfig(prompt_types=["box"], box_noise=0.3), 0)
    assert seen == [0.3]


def test_prompts_of_another_size_are_scaled(session, tmp_path):
    path, (height, width) = tmp_path / "prompts.json", session.size
    entry = {"video": session.video, "object_id": 1, "frame_index": 0}
    box = entry | {"kind": "box", "box": [5, 10, 40, 50]}
    click = entry | {"kind": "point", "points": [[10, 20]], "labels": [1]}
    document = {"version": 1, "image_size": [height // 2, width // 2], "prompts": [box, click]}
    path.write_text(json.dumps(document))
    session.load(path)
    prompt = session.prompts[1, 0]
    assert prompt.box == (10, 20, 80, 100) and prompt.points == ((20, 40),)
    # Rows and columns in the wrong order are noticed, at any scale.
    for factor in (1, 2):
        document["image_size"] = [width // factor, height // factor]
        path.write_text(json.dumps(document))
        with pytest.raises(DataError, match="swapped") as error:
            session.load(path)
        assert error.value.key == "image_size" and error.value.value == document["image_size"]
        with pytest.raises(DataError, match="swapped"):
            load_video_prompts(path, session.video, 6, 128, session.size)
        load_video_prompts(path, session.video, 6, 128)  # the size of the frames is unknown
    document["image_size"] = [128, 128]  # the model's square is no mistake
    path.write_text(json.dumps(document))
    session.load(path)
    assert session.prompts[1, 0].points == ((round(10.5 * width / 128 - 0.5), 20),)
