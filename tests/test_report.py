"""The report is one file that opens offline, says what happened, and cannot be broken by a name."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fullyconv import checkpoint, report
from fullyconv.config import Classes, DataConfig, FitConfig, Recipe
from fullyconv.datasets import dataset
from fullyconv.evaluation import evaluate
from fullyconv.metrics import ConfusionMatrix
from fullyconv.presets import fcn
from fullyconv.report import Picture
from fullyconv.training import train

NASTY = '<script>alert("x")</script> & $x^{$ \\frac'
VOID_TAGS = {"meta", "img", "path", "use", "rect", "br"}


class Balanced(HTMLParser):
    """Follows opening and closing tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "action", "data"}]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(html: str) -> Balanced:
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = DataConfig(root="count=8 size=48x64", name="scenes", workers=0)
    classes = len(dataset(data.name, data.root).classes["out"])
    stage = {
        "name": "4s",
        "model": fcn(4, "tinyvgg", classes=classes, weights=None, context=0),
        "data": data,
        "fit": FitConfig(steps=12, batch=4, evaluate_every=4, device="cpu", precision="32"),
    }
    folder = tmp_path_factory.mktemp("runs") / "a <b> & c"
    train(Recipe.parse({"name": "scenes", "stages": [stage]}), out=folder)
    return folder


def test_the_report_of_a_run_is_whole_and_loads_nothing(run: Path) -> None:
    html = (run / "report.html").read_text(encoding="utf-8")
    page = parsed(html)
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert "script" not in page.seen
    assert not re.search(r"url\((?!#)", html)
    assert page.seen.count("img") == 4 * min(8, len(dataset("scenes", "count=8 size=48x64", split="val")))
    text = " ".join(page.text)
    results = json.loads((run / "results.json").read_text())
    for found in (
        f"{results['pixel_accuracy']:.1%} of the pixels rightly",
        f"{results['mean_iu']:.3f}",
        "loss per pixel",
        "mean IU on val",
        "fit.lr",
        "torch",
        "command",
        "stages.0.data.crop",
        "fullyconv predict",
        "tinyvgg",
    ):
        assert found in text, found


def test_the_scores_of_the_pictures_add_up_to_those_of_the_set(run: Path) -> None:
    model, data = checkpoint.load(run), dataset("scenes", "count=8 size=48x64", split="val")
    each = report.score_each(model, data, device="cpu", precision="32")["out"]
    whole = evaluate(model, data, device="cpu", precision="32")["out"]
    assert np.array_equal(sum(m.counts for m in each), whole.counts)


def test_the_report_can_be_written_again_from_the_folder_alone(run: Path) -> None:
    before = (run / "report.html").read_text(encoding="utf-8")
    assert report.write_report(run).read_text(encoding="utf-8") == before


def test_the_pictures_are_those_that_the_last_stage_was_scored_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Recipe.read(run / "recipe.json").model_dump(mode="json")
    plain["stages"][0]["data"] |= {"val": "held-out", "inputs": ["color", "depth"]}
    (tmp_path / "recipe.json").write_text(json.dumps(plain))
    asked: list[tuple[object, object]] = []

    def opened(name: str, root: str, *, split: str, inputs: tuple[str, ...]) -> None:
        asked.append((split, inputs))
        raise FileNotFoundError

    monkeypatch.setattr(report, "dataset", opened)
    with pytest.raises(FileNotFoundError):
        report.write_report(tmp_path, model=checkpoint.load(run))
    assert asked == [("held-out", ("color", "depth"))]


def test_alarms_are_on_the_page_in_words(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    told = [line["message"] for line in lines if line["event"] == "alarm"]
    assert told  # the backbone is random
    text = " ".join(parsed((run / "report.html").read_text(encoding="utf-8")).text)
    assert all(message in text for message in told)


def test_no_name_can_break_the_page() -> None:
    classes = Classes.of("road", NASTY)
    matrix = ConfusionMatrix(classes.names, [[3, 1], [2, 4]])
    picture = Picture(np.zeros((4, 4, 3), np.uint8), NASTY)
    html = report.page(
        NASTY,
        [
            report.section(NASTY, NASTY, report.bars(classes, matrix), report.heat_map(matrix)),
            report.cards({NASTY: NASTY}),
            report.table([NASTY], [[NASTY], [3], [0.25]]),
            report.settings_table({NASTY: NASTY}),
            report.folded(NASTY),
            report.strip([picture], title=NASTY),
            report.curves({NASTY: ([1, 2], [0.5, 0.25])}, title=NASTY, across=NASTY),
        ],
    )
    page = parsed(html)
    assert "script" not in page.seen
    assert sum(NASTY in text for text in page.text) >= 10


def test_pictures_are_shrunk_by_means_and_can_be_read_back(tmp_path: Path) -> None:
    board = np.indices((90, 120)).sum(0) % 2 * 255
    pixels = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    small = report.shrink(pixels, 60)
    assert small.shape == (45, 60, 3)
    assert set(np.unique(small)) == {128}
    assert report.shrink(pixels, 120) is pixels
    data = base64.b64decode(report.data_url(small).removeprefix("data:image/jpeg;base64,"))
    (tmp_path / "a.jpg").write_bytes(data)
    from fullyconv.images import read_image

    assert np.abs(read_image(tmp_path / "a.jpg").pixels.astype(int) - 128).max() <= 2


def test_the_worst_pictures_are_shown_and_some_of_the_others() -> None:
    def scored(hits: int) -> ConfusionMatrix:
        return ConfusionMatrix(["a", "b"], [[hits, 100 - hits], [0, 0]])

    matrices = [scored(hits) for hits in (90, 10, 50, 30, 70, 20)] + [ConfusionMatrix(["a", "b"])]
    assert report._chosen(matrices, 4) == [1, 5, 2, 0]  # the two worst, a middle one, the best; not the void one
    assert report._chosen(matrices, 8) == [1, 5, 3, 2, 4, 0]
    assert report._chosen(matrices[:1], 8) == [0]


def test_the_summary_names_the_best_and_the_weakest_class() -> None:
    matrix = ConfusionMatrix(["sky", "pole", "cat"], [[90, 10, 0], [5, 5, 0], [0, 0, 0]])
    assert report._summary(matrix, 7) == (
        "On 7 pictures that it has not learnt from, the network names 86.4% of the pixels rightly; over 2 classes its "
        "areas and the true ones overlap by 55.4% (mean IU). It is best at sky (86%) and weakest at pole (25%)."
    )
    assert "there is no score" in report._summary(ConfusionMatrix(["a"]), 3)


def test_a_heat_map_tells_shares_of_the_true_class() -> None:
    html = report.heat_map(ConfusionMatrix(["sky", "road"], [[3, 1], [0, 0]]))
    titles = re.findall("<title>(.*?)</title>", html)
    assert titles == ["sky labelled sky: 75.0%", "sky labelled road: 25.0%", "road labelled road: 0.0%"]
    parsed(html)
    parsed(report.heat_map(ConfusionMatrix([f"class {i}" for i in range(150)])))


def test_curves_take_the_colours_of_the_page() -> None:
    line = {"loss": (range(100), np.linspace(3, 1, 100).tolist())}
    svg = report.curves(line, title="8s: loss", across="step")
    assert "currentColor" in svg
    assert "var(--mark)" in svg
    assert "#010203" not in svg
    assert ">8s: loss</text>" in svg
    assert svg == report.curves(
        {"loss": (range(100), np.linspace(3, 1, 100).tolist())}, title="8s: loss", across="step"
    )
    assert svg == report.curves(line, title="8s: loss", across="step")
