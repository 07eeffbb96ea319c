"""The generated files: JSON Schemas, and the tables of docs/configuration.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import tomli

from ha.config import check_files, load_system
from ha.config.keys import FILES
from ha.config.schema import generated, main
from tests.config.config_bed import ROOT

EXAMPLES = [
    ("system", "conf/system.toml"),
    ("node", "conf/node.toml"),
    *(("tenant", f"conf/tenants.d/{path.name}") for path in sorted((ROOT / "conf/tenants.d").glob("*.toml"))),
]


def validator(name: str) -> jsonschema.Draft4Validator:
    return jsonschema.Draft4Validator(json.loads((ROOT / f"docs/schema/{name}.json").read_text()))


def test_the_committed_files_are_current() -> None:
    stale = [path.name for path, text in generated(ROOT).items() if path.read_text() != text]
    assert stale == [], "run python -m ha.config.schema"
    assert main(["--check", "--root", str(ROOT)]) == 0


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_schemas_are_draft_4(name: str) -> None:
    schema = validator(name).schema
    jsonschema.Draft4Validator.check_schema(schema)
    text = json.dumps(schema)
    assert not re.search(r'"(const|if|exclusiveMinimum|examples|\$defs|propertyNames)":', text)


@pytest.mark.parametrize(("name", "path"), EXAMPLES)
def test_the_examples_pass_their_schema_and_name_it(name: str, path: str) -> None:
    text = (ROOT / path).read_text()
    validator(name).validate(tomli.loads(text))
    directive = text.splitlines()[0].removeprefix("#:schema ")
    assert (ROOT / path).parent.joinpath(directive).resolve() == ROOT / f"docs/schema/{name}.json"


@pytest.mark.parametrize(
    "lines",
    [
        'priority = "80"',
        "nosuch = 1",
        'monitor_interval = "100 ms"',
        'run_status = "hott"',
        'log = { to = "syslog" }',
        "copies = 0",
    ],
)
def test_schema_and_check_refuse_the_same(lines: str) -> None:
    text = f'[process.p]\ncommand = ["/x"]\n{lines}\n'
    assert not validator("tenant").is_valid(tomli.loads(text))
    assert check_files({"acme": text.encode()}, load_system(str(ROOT / "conf/system.toml"))).findings


def test_the_document_shows_what_the_check_says() -> None:
    document = (ROOT / "docs/configuration.md").read_text()
    found = re.search(r"This file, `bad.toml`,\n\n```toml\n(.*?)```\n.*?```\n(.*?)```", document, re.DOTALL)
    assert found
    system = load_system(str(ROOT / "conf/system.toml"))
    checked = check_files({"bad": found[1].encode()}, system, paths={"bad": "bad.toml"})
    assert "".join(f"{finding}\n" for finding in checked.findings) == found[2]


def test_every_code_of_a_finding_is_in_the_document() -> None:
    document = (ROOT / "docs/configuration.md").read_text()
    source = "\n".join(path.read_text() for path in Path(ROOT / "ha/config").glob("*.py"))
    codes = set(re.findall(r'(?:add|place)\(\s*"([a-z-]+)"|return "([a-z]+-[a-z-]+)", |code="([a-z-]+)"', source))
    assert {f"`{code}`" for group in codes for code in group if code} <= set(re.findall(r"`[a-z-]+`", document))
