"""Names from data are shown as literal text in tables, figures, pages, widgets and terminals."""

import io
import re
from html.parser import HTMLParser

import mistune
import numpy as np
import pytest
from hostile import DIRECTION, IMAGE, LINK, LONG, NAMES, SCRIPT, SHOWN, TEX, write_videos
from loguru import logger
from matplotlib.text import Text

from sam2kit.cli.commands import log_to_console
from sam2kit.data.doctor.report import run_doctor
from sam2kit.evaluation.pictures import tracking_frames
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import (
    MAX_LABEL,
    MAX_LENGTH,
    MAX_WORD,
    cell_text,
    figure_text,
    html_text,
    label_text,
    log_format,
    markdown_text,
    visible_text,
)
from sam2kit.viz.overlays import contact_sheet
from sam2kit.viz.plots import curves, interval_chart
from sam2kit.viz.tables import Caption, Table, TrustedMarkdown
from sam2kit.viz.video_writer import gif_html
from sam2kit.widgets.base import error_text
from sam2kit.widgets.clip_browser import ClipBrowser

render = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "url", "math"])


class Tags(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def test_plain_names_do_not_change():
    for name in ("val_004", "a/b-c.d", "naïve 図 👩‍🔬", "می‌خواهم"):
        assert visible_text(name) == html_text(name) == markdown_text(name) == name
        assert label_text(name) == figure_text(name) == name


@pytest.mark.parametrize("character", "\x00\x1b\x7f\n\r\u200b\u200f\u202e\u2066\u2028\ufeff\ud800")
def test_invisible_characters_become_escape_sequences(character):
    code = character.encode("unicode_escape").decode()
    assert visible_text(f"a{character}b") == f"a{code}b"
    visible_text(f"a{character}b").encode()  # a lone surrogate cannot be encoded


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)"])
def test_cells_of_csv_files_are_no_formulas(text):
    assert cell_text(text) == f"'{text}"
    assert cell_text(-1.5) == -1.5 and cell_text("a=b") == "a=b"
    assert cell_text("\t=1") == r"\t=1" and cell_text("a\ud800").encode()


def test_multiline_keeps_line_breaks():
    assert visible_text("a\n\tb\u202e", multiline=True) == "a\n\tb\\u202e"


def test_long_texts_are_shortened_in_the_middle():
    assert len(visible_text(LONG)) == MAX_WORD and "…" in visible_text(LONG)
    text = "start " + "word " * 5000 + "end"
    shown = visible_text(text)
    assert len(shown) == MAX_LENGTH and shown.startswith("start") and shown.endswith("end")
    assert visible_text(text, None) == text
    assert len(label_text(text)) == MAX_LABEL


@pytest.mark.parametrize("name", NAMES)
def test_html_shows_the_text_and_has_no_tags(name):
    page = Tags(f'<p title="{html_text(name)}">{html_text(name)}</p>')
    assert page.tags == {"p"} and page.attributes == {"title"}
    assert page.text == visible_text(name)


@pytest.mark.parametrize("name", [*NAMES, "&lt;b&gt;", "__a__ _b", "https://x.org www.x.org a@b.c"])
def test_markdown_shows_the_text_and_has_no_tags(name):
    rendered = render(Table([{"a|b": name}]).markdown())
    page = Tags(rendered)
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "span"}
    assert not page.attributes and visible_text(name).strip() in page.text


def test_mathjax_finds_no_formulas():
    # MathJax searches the text of a rendered page, but not across elements.
    rendered = render(markdown_text(TEX))
    assert all(not re.search(r"\$.|\\[(\[b]", text) for text in re.split(r"<[^>]*>", rendered))
    for shown in (Table([{"name": TEX}]), Caption(TEX)):
        assert re.match(r'<\w+ class="mathjax_ignore ', shown._repr_html_())


