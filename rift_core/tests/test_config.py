"""The configuration: where a mistake stands, who overrides whom, and files that are none."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rift_core.catalog import Catalog
from rift_core.config import LARGEST_FILE, load_config
from rift_core.config_places import find_place
from rift_core.errors import BinaryError, ConfigError, PluginNotFoundError
from rift_core.overrides import from_environment, parse_value, put
from rift_core.plugin import PluginInfo, Section
from rift_core.testing import fakes

if TYPE_CHECKING:
    from pathlib import Path


class Lamp:
    """An exit handler's module."""

    class LampConfig(Section):
        port: int = 5
        colour: str = "red"

    @staticmethod
    def rift_plugin() -> PluginInfo:
        return PluginInfo("exit_handler", "lamp", "A lamp", Lamp.LampConfig)


CATALOG = Catalog.of([fakes, Lamp])


def load(source: Any, environ: dict[str, str] | None = None, **overrides: Any) -> Any:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_config(source, overrides=dotted, environ=environ or {}, catalog=CATALOG)


# -- places --------------------------------------------------------------------------------------------------------

DOCUMENT = '''\
title = "a # in a string"   # a comment with [brackets]
dotted.key = 1
"quoted.key" = [1, 2,
    3, {inner = "x"}]

[memory]
size = """several
lines with [memory] and = in them"""
tables = 5

[[threads]]
name = "one"
[[threads]]
  name = 'two'
  arguments = [10, 20]

[threads.nested]
deep = true

[[threads.items]]
a = 1
[[threads.items]]
a = 2
'''

PLACES = {
    ("title",): (1, 1),
    ("dotted", "key"): (2, 8),
    ("quoted.key",): (3, 1),
    ("quoted.key", 2): (4, 5),
    ("quoted.key", 3, "inner"): (4, 9),
    ("memory",): (6, 2),
    ("memory", "size"): (7, 1),
    ("memory", "tables"): (9, 1),
    ("threads", 0, "name"): (12, 1),
    ("threads", 1, "name"): (14, 3),
    ("threads", 1, "arguments", 1): (15, 20),
    ("threads", 1, "nested", "deep"): (18, 1),
    ("threads", 1, "items", 0, "a"): (21, 1),
    ("threads", 1, "items", 1, "a"): (23, 1),
    ("threads", 1, "nothing"): (13, 3),  # the table around it
}


@pytest.mark.parametrize("path", PLACES, ids=str)
def test_keys_are_found_in_the_file(path: tuple[int | str, ...]) -> None:
    tomllib.loads(DOCUMENT)
    place = find_place(DOCUMENT, path)
    assert place is not None
    assert (place.line, place.column) == PLACES[path]


@given(st.text(max_size=60))
def test_looking_for_a_place_never_fails(text: str) -> None:
    find_place(text, ("a", 0, "b"))


# -- messages ------------------------------------------------------------------------------------------------------

