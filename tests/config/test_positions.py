"""Where keys and values stand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ha.config.positions import index

TEXT = """\
# comment
[tenant]
name = "a#b" # not a = key
"quoted" = 'x'
[process.acd]
command = [
  "/bin/a", # first
  '''multi
line''',
  "c",
]
probe = [ { tcp = "x:1", timeout = "1s" }, { http = "y", status = 200 } ]
stop.grace = "1s"
long = \"\"\"a
b = "c"
\"\"\"\"
after = 1
[[process.ivr.probe]]
tcp = "z"
[[process.ivr.probe]]
http = "w"
[process.ivr.probe.sub]
k = 1
"""


def test_keys_and_values_are_found_in_every_form_toml_has() -> None:
    found = index(TEXT)
    assert found.of(("tenant",), key=True) == (2, 2)
    assert found.of(("tenant", "name")) == (3, 8)
    assert found.of(("tenant", "name"), key=True) == (3, 1)
    assert found.of(("tenant", "quoted")) == (4, 12)
    assert found.of(("process", "acd"), key=True) == (5, 10)
    assert found.of(("process", "acd", "command", 0)) == (7, 3)
    assert found.of(("process", "acd", "command", 1)) == (8, 3)
    assert found.of(("process", "acd", "command", 2)) == (10, 3)
    assert found.of(("process", "acd", "probe", 0, "timeout")) == (12, 36)
    assert found.of(("process", "acd", "probe", 1, "status"), key=True) == (12, 58)
    assert found.of(("process", "acd", "stop", "grace")) == (13, 14)
    assert found.of(("process", "acd", "after")) == (17, 9)
    assert found.of(("process", "ivr", "probe", 0, "tcp")) == (19, 7)
    assert found.of(("process", "ivr", "probe", 1, "http")) == (21, 8)
    assert found.of(("process", "ivr", "probe", 1, "sub", "k")) == (23, 5)


def test_what_is_unknown_has_the_place_of_what_is_around_it() -> None:
    found = index(TEXT)
    assert found.of(("process", "acd", "probe", 7, "tcp")) == found.of(("process", "acd", "probe"))
    assert found.of(("tenant", "missing")) == (2, 2)
    assert found.of(("nothing",)) == (1, 1)
    assert found.of(()) == (1, 1)


def test_windows_line_ends_do_not_move_columns() -> None:
    assert index('[a]\r\nb = "x"\r\nc = [\r\n1,\r\n2]\r\n').of(("a", "c", 1)) == (5, 1)


@given(st.text(alphabet="[]{}=.,#\"'\\\n ab1", max_size=60))
def test_no_text_makes_the_scanner_raise(text: str) -> None:
    found = index(text)
    for path in found.values:
        line, column = found.of(path)
        assert 1 <= line <= text.count("\n") + 1
        assert column >= 1


def test_deep_nesting_is_left_out_and_not_followed() -> None:
    assert index("a = " + "[" * 10_000).of(("a",)) == (1, 5)
