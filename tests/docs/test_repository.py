"""Files of the repository that services read: workflow, templates, citation."""

import tomllib

import pytest
import yaml

from tests.docs.extras import ROOT

pytestmark = pytest.mark.one_backend

GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path):
    return yaml.safe_load(path.read_text("utf-8"))


def test_the_workflow_covers_backends_and_versions():
    matrix = read(GITHUB / "workflows/ci.yml")["jobs"]["tests"]["strategy"][
        "matrix"
    ]
    assert set(matrix["backend"]) == {"jax", "tensorflow", "torch"}
    assert PROJECT["requires-python"] == ">=" + matrix["python-version"][0]


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_templates_are_forms(name):
    form = read(GITHUB / f"ISSUE_TEMPLATE/{name}.yml")
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert all(field["attributes"]["label"] for field in fields)
    assert len({field["id"] for field in fields}) == len(fields)


def test_a_bug_report_has_the_output_of_the_doctor():
    (doctor,) = [
        field
        for field in read(GITHUB / "ISSUE_TEMPLATE/bug.yml")["body"]
        if field.get("id") == "doctor"
    ]
    assert "python -m keras_bond doctor" in doctor["attributes"]["label"]
    assert doctor["validations"]["required"]


def test_the_hooks_use_the_ruff_of_the_project():
    hooks = read(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format"]
    for hook in hooks:
        assert (
            hook["additional_dependencies"]
            == PROJECT["optional-dependencies"]["lint"]
        )


def test_the_citation_names_the_authors_of_the_paper():
    paper = read(ROOT / "CITATION.cff")["preferred-citation"]
    families = [author["family-names"] for author in paper["authors"]]
    assert families[0] == "Sessa" and families[-1] == "Bachem"
    assert len(families) == len(set(families)) == 20