WRONG = {
    "[memory]\nsise = 1\n": ("memory.sise: there is no such key; did you mean 'size'?", "2:1"),
    "[memory]\nsize = []\n": ("memory.size:", "2:8"),
    "[threads]\nname = 'a'\n": ("threads: should be an array", "1:2"),
    "[[threads]]\nname = 'a b'\n": ("threads.0.name:", "2:8"),
    "[[threads]]\nname = 'a'\n[[threads]]\nstack = true\n": ("threads.1.stack:", "4:9"),
    "[[exit_handlers]]\nname = 'lamp'\nport = 'x'\n": ("exit_handlers.0.port: should be a valid integer", "3:8"),
    "[[exit_handlers]]\nname = 'lamp'\nprot = 1\n": ("did you mean 'port'?", "3:1"),
    "[[exit_handlers]]\nport = 1\n": ("exit_handlers.0.name: is missing", "1:3"),
    "[backend]\nname = 'fake'\nspeed = 1\n": ("backend.speed: there is no such key", "3:1"),
    "nothing = 1\n": ("nothing: there is no such key", "1:1"),
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_each_problem_names_its_key_and_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rift.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    message, place = WRONG[text]
    assert message in str(caught.value)
    assert f"--> {path}:{place}" in str(caught.value)


def test_several_problems_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rift.toml"
    path.write_text("[memory]\nsise = 1\ntables = 'x'\n[limits]\nwall_time = 'long'\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).count("-->") == 3


NO_FILES = {
    b"\xff\xfe": "not valid UTF-8",
    b"a = [" + b"[" * 100_000: "not valid TOML",
    b"a = " + b"9" * 10_000: "not valid TOML",
    b"a = 1\na = 2\n": "not valid TOML",
    b"#" * (LARGEST_FILE + 1): "larger than",
}


@pytest.mark.parametrize("content", NO_FILES, ids=range(len(NO_FILES)))
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rift.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=NO_FILES[content]):
        load(path)


@pytest.mark.parametrize("name", ["missing.toml", ".", "a\0b"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises((ConfigError, BinaryError)):  # without the suffix .toml it might have been a payload
        load(tmp_path / name)


# -- precedence ----------------------------------------------------------------------------------------------------


def test_overrides_stand_above_the_environment_above_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rift.toml"
    path.write_text("[memory]\nsize = '1MiB'\ntables = '2MiB'\n[limits]\nwall_time = 3.0\n")
    environ = {"RIFT_MEMORY__TABLES": "4MiB", "RIFT_LIMITS__WALL_TIME": "5.0", "RIFT_BACKENDS": "x", "OTHER__A": "1"}
    config = load(path, environ, limits__wall_time="7.5")
    assert (config.memory.size, config.memory.tables, config.limits.wall_time) == (1 << 20, 4 << 20, 7.5)


def test_choosing_another_plugin_drops_the_keys_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "rift.toml"
    path.write_text("[isa]\nname = 'something'\nlevel = 3\n")
    with pytest.raises(PluginNotFoundError, match="something"):
        load(path)
    assert load(path, isa__name="auto").isa.name == "auto"


def test_handlers_are_named_in_keys() -> None:
    source = {"exit_handlers": ["lamp"]}
    assert load(source, exit_handlers__lamp__port="9").exit_handlers[0].port == 9
    assert load(source, {"RIFT_EXIT_HANDLERS__0__COLOUR": "blue"}).exit_handlers[0].colour == "blue"
    with pytest.raises(ConfigError, match=r"names: 'lamp'"):
        load(source, exit_handlers__lump__port="9")
    assert source == {"exit_handlers": ["lamp"]}  # what the caller gave stays as it was


def test_a_problem_names_the_variable_or_option_that_it_came_from() -> None:
    with pytest.raises(ConfigError, match="from environment variable RIFT_MEMORY__SIZE"):
        load({}, {"RIFT_MEMORY__SIZE": "much"})
    with pytest.raises(ConfigError, match=r"from option memory\.size"):
        load({}, memory__size="much")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("0x10", 16), ("true", True), ("[1, 2]", [1, 2]), ("kvm", "kvm"), ("64MiB", "64MiB"), ('"a b"', "a b"),
     ("1\nb = 2", "1\nb = 2"), ("", ""), ("{a = 1}", {"a": 1})],
)  # fmt: skip
def test_values_are_toml_where_they_can_be(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_variables_without_two_underscores_mean_other_things() -> None:
    assert from_environment({"RIFT_BACKENDS": "a", "RIFT_CC": "gcc", "RIFT_MEMORY__SIZE": ""}) == {}


@given(
    st.recursive(st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=3) | st.dictionaries(
        st.sampled_from("ab"), x, max_size=2), max_leaves=6),
    st.lists(st.sampled_from(["a", "b", "0", "1", "7", "*", "name", ""]), min_size=1, max_size=4),
)  # fmt: skip
def test_any_key_is_set_or_refused(data: Any, parts: list[str]) -> None:
    document = {"a": data}
    try:
        for path in put(document, ".".join(parts), 42, "option"):
            at: Any = document
            for part in path:
                at = at[part]
            assert at == 42
    except ConfigError:
        pass