def test_table_formats():
    table = Table([{"video": IMAGE, "J": 0.12345, "n": 8}, {"video": "b", "J": None, "n": 9}])
    page = Tags(table._repr_html_())
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert page.text == f"videoJn{IMAGE}0.1238b–9"
    assert str(table).splitlines()[2] == f"| {IMAGE} | 0.123 | 8 |" and repr(table) == str(table)
    assert Table([{"": TrustedMarkdown("`x`")}]).markdown().endswith("| `x` |")
    with pytest.raises(ValueError, match="row"):
        Table([])


@pytest.mark.parametrize("name", [*NAMES, r"a\$b", "$$", "_hidden"])
def test_figures_draw_names_literally(name):
    panels = {name: {name: ([0, 1], [0.0, 1.0]), "b": ([0, 1], [1.0, 0.0])}}
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    image = np.zeros((8, 8, 3), np.uint8)
    masks = np.zeros((1, 1, 8, 8), bool)
    figures = (
        curves(panels, name),
        interval_chart({"": {name: interval}}, name),
        contact_sheet([[image]], [name], [], name, [name]),
        contact_sheet([[image]], [], [name]),
    )
    for figure in figures:
        figure.savefig(io.BytesIO(), format="png")
        assert max(figure.get_size_inches()) < 20
        texts = [text for text in figure.findobj(Text) if figure_text(name) in text.get_text()]
        assert texts and not any(text._preprocess_math(text.get_text())[1] for text in texts)
    assert tracking_frames(image[None], masks, {name: masks}).shape[0] == 1
    labels = figures[0].axes[0].get_legend().get_texts()
    literal = labels[0]._preprocess_math(labels[0].get_text())[0].strip()
    assert literal == "\n".join(label_text(line) for line in name.split("\n"))


def test_doctor_report_in_a_terminal_and_as_a_page(tmp_path):
    examination = run_doctor(write_videos(tmp_path))
    text, page = examination.text(), Tags(examination.page())
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e\u2066]", text) and "n" * 250 not in text
    for name in SHOWN:
        assert name in text and name in page.text
    assert page.tags.isdisjoint({"script", "a"}) and "x" not in page.attributes
    assert "default-src 'none'" in examination.page().replace("&#39;", "'")
    assert label_text(DIRECTION)[:10] in page.text and "\u202e" not in page.text


def test_widgets_show_escaped_names(tmp_path):
    browser = ClipBrowser(write_videos(tmp_path))
    assert set(browser.videos) == set(map(label_text, NAMES))
    assert browser.layer_labels == browser.layers == ["truth"]
    assert set(browser.objects) <= {label_text(IMAGE), label_text(TEX)}
    browser.show_video(LONG)
    assert len(browser.snapshot()) > 1000
    assert "\u202e" not in error_text(DataError(DIRECTION))
    assert error_text(ValueError()) == "ValueError"


def test_an_image_with_a_hostile_file_name(tmp_path):
    path = tmp_path / IMAGE.replace("/", "")
    path.write_bytes(b"GIF")
    assert Tags(gif_html(path)).attributes == {"alt", "src"}


def test_log_messages_are_neither_formatted_nor_colored(capsys):
    try:
        log_to_console("INFO")
        logger.info("{}", "<red>{x}{0}</red>")
        logger.info("<red>{x}{0}</red>")
    finally:
        logger.remove()
    assert capsys.readouterr().err.count("<red>{x}{0}</red>") == 2


def test_scripts_and_links_are_escaped():
    assert "<" not in html_text(SCRIPT) and "](" not in markdown_text(LINK)


def test_a_record_of_the_log_cannot_imitate_another(tmp_path):
    file = tmp_path / "a.log"
    sink = logger.add(file, format=log_format("{level} {extra[text]}"))
    try:
        logger.info("folder {}", "a\nERROR all data lost\x1b[2J{0}")
    finally:
        logger.remove(sink)
    assert file.read_text() == "INFO folder a\n  ERROR all data lost\\x1b[2J{0}\n"
