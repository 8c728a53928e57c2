"""The page about a run: from files that callbacks wrote, or broken ones."""

import html.parser
import json

import pytest

from keras_bond import __main__ as command
from keras_bond import reporting
from keras_bond.reporting import run_files

LOG = """epoch,reward,kl,bond/win_rate,val_reward
0,0.5,0.01,0.5,NA
1,.75,.2,.6,1
"""
RECORD = {
    "step": 0,
    "prompt": "<b>the quick</b>",
    "policy": "fox & hound",
    "reward": 0.25,
    "anchor": "dog",
    "its reward": 0.125,
    "quantile": float("nan"),
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "log.csv").write_text(LOG)
    later = {**RECORD, "step": 9, "policy": "better"}
    lines = [json.dumps(r) for r in (RECORD, {**RECORD, "step": 4}, later)]
    (tmp_path / "completions.jsonl").write_text("\n".join(lines))
    return tmp_path


class Tags(html.parser.HTMLParser):
    """Checks that what is opened is closed."""

    EMPTY = ("meta", "path", "use", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_the_page_holds_numbers_curves_and_completions(run):
    page = reporting.write_report(run).read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == [] and tags.seen.count("svg") == 1
    assert "&lt;b&gt;the quick&lt;/b&gt;" in page and "fox &amp; hound" in page
    assert "0.75" in page and "better" in page
    assert "Step 0" in page and "Step 9" in page and "Step 4" not in page
    assert "http://" not in page.split("</style>")[1].split("<svg")[0]


def test_numbers_are_read_as_they_were_written(run):
    numbers, best_of_n, completions = run_files.read_run(run)
    assert best_of_n is None
    assert numbers["reward"] == [0.5, 0.75]
    assert numbers["val_reward"][0] != numbers["val_reward"][0]
    assert [record["step"] for record in completions] == [0, 4, 9]


def test_either_file_is_enough(run):
    (run / "log.csv").unlink()
    assert "<svg" not in reporting.write_report(run).read_text()


def test_the_line_of_a_killed_run_is_left_out(run):
    with open(run / "completions.jsonl", "a") as file:
        file.write('\n{"step": 12, "prom')
    assert len(run_files.read_run(run).completions) == 3


def test_broken_files_are_named(run):
    (run / "completions.jsonl").write_text('not JSON\n{"step": 1}\n')
    with pytest.raises(ValueError, match="line 1: 'not JSON'"):
        reporting.write_report(run)
    (run / "completions.jsonl").unlink()
    (run / "best_of_n.json").write_text('{"frontier": []}')
    with pytest.raises(ValueError, match="BestOfNReport.*KeyError: 'points'"):
        reporting.write_report(run)
    (run / "best_of_n.json").unlink()
    (run / "log.csv").write_text("epoch,reward\n0,much\n")
    with pytest.raises(ValueError, match="must hold numbers by epoch.*much"):
        reporting.write_report(run)
    assert not (run / "report.html").exists()


def test_the_command(run, tmp_path_factory, capsys):
    assert command.main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert command.main(["report", str(tmp_path_factory.mktemp("no"))]) == 1
    assert "CSVLogger" in capsys.readouterr().err
