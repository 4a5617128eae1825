import copy
import json
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from conftest import load_experiment
from jinja2 import UndefinedError

from crest_jax import report
from crest_jax.config import to_plain
from crest_jax.errors import WorkdirError
from crest_jax.layout import FORMAT
from crest_jax.report import __main__ as command
from crest_jax.report import html
from crest_jax.report.pictures import (
    AroundCut,
    Moved,
    MovedPicture,
    Picture,
    Pictures,
    Prediction,
    PseudoLabeled,
)

NAMES = ["cat <tabby>", "dog", "emu"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


def generation(number, recall):
    return {
        "accuracy": sum(recall) / 3,
        "accuracy_logit_adjusted": 1 + sum(recall) / 3,
        "steps": 600,
        "seconds": 83.7,
        "images_per_second": 1917.6,
        "temperature": 1 - number / 2,
        "labeled_per_class": [90 + number, 9 + number, 1 + 10 * number],
        "logit_adjustment": {"tau": 1.5, "class_distribution": [0.9, 0.09, 0.01]},
        "per_class_recall": recall,
        "per_class_precision": [71.3, 66.7, None],
        "confusion_matrix": [[8, 2, 0], [1, 9, 0], [5, 0, 5]],
        "environment": {"jax": "0.10.2"},
        "pseudo_labels": {
            "examples": [180, 40, 0],
            "predicted": [200, 30, 4],
            "selected": [50, 20, 4] if number == 0 else [0, 0, 0],
            "precision": [81.5, 50.0, None],
            "recall": [90.0, 50.0, None],
            "selected_precision": [98.0, 50.0, 75.0],
        },
    }


@pytest.fixture
def run():
    results = {
        "method": "fixmatch",
        "rebalance": "crest_plus",
        "data": "pets",
        "fold": 3,
        "class_names": NAMES,
        "long_tail": {"gamma": 90.0, "beta": 0.1},
        "format": FORMAT,
        "class_distribution": "ideal",
        "labeled_in_unlabeled": True,
        "alignment": {"target": "progressive", "t": 1.0},
        "unlabeled_distribution": {"source": "labeled", "given": []},
        "accuracy": 79.37,
        "accuracy_logit_adjusted": 80.37,
        "generations": [generation(0, [98.7, 85.0, 8.9]), generation(1, [93.8, 84.0, 60.3])],
    }
    return html.ReportedRun("pets-run", results, CONFIG)


CONFIG = to_plain(load_experiment("digits_lt")) | {"generations": 2}
ESTIMATE = {
    "estimate": [0.5, 0.3, 0.2], "low": [0.4, 0.2, 0.1], "high": [0.6, 0.4, 0.3], "level": 0.9,
    "labeled": [0.9, 0.08, 0.02], "known_from": "labeled", "p_value": 0.002, "differs": [0, 1, 2],
}  # fmt: skip


class Text(HTMLParser):
    """The words and elements of a page, the cells of its tables, and whether all is closed."""

    EMPTY = ("meta", "img", "br")

    def __init__(self, page):
        super().__init__()
        self.open, self.rows, self.words, self.addresses, self.elements = [], [], [], [], []
        self.feed(page)

    @property
    def shown(self):
        """Return all words, with a single space between them."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, *(name for name, _ in attributes)))
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        """Handle an element that is closed in itself, such as the shape of a chart."""
        self.elements.append((tag, *(name for name, _ in attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_a_page_is_whole_and_needs_nothing_from_elsewhere(run):
    page = html.page([run])
    text = Text(page)
    assert not text.open
    assert not text.addresses
    assert "http" not in page
    assert "<script" not in page
    assert "@import" not in page


def test_each_class_has_its_figures_before_and_after(run):
    rows = Text(html.page([run])).rows
    assert [
        "cat <tabby>",
        "90 → 91",
        "98.7 → 93.8",
        "71.3 → 71.3",
        "200",
        "81.5",
        "50",
        "98.0",
    ] in rows
    assert ["emu", "1 → 11", "8.9 → 60.3", "- → -", "4", "-", "4", "75.0"] in rows


def test_each_generation_has_its_figures(run):
    rows = Text(html.page([run])).rows
    # 49 + 10 + 3 right ones of 74 selected.
    assert ["1", "1.00", "64.2", "65.2", "100", "74", "83.8", "84", "1,918"] in rows
    assert ["2", "0.50", "79.4", "80.4", "112", "0", "-", "84", "1,918"] in rows


def test_where_the_truth_is_not_known_nothing_is_said_of_it(run):
    honest = copy.deepcopy(run.results)
    for each in honest["generations"]:
        for name in ("examples", "precision", "recall", "selected_precision"):
            each["pseudo_labels"][name] = [None] * 3
    honest["splits"] = {
        "labeled": {"images": 100, "per_class": [90, 9, 1]},
        "unlabeled": {"images": 2345, "per_class": None},
        "test": {"images": 30, "per_class": [12, 11, 7], "held_out": True},
    }
    text = Text(html.page([run._replace(results=honest)]))
    assert ["emu", "1 → 11", "7", "8.9 → 60.3", "- → -", "4", "4"] in text.rows
    assert ["1", "1.00", "64.2", "65.2", "100", "74", "84", "1,918"] in text.rows
    words = text.shown
    assert "Images: 100 labeled, 2,345 unlabeled, 30 test. The test images were held out" in words
    assert "classes of the unlabeled images are not known" in words
    for claim in ("right (%)", "selected and right", "Recall of the pseudo-labels"):
        assert claim not in words
        assert claim in Text(html.page([run])).shown


def test_the_headline_and_the_config_are_there(run):
    words = Text(html.page([run])).shown
    for part in ("pets-run", "79.4 %", "80.4 %", "2 of 2 generations", "1,918 images/s",
                 "fixmatch, rebalance=crest_plus; pets, gamma = 90, beta = 0.1, fold 3; ",
                 "wide_resnet of depth 10, width 1; batches of 16 labeled and 112 unlabeled",
                 '"jax": "0.10.2"'):  # fmt: skip
        assert part in words


def test_the_confusion_matrix_is_in_shares_of_its_rows(run):
    rows = Text(html.page([run])).rows
    assert ["emu", "50", "0", "50"] in rows


def of_many_classes(run, classes):
    many = copy.deepcopy(run.results)
    many["class_names"] = [f"class {number}" for number in range(classes)]
    for each in many["generations"]:
        for name in ("labeled_per_class", "per_class_recall", "per_class_precision"):
            each[name] = [1 if name == "labeled_per_class" else 1.0] * classes
        each["pseudo_labels"] = {
            name: [1 if name in ("predicted", "selected") else 1.0] * classes
            for name in each["pseudo_labels"]
        }
        each["confusion_matrix"] = [[1] * classes] * classes
    return run._replace(results=many)


def test_many_classes_have_a_picture_of_it(run):
    text = Text(html.page([of_many_classes(run, 30)]))
    (picture,) = text.addresses
    assert picture.startswith("data:image/png;base64,")


def test_the_unlabeled_set_is_shown_with_the_truth_where_that_is_known(run):
    assert "The unlabeled set" not in html.page([run])  # of an earlier version, or with none
    shown = copy.deepcopy(run.results)
    shown["generations"][-1]["unlabeled_distribution"] = ESTIMATE | {"differs": [0]}
    shown["generations"][-1]["pseudo_labels"]["examples"] = [100, 60, 40]
    text = Text(html.page([run._replace(results=shown)]))
    assert ["cat <tabby>", "90.0", "50.0", "40.0 to 60.0", "50.0"] in text.rows
    assert not text.open
    words = text.shown
    assert "does not look like the labeled one: cat <tabby>: 40.0 to 60.0 %" in words
    assert "which it was fitted to" in words
    shown["generations"][-1]["pseudo_labels"]["examples"] = [0, 0, 0]
    text = Text(html.page([run._replace(results=shown)]))
    assert ["cat <tabby>", "90.0", "50.0", "40.0 to 60.0"] in text.rows


def test_a_run_of_one_generation_has_no_before(run):
    single = copy.deepcopy(run.results)
    single["generations"] = single["generations"][:1]
    page = html.page([run._replace(results=single, config=CONFIG | {"generations": 1})])
    assert "→" not in page
    assert ["dog", "9", "85.0", "66.7", "30", "50.0"] in Text(page).rows


def test_several_runs_are_compared(run):
    other = copy.deepcopy(run.results)
    other["rebalance"] = "none"
    page = html.page([run, html.ReportedRun("baseline", other, CONFIG)])
    text = Text(page)
    data = "pets, gamma = 90, beta = 0.1, fold 3"
    assert ["pets-run", "79.4", "80.4", "2", "fixmatch, rebalance=crest_plus", data] in text.rows
    assert ["baseline", "79.4", "80.4", "2", "fixmatch, rebalance=none", data] in text.rows
    assert text.words.count("baseline") >= 3


def test_the_pseudo_labels_of_a_class_are_counted(run):
    page = html.page([run])
    for name, label, count in (
        ("predicted", "dog", 30), ("selected", "dog", 20), ("selected and right", "dog", 10),
        ("selected and right", "emu", 3),
    ):  # fmt: skip
        assert f"<title>{name}, {label}: {count}</title>" in page


@pytest.fixture
def workdir(run, tmp_path):
    folder = tmp_path / "pets-run"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(run.results))
    owner = {"format": FORMAT, "config": run.config, "environment": {}}
    (folder / "config.json").write_text(json.dumps(owner))
    return folder


def test_the_command_writes_the_page_of_a_workdir(run, workdir, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report", f"--workdir={workdir}"])
    command.main()
    assert capsys.readouterr().out == f"{workdir}/report.html\n"
    assert (workdir / "report.html").read_text() == html.page([run])


def test_runs_of_one_name_are_told_apart_by_their_folders(workdir, tmp_path):
    other = tmp_path / "older" / "pets-run"
    shutil.copytree(workdir, other)
    report.write(tmp_path / "both.html", [workdir, other])
    page = (tmp_path / "both.html").read_text()
    assert "<h1>pets-run</h1>" in page
    assert "<h1>older/pets-run</h1>" in page


@pytest.mark.parametrize("content", ["[]", '{"generations": []}', "{}"])
def test_damaged_results_are_named(workdir, content):
    (workdir / "results.json").write_text(content)
    with pytest.raises(WorkdirError, match=r"results\.json is damaged, or was written by another"):
        report.write(workdir / "report.html", [workdir])


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(WorkdirError, match="run it to the end of a generation first"):
        report.write(tmp_path / "report.html", [tmp_path])


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_without_a_sideways_scroll(run, tmp_path, width, dark):
    """A browser shows the page in a frame, which may be narrower than a window, and measures it."""
    (tmp_path / "page.html").write_text(html.page([run]))
    probe = """
      const page = document.querySelector("iframe").contentDocument;
      const paper = getComputedStyle(page.body).backgroundColor;
      document.title = [page.documentElement.scrollWidth, paper,
                        page.querySelectorAll("figure > svg").length].join("; ");
    """
    frame = f'<iframe src="page.html" style="border:0; width:{width}px; height:900px"></iframe>'
    (tmp_path / "frame.html").write_text(
        f"<!doctype html>{frame}<script>window.onload = () => {{{probe}}}</script>"
    )
    shown = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
         "--hide-scrollbars", "--allow-file-access-from-files", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}",
         f"--blink-settings=preferredColorScheme={0 if dark else 1}",
         (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    paper = "rgb(22, 24, 27)" if dark else "rgb(255, 255, 255)"
    assert f"<title>{width}; {paper}; 6</title>" in shown


HOSTILE = [
    "<script>alert(1)</script>",
    "\"'></style><img src=x onerror=alert(1)>",
    "</title></svg></pre><b>&amp;",
]
PNG = b"\x89PNG" + bytes(range(256))


def pictures(classes, *, each, moved, thumbnail=PNG):
    """As many pictures on each side of the cut, and of each direction; all predictions differ."""
    of_class = [
        [Picture(thumbnail, (label + 1) % classes, Prediction(label, 0.5))] * each
        for label in range(classes)
    ]
    some = [
        MovedPicture(thumbnail, 0, Prediction(0, 0.5), earlier=Prediction(classes - 1, 0.4))
    ] * moved
    return Pictures(
        PseudoLabeled(0, [AroundCut(chosen, chosen) for chosen in of_class]),
        Moved(tested=10_000, became_right=moved, became_wrong=moved, right=some, wrong=some),
    )


def page_with_names(run, names):
    """A page of two runs on which names from outside stand wherever they can."""
    first, second, third = names
    results = copy.deepcopy(run.results)
    results |= {"class_names": [*names], "data": first, "method": second, "rebalance": third}
    results["long_tail"] = {first: 1.0, "order": third}
    results["generations"][-1] |= {
        "unlabeled_distribution": ESTIMATE,
        "environment": {first: third},
    }
    config = {**run.config, "model": {**run.config["model"], "name": second}}
    shown = html.ReportedRun(first, results, config, pictures(3, each=1, moved=1))
    return html.page([shown, shown._replace(name=third)])


def test_hostile_names_are_text_wherever_they_stand(run):
    """Class names, the data set's, the folder's, and text in the config and the environment."""
    page = page_with_names(run, HOSTILE)
    text, harmless = Text(page), Text(page_with_names(run, ["x" * len(name) for name in HOSTILE]))
    assert not text.open, "what was opened is closed"
    assert text.elements == harmless.elements, "no element or attribute was added"
    assert text.addresses == harmless.addresses
    assert all(address.startswith("data:image/png;base64,") for address in text.addresses)
    for element in ("<script", "<img src=x", "onerror=alert(1)>", "<b>"):
        assert element not in page
    assert page.count("</style>") == 1
    for name in HOSTILE:
        assert name in text.shown


def test_a_page_with_as_many_pictures_as_it_may_have_takes_less_than_3_mb(run):
    classes = 37
    shown = pictures(classes, each=8, moved=40, thumbnail=bytes(2000))
    page = html.page([of_many_classes(run, classes)._replace(pictures=shown)])
    assert len(Text(page).addresses) == 1 + 2 * 8 * classes + 2 * 40
    assert len(page.encode()) < 3e6


def test_a_template_that_asks_for_a_missing_value_fails(run):
    template = html.TEMPLATES.from_string("{{ run.nmae }}")
    with pytest.raises(UndefinedError, match="nmae"):
        template.render(run=run)


@pytest.mark.parametrize(
    "change",
    [
        {"fold": "0"},
        {"class_names": ["cat", "dog"]},
        {"class_names": ["cat", "dog", "\ud800"]},
        {"long_tail": {"gamma": []}},
        {"accuracy": 10**400},
        {"generations": [{}]},
        {"data": "\x1b[2J"},
    ],
)
def test_results_of_wrong_types_are_named(workdir, run, change):
    (workdir / "results.json").write_text(json.dumps({**run.results, **change}))
    with pytest.raises(WorkdirError, match=r"results\.json is damaged, or was written by another"):
        report.write(workdir / "report.html", [workdir])
