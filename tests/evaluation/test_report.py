"""Test the report page, its images and its charts."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from data_helpers import save_video, square
from matplotlib.figure import Figure

from sam2kit.config.schema import Config
from sam2kit.data.sources.base import FrameRange, SelectedVideos
from sam2kit.data.sources.training_set import TrainingSet
from sam2kit.data.sources.video_decoder import open_video
from sam2kit.data.synthetic.dataset import SyntheticDataset
from sam2kit.data.training_set import AcceptedFrame, add_to_training_set
from sam2kit.evaluation.pictures import compare_errors, show_objects
from sam2kit.evaluation.plots import difference_chart, over_time, paired_chart
from sam2kit.evaluation.report import (
    Evaluation,
    ranked_objects,
    score_rows,
    spread_videos,
    write_report,
)
from sam2kit.evaluation.scores import BEFORE, CONVENTIONS, COPY, DataSetScores, VideoScorer
from sam2kit.evaluation.statistics import NO_INTERVAL, paired_differences
from sam2kit.viz.overlays import ERROR_COLORS, error_overlay
from sam2kit.viz.plots import interval_chart

SHIFTS = {"tuned <b>": 1, "start": 4}
VIDEOS, FRAMES = 3, 6


@pytest.fixture(scope="module")
def source():
    return SyntheticDataset(VIDEOS, FRAMES, 64, 2, 0, 0.0)


@pytest.fixture(scope="module")
def read_masks(source):
    """Two trackers that lag behind more and more; the second also loses an object."""

    def read(tracker, video, t):
        i = source.names.index(video)
        masks = source.read_masks(i, t) or {}
        moved = {o: np.roll(m, SHIFTS[tracker] * t // 2, 1) for o, m in masks.items()}
        return {o: m for o, m in moved.items() if not (tracker == "start" and i == 0 and o == 2)}

    return read


@pytest.fixture(scope="module")
def trackers(source, read_masks):
    results = []
    for name in SHIFTS:
        results.append(DataSetScores(name))
        for i, video in enumerate(source.names):
            masks = [source.read_masks(i, t) for t in range(FRAMES)]
            ids = sorted({o for m in masks for o in m})
            scorer = VideoScorer(video, CONVENTIONS["prompted"], ids)
            for t in range(FRAMES):
                scorer.add(t, masks[t], read_masks(name, video, t), prompted=ids if t == 0 else ())
            results[-1].videos.append(scorer.result())
    return results


def test_the_page_needs_no_other_file(tmp_path, trackers, source, read_masks):
    robustness = {"start": {0.0: 0.5, 0.2: None}}
    files = SimpleNamespace(masks=read_masks)
    evaluation = Evaluation(Config(seed=5), source, trackers, tmp_path, files, robustness)
    path = write_report(evaluation)
    page = path.read_text()
    assert path == tmp_path / "report.html" and len(list(tmp_path.iterdir())) == 1
    links = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert links and all(link.startswith("data:image/") for link in links)
    assert "<script" not in page and "tuned <b>" not in page and "tuned &lt;b&gt;" in page
    for row in score_rows(evaluation):
        assert f"{row['J&F']:.3f}" in page and row["low"] is None
    assert NO_INTERVAL in page and "videos are needed" in page
    for text in ("prompted", "seed: 5", "torch", "Worst objects", "Noisy prompts", *ERROR_COLORS):
        assert text in page
    assert all(f"<h3>{name}</h3>" in page for name in source.names)


def test_page_without_masks_or_other_trackers(tmp_path, trackers, source):
    page = write_report(Evaluation(Config(), source, trackers[:1], tmp_path)).read_text()
    assert "Worst objects" not in page and "compared with the other trackers" not in page
    assert "data:image/svg+xml" in page and "data:image/jpeg" not in page


def named(trackers, *names):
    return [DataSetScores(name, t.videos) for name, t in zip(names, trackers, strict=True)]


def test_the_model_is_compared_with_the_baselines_in_words(tmp_path, trackers, source):
    good, bad = trackers
    evaluation = Evaluation(Config(), source, named([bad, good], "tuned", COPY), tmp_path)
    (sentence,) = evaluation.verdicts
    assert sentence.startswith("tuned scores lower than copying the first mask (J&F -0.")
    assert sentence.replace("&", "&amp;") in write_report(evaluation).read_text()
    evaluation = Evaluation(Config(), source, named([good, bad], "tuned", BEFORE), tmp_path)
    assert evaluation.verdicts[0].startswith("tuned scores higher than the model before training")
    assert Evaluation(Config(), source, trackers, tmp_path).verdicts == []
    one = [DataSetScores(t.tracker, t.videos[:1]) for t in named(trackers, "tuned", COPY)]
    assert "chance" in Evaluation(Config(), source, one, tmp_path).verdicts[0]


def test_each_column_of_the_scores_is_explained(tmp_path, trackers, source):
    page = write_report(Evaluation(Config(), source, trackers, tmp_path)).read_text()
    head = re.search(r"<thead>(.*?)</thead>", page)[1]
    legend = re.search(r"<dl>(.*?)</dl>", page, re.DOTALL)[1]
    for column in re.findall(r"<th>(.*?)</th>", head)[1:]:
        if "interval" not in column:  # explained below the table
            assert column.partition("<br>")[0].rstrip(":") in legend


def test_frames_of_a_part_have_their_numbers_in_the_film(tmp_path):
    film = SyntheticDataset(1, 12, 64, 2, 0, 0.0)
    part = FrameRange(SelectedVideos(film, [0]), 6, 12)
    scorer = VideoScorer(film.names[0], CONVENTIONS["prompted"], [1, 2])
    for t in range(6):
        masks = part.read_masks(0, t)
        scorer.add(t, masks, masks, prompted=[1, 2] if t == 0 else ())
    scores = DataSetScores("perfect", [scorer.result()])
    files = SimpleNamespace(masks=lambda tracker, video, t: part.read_masks(0, t))
    evaluation = Evaluation(Config(), part, [scores], tmp_path, files)
    assert evaluation.first_frame(film.names[0]) == 6
    (axes,) = over_time([scores], film.names[0], 6).axes
    assert axes.lines[0].get_xdata().tolist() == list(range(6, 12))
    example, *_ = show_objects(scores, [(scores.videos[0], 0)], part, files.masks)
    assert 7 <= int(re.search(r"frame, (\d+)", example.caption)[1]) < 12
    page = write_report(evaluation).read_text()
    assert "part of a longer recording" in page
    whole = Evaluation(Config(), FrameRange(film, 0, 6), [scores], tmp_path)
    assert "part of a longer recording" not in write_report(whole).read_text()


def test_masks_of_the_annotating_model_are_no_independent_truth(tmp_path):
    """The training set knows which masks no person has drawn."""
    save_video(tmp_path / "film.mp4", [0, 10, 20, 30, 40, 50])
    video = open_video(tmp_path / "film.mp4")
    mask = square(0, 0)
    made = {0: "click", 1: "painted"}
    frames = [
        AcceptedFrame(t, {1: mask}, {1: made.get(t, "propagated")}, "outputs/<nano>")
        for t in range(6)
    ]
    add_to_training_set(tmp_path / "set", video, 0, frames)
    source = FrameRange(TrainingSet(tmp_path / "set"), 1, 6)
    scorer = VideoScorer("film", CONVENTIONS["prompted"], [1])
    for t in range(5):
        scorer.add(t, {1: mask}, {1: mask}, prompted=[1] if t == 0 else ())
    evaluation = Evaluation(Config(), source, [DataSetScores("a", [scorer.result()])], tmp_path)
    note = evaluation.truth_note
    assert note is not None and "4 of 4 scored masks" in note and "<nano>" in note
    page = write_report(evaluation).read_text()
    assert "Not an independent measure" in page and "&lt;nano&gt;" in page
    corrected = [AcceptedFrame(t, {1: mask}, {1: "painted"}) for t in range(6)]
    add_to_training_set(tmp_path / "set", video, 0, corrected)
    evaluation = Evaluation(Config(), source, evaluation.trackers, tmp_path)
    assert evaluation.truth_note is None


def test_a_score_of_mostly_absent_objects_is_explained(tmp_path):
    """A tracker that loses each object at once gets J&F 0.8 where the objects leave at once."""
    source = SyntheticDataset(1, 6, 64, 1, 0, 0.0)

    def evaluation(present: int) -> Evaluation:
        scorer = VideoScorer(source.names[0], CONVENTIONS["prompted"], [1])
        for t in range(6):
            mask = square(8, 8)
            masks = ({1: mask & (t <= present)}, {1: mask & (t == 0)})
            scorer.add(t, *masks, prompted=[1] if t == 0 else ())
        scores = DataSetScores("<lost>", [scorer.result()])
        return Evaluation(Config(), source, [scores], tmp_path)

    assert evaluation(3).absence_note is None
    lost = evaluation(1)
    assert lost.scores["<lost>"] == 0.8
    assert "4 of 5 scored masks" in lost.absence_note and "leaves 1 empty" in lost.absence_note
    assert "<strong>Mostly absent objects.</strong>" in write_report(lost).read_text()


def test_intervals_and_moving_objects_of_enough_videos(tmp_path):
    """Seven videos, of which the copied mask loses four."""
    source = SyntheticDataset(7, FRAMES, 64, 1, 0, 0.0)
    names = source.names
    square = np.zeros((64, 64), bool)
    square[10:40, 10:40] = True
    results = []
    shifts = {"tuned": lambda n: n, COPY: lambda n: 20 * (n < 4) + n, "worst": lambda n: 20 + n}
    for tracker, shift in shifts.items():
        results.append(DataSetScores(tracker))
        for n, name in enumerate(names):
            scorer = VideoScorer(name, CONVENTIONS["all_frames"], [1])
            scorer.add(0, {1: square}, {1: np.roll(square, shift(n), 1)})
            results[-1].videos.append(scorer.result())
    evaluation = Evaluation(Config(), source, results[:2], tmp_path)
    page = write_report(evaluation).read_text()
    row = score_rows(evaluation)[0]
    assert 0 < row["low"] < row["J&F"] < row["high"] < 1
    assert f"{row['low']:.3f} to {row['high']:.3f}" in page and NO_INTERVAL not in page
    moving, slow = evaluation.metrics["motion"]
    assert (moving["objects"], slow["objects"]) == (4, 3)
    assert moving["scores"][COPY] < slow["scores"][COPY] == slow["scores"]["tuned"]
    assert moving["differences"][COPY]["mean"] > 0 == slow["differences"][COPY]["mean"]
    assert "Moving and slow objects" in page
    assert evaluation.metrics["differences"][COPY]["p"] == 2 / 2**4
    # Equal trackers: the interval contains 0, and the sentence says what this means.
    equal = [results[0], DataSetScores(COPY, results[0].videos)]
    (sentence,) = Evaluation(Config(), source, equal, tmp_path).verdicts
    assert "+0.000 to +0.000" in sentence and sentence.endswith("may be due to chance")
    worse = [results[0], DataSetScores(COPY, results[2].videos)]
    (sentence,) = Evaluation(Config(), source, worse, tmp_path).verdicts
    assert sentence.startswith("tuned is better than") and "chance" not in sentence


def test_each_kind_of_error_has_its_colour():
    truth, prediction = np.zeros((2, 4, 4), dtype=bool)
    truth[0, :2] = prediction[0, 1:3] = True
    frame = np.full((4, 4, 3), (200, 0, 100), dtype=np.uint8)
    picture = error_overlay(frame, prediction, truth)
    expected = ["missed", "hit", "false alarm"]
    for x, kind in enumerate(expected):
        assert picture[0, x].tolist() == [round(0.25 * 70 + 0.75 * c) for c in ERROR_COLORS[kind]]
    assert picture[3, 3].tolist() == [70, 70, 70]


def test_the_worst_and_the_best_objects_are_ranked(trackers):
    worst, best = ranked_objects(trackers[1], max_objects=2)
    means = [list(v.objects().values())[o]["J&F"] for v, o in [*worst, *reversed(best)]]
    assert len(means) == 4 and means == sorted(means)
    everything = [s["J&F"] for v in trackers[1].videos for s in v.objects().values()]
    assert means[0] == min(everything) and means[-1] == max(everything)
    videos = [np.mean([s["J&F"] for s in v.objects().values()]) for v in spread_videos(trackers[1])]
    assert videos == sorted(videos)
    assert len(spread_videos(trackers[1], max_videos=2)) == 2


def test_examples_show_the_frames_in_their_captions(trackers, source, read_masks):
    (worst, *_), _ = ranked_objects(trackers[1])
    median, lowest = show_objects(trackers[1], [worst], source, read_masks)
    video, o = worst
    t = int(re.search(r"worst frame, (\d+)", lowest.caption)[1])
    assert video.J[t, o] == video.J[1:, o].min()
    assert list(median.images) == ["frame", "truth", "prediction", "error"]
    i = source.names.index(video.name)
    assert (lowest.images["frame"] == source.read_frame(i, t)).all()
    mask = source.read_masks(i, t)[video.object_ids[o]]
    dark = lowest.images["truth"][~mask]
    assert (dark == source.read_frame(i, t)[~mask] // 3).all() and mask.any()
    assert median.title == f"{video.name}, object {video.object_ids[o]}"


def test_differences_are_shown_on_the_frame_where_they_are_largest(trackers, source, read_masks):
    row = paired_differences(*trackers)["differences"][0]
    (first,) = compare_errors(*trackers, [row], source, read_masks)
    assert first.title == f"{row['video']}, object {row['object']}"
    assert list(first.images) == ["frame", "truth", "start", "tuned <b>"]
    t = int(re.search(r"frame (\d+)", first.caption)[1])
    pair = [next(v for v in s.videos if v.name == row["video"]) for s in trackers]
    gain = [v.J[1:, v.object_ids.index(row["object"])] for v in pair]
    assert (gain[0] - gain[1]).argmax() + 1 == t


def test_j_over_time_leaves_gaps_and_marks_prompts(trackers):
    figure = over_time(trackers, trackers[0].videos[0].name)
    (axes,) = figure.axes
    first, second, prompts = axes.lines
    assert prompts.get_xdata().tolist() == [0]
    assert np.isnan(first.get_ydata()[0])  # the prompted frame is not scored
    video = trackers[1].videos[0]
    assert np.allclose(second.get_ydata()[1:], video.J[1:].mean(1))


def test_charts_of_differences_and_intervals(trackers):
    result = paired_differences(*trackers)
    (axes,) = difference_chart(result).axes
    bars = [bar.get_height() for bar in axes.patches[: result["objects"]]]
    assert bars == [row["difference"] for row in result["differences"]]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == [f"{row['video']}: {row['object']}" for row in result["differences"]]
    empty = {"differences": [], "mean": None, "low": None, "high": None, "score": "J"}
    assert isinstance(difference_chart(empty), Figure)
    values = {"a": {"mean": 0.5, "low": 0.4, "high": 0.6}, "b": {"mean": 0.3}, "c": {"mean": None}}
    assert len(interval_chart({"run": values}, "J").axes[0].lines) == 3
    with pytest.raises(ValueError, match="group"):
        interval_chart({}, "J")


def test_pairs_are_drawn_with_the_largest_gain_first():
    pairs = {"a": (0.5, [0.4, 0.5]), "b": (0.2, [0.6]), "c": (0.3, [0.35])}
    (axes,) = paired_chart(pairs, ("before", "after")).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]
    lines = [line.get_xdata().tolist() for line in axes.lines]
    assert lines == [[0.2, 0.6], [0.3, 0.35], [0.5, 0.45]]
    with pytest.raises(ValueError, match="at least one"):
        paired_chart({}, ("before", "after"))
