"""Overlays, sheets, GIFs and plots have the expected pixels, shapes and labels."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from sam2kit.data.clip import VideoClip, collate
from sam2kit.data.preview import clip_sheet
from sam2kit.evaluation.pictures import tracking_figure, tracking_frames
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.preview import prompt_sheet
from sam2kit.utils.errors import DataError
from sam2kit.viz.overlays import PALETTE, contact_sheet, draw_prompts, frames_to_images, overlay
from sam2kit.viz.plots import curves, save_figure
from sam2kit.viz.tables import markdown_table
from sam2kit.viz.video_writer import save_gif

GREY = np.full((16, 20, 3), 100, dtype=np.uint8)


def texts(figure):
    return [axes.get_title() for axes in figure.axes] + [a.get_ylabel() for a in figure.axes]


def square_masks():
    masks = np.zeros((2, 16, 20), dtype=bool)
    masks[0, 2:9, 2:9] = True
    masks[1, 6:12, 6:12] = True
    return masks


def make_batch(frames=3):
    masks = torch.zeros(frames, 2, 32, 32, dtype=torch.bool)
    for t in range(frames):
        masks[t, 0, 4:12, 4 + t : 12 + t] = True
        masks[t, 1, 20:28, 6:16] = True
    pictures = torch.full((frames, 3, 32, 32), 90, dtype=torch.uint8)
    clip = VideoClip(pictures, masks, torch.ones(frames, 2, dtype=torch.bool), "two squares")
    return collate([clip, clip.select_objects([1])])


def test_overlay_changes_only_the_pixels_of_objects():
    frame, masks = GREY.copy(), square_masks()
    picture = overlay(frame, masks, alpha=0.5)
    assert (frame == GREY).all()
    outside = ~masks.any(0)
    assert (picture[outside] == 100).all()
    assert picture[4, 4].tolist() == ((100 + PALETTE[0].astype(int)) / 2).round().tolist()
    assert picture[2, 2].tolist() == PALETTE[0].tolist()  # outline
    assert picture[6, 8].tolist() == PALETTE[1].tolist()  # the later object is on top


def test_overlay_without_outlines_and_with_given_colours():
    picture = overlay(GREY, square_masks()[:1], np.array([[0, 0, 200]]), 0.25, contours=False)
    assert picture[2, 2].tolist() == [75, 75, 125]
    assert (overlay(GREY, np.zeros((0, 16, 20), dtype=bool)) == GREY).all()


def test_colours_repeat_for_many_objects():
    masks = np.zeros((9, 16, 20), dtype=bool)
    masks[8, 3, 3] = True
    assert overlay(GREY, masks)[3, 3].tolist() == PALETTE[8 % len(PALETTE)].tolist()


def test_overlay_rejects_masks_of_another_size():
    with pytest.raises(ValueError, match="do not fit"):
        overlay(GREY, np.zeros((1, 8, 8), dtype=bool))


def test_prompts_are_drawn_at_their_positions():
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    points = np.array([[20, 10], [40, 50]], dtype=np.float32)
    picture = draw_prompts(frame, points, np.array([1, 0]), box=np.array([5, 6, 60, 58]))
    assert (frame == 0).all()
    positive, negative = picture[10, 20].astype(int), picture[50, 40].astype(int)
    assert positive[1] > positive[0] and negative[0] > negative[1]  # green, red
    assert picture[6, 30].any() and picture[30, 60].any() and not picture[30, 30].any()


def test_box_given_as_two_points():
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    corners = np.array([[5, 6], [60, 58]], dtype=np.float32)
    as_points = draw_prompts(frame, corners, np.array([2, 3]))
    assert (as_points == draw_prompts(frame, box=corners.flatten())).all() and as_points.any()


def test_points_without_labels_are_rejected():
    with pytest.raises(ValueError, match="labels"):
        draw_prompts(GREY, np.zeros((2, 2)), np.array([1]))


def test_contact_sheet(tmp_path):
    figure = contact_sheet([[GREY, GREY], [GREY]], ["one", "two"], ["a", "b"], "sheet")
    assert isinstance(figure, Figure) and len(figure.axes) == 4
    assert [len(axes.images) for axes in figure.axes] == [1, 1, 1, 0]
    assert {"one", "two", "a", "b"} <= set(texts(figure))
    figure.savefig(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width > image.height > 100


def test_contact_sheet_rejects_labels_that_do_not_match():
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])
    with pytest.raises(ValueError, match="row labels"):
        contact_sheet([[GREY]], ["one", "two"])
    with pytest.raises(ValueError, match="column labels"):
        contact_sheet([[GREY]], [], ["a", "b"])
    with pytest.raises(ValueError, match="captions"):
        contact_sheet([[GREY], [GREY]], captions=["a"])


def test_clip_and_prompt_sheets_of_a_batch():
    batch = make_batch(frames=10)
    assert len(clip_sheet(batch, max_columns=4).axes) == 8
    prompts = PromptGenerator(["mask", "box", "point"])(batch, torch.Generator().manual_seed(0))
    figure = prompt_sheet(batch, prompts, max_columns=2)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert len(titles) == 3 and all("two squares, object" in title for title in titles)


def test_normalised_frames_are_rejected():
    with pytest.raises(ValueError, match="uint8"):
        frames_to_images(torch.zeros(3, 8, 8))
    assert frames_to_images(torch.zeros(2, 3, 8, 9, dtype=torch.uint8)).shape == (2, 8, 9, 3)


def tracked():
    batch = make_batch(frames=5)
    frames = frames_to_images(batch.frames[0])
    truth = batch.masks[:, :1].numpy()
    return frames, truth, {"truth again": truth, "lost": np.zeros_like(truth)}


def test_tracking_figure_shows_numbers_and_scores():
    frames, truth, predictions = tracked()
    numbers = [10 * t for t in range(len(frames))]
    scores = {"truth again": "J&F 0.12", "lost": "no score"}
    figure = tracking_figure(frames, truth, predictions, scores, "video", numbers, max_columns=3)
    labels = texts(figure)
    assert {"truth", "truth again\nJ&F 0.12", "lost\nno score"} <= set(labels)
    shown = [label for label in labels if label.startswith("frame")]
    assert shown == ["frame 0", "frame 20", "frame 40"]


def test_tracking_figure_prefers_annotated_frames_and_labels_the_others():
    frames, truth, predictions = tracked()
    annotated = np.zeros(len(frames), bool)
    annotated[[1, 4]] = True
    scores, numbers = dict.fromkeys(predictions, "-"), range(len(frames))
    figure = tracking_figure(frames, truth, predictions, scores, "v", numbers, annotated)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["frame 1", "frame 4"]
    annotated[4] = False  # one annotated frame shows no tracking, so all frames are shown
    figure = tracking_figure(frames, truth, predictions, scores, "v", numbers, annotated)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[:2] == ["frame 0\nunannotated", "frame 1"]


def test_gif_says_which_frames_are_unannotated():
    arrays = tracked()
    everywhere = tracking_frames(*arrays)
    annotated = np.arange(len(arrays[0])) != 2
    some = tracking_frames(*arrays, annotated)
    differs = [bool((a != b).any()) for a, b in zip(everywhere, some, strict=True)]
    assert differs == (~annotated).tolist()


def test_figures_are_written_as_png_and_pdf(tmp_path):
    figure = curves({"loss": {"loss": ([1, 2], [3.0, 2.0])}})
    assert save_figure(figure, tmp_path / "clips_v1.5") == tmp_path / "clips_v1.5.png"
    assert (tmp_path / "clips_v1.5.pdf").read_bytes().startswith(b"%PDF")
    assert save_figure(figure, tmp_path / "a.png") == tmp_path / "a.png"
    with pytest.raises(DataError):
        save_figure(figure, tmp_path / "missing" / "a")


def test_the_legend_hides_no_line():
    figure = curves({"loss": {name: ([1, 2], [3.0, 2.0]) for name in "abcdef"}})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = axes.get_legend().get_window_extent()
    assert legend.y1 <= axes.get_window_extent().y0


def test_gif_of_several_trackers(tmp_path):
    pictures = tracking_frames(*tracked())
    assert pictures.dtype == np.uint8 and pictures.shape == (5, 20 + 192, 3 * 192, 3)
    save_gif(tmp_path / "overlay.gif", pictures, fps=4)
    with Image.open(tmp_path / "overlay.gif") as gif:
        assert gif.n_frames == 5 and gif.info["duration"] == 250 and gif.info["loop"] == 0
        difference = np.abs(np.asarray(gif.convert("RGB")).astype(int) - pictures[0])
    assert difference.mean() < 4


@pytest.mark.parametrize(("frames", "fps"), [([], 5), ([GREY], 0), ([GREY], 60)])
def test_gif_rejects_missing_frames_and_invalid_rates(tmp_path, frames, fps):
    with pytest.raises(ValueError, match="GIF"):
        save_gif(tmp_path / "x.gif", frames, fps)


def test_curves():
    panels = {
        "loss": {"train": ([0, 1, 2], [3.0, 2.0, 1.0]), "val": ([2], [1.5])},
        "mean IoU": {"val": ([0, 1], [0.2, float("nan")])},
    }
    figure = curves(panels)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "mean IoU"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [3, 2, 1]
    with pytest.raises(ValueError, match="panel"):
        curves({})


def test_more_than_four_panels_are_drawn_in_rows():
    figure = curves({f"stage {i}": {"loss": ([1, 2], [3.0, 2.0])} for i in range(6)})
    cells = [axes.get_subplotspec() for axes in figure.axes]
    assert [cell.rowspan.start for cell in cells] == [0, 0, 0, 0, 1, 1]


def test_pyplot_is_never_imported():
    code = (
        "import sys, sam2kit.viz.plots, sam2kit.viz.overlays; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_table():
    rows = [{"video": "a|b", "IoU": 0.12345, "frames": 8}, {"video": "c", "IoU": 1.0, "frames": 9}]
    assert markdown_table(rows).splitlines() == [
        "| video | IoU | frames |",
        "| --- | --- | --- |",
        "| a&#124;b | 0.123 | 8 |",
        "| c | 1.000 | 9 |",
    ]
    with pytest.raises(ValueError, match="row"):
        markdown_table([])
