"""Property files and overrides: values are never code, mistakes are named, types are checked."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from girl_recbole.config import (
    check_keys,
    documented_keys,
    known_keys,
    load_properties,
    make_config,
    parse_overrides,
    parse_value,
    properties_file,
)
from girl_recbole.errors import ConfigError
from girl_recbole.splits import SplitConfig


@pytest.mark.parametrize(
    "text, value",
    [
        ("1", 1), ("1e-3", 1e-3), ("-2.5", -2.5), ("true", True), ("False", False), ("null", None), ("None", None),
        ("[1, 2]", [1, 2]), ("{'a': 1}", {"a": 1}), ("warm", "warm"), ("1/2", "1/2"), ("a=b", "a=b"), ("", ""),
        ("s1", "s1"), ("3.10.1", "3.10.1"), ("'quoted'", "quoted"), ("[unclosed", "[unclosed"),
        ("[sft, rl]", ["sft", "rl"]), ("{hired: 1, no: 0}", {"hired": 1, "no": 0}), ("[2023-99-99]", "[2023-99-99]"),
    ],
)  # fmt: skip
def test_parse_value(text, value):
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_nothing_is_evaluated(tmp_path):
    target = tmp_path / "pwned"
    for code in (
        f"__import__('os').system('touch {target}')",
        f"open('{target}', 'w')",
        "exit()",
        "().__class__",
        "1 if 1 else 2",
    ):
        assert parse_value(code) == code
    (tmp_path / "x.yaml").write_text(f"split: !!python/object/apply:os.system ['touch {target}']\n")
    with pytest.raises(ConfigError, match="not a YAML file"):
        load_properties(tmp_path / "x.yaml")
    assert not target.exists()


@given(st.text(max_size=60))
def test_parse_value_never_fails(text):
    parse_value(text)


def test_overrides():
    assert parse_overrides(["--a=1", "--b", "x=y", "--c=p=q=r", "--a=2", "--some-key=[1]"]) == {
        "a": 2, "b": "x=y", "c": "p=q=r", "some_key": [1],
    }  # fmt: skip
    for arguments, said in ((["a=1"], "overrides are written --key=value"), (["--a"], "--a has no value"),
                            (["--a", "--b=1"], "--a has no value")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            parse_overrides(arguments)


def test_a_command_line_is_read_by_the_types_of_its_keys():
    @dataclass(frozen=True)
    class Kind:
        split_suffix: str
        split_ratio: list
        gen_stages: tuple | str
        raw: str | None
        seed: int

    def read(*arguments):
        return make_config(Kind, arguments=arguments)

    assert read("--split_suffix=1").split_suffix == "1"
    assert read("--split_suffix=true").split_suffix == "true"
    assert read("--split_suffix='s 1'").split_suffix == "s 1"
    assert read("--split_ratio=0.8,0.1,0.1").split_ratio == [0.8, 0.1, 0.1]
    assert read("--gen_stages=[sft,rl]").gen_stages == ("sft", "rl")
    assert read("--gen_stages=rl").gen_stages == "rl"
    assert read("--raw=null").raw is None
    assert read("--raw=2023").raw == "2023"
    assert read("--seed=7").seed == 7
    with pytest.raises(ConfigError, match=r"girl split: unknown key 'sed' - did you mean 'seed'"):
        make_config(Kind, arguments=["--sed=7"], where="girl split")


def test_recorded_settings_win_over_shipped_files_and_lose_to_the_users(tmp_path):
    (tmp_path / "mine.yaml").write_text("split_suffix: mine\n")
    recorded = {"split": "cold_strict", "split_suffix": "old", "split_seed": 4}
    config = make_config(
        SplitConfig,
        dataset="resume-corpus",
        files=[tmp_path / "mine.yaml"],
        recorded=recorded,
        arguments=["--split_seed=5"],
    )
    assert (config.split, config.split_suffix, config.split_seed) == ("cold_strict", "mine", 5)


def test_unknown_keys_are_named_with_the_nearest():
    with pytest.raises(ConfigError, match="here: unknown key 'split_rato' - did you mean 'split_ratio'"):
        check_keys(["split_rato"], known_keys(), "here")
    with pytest.raises(ConfigError, match="unknown key 'split_sed' - did you mean 'split_seed'"):
        make_config(SplitConfig, overrides={"split_sed": 1})


def test_a_key_of_another_stage_is_allowed_in_a_file_only(tmp_path):
    (tmp_path / "mine.yaml").write_text("split_suffix: s9\nencoder: other\n")
    assert make_config(SplitConfig, files=[tmp_path / "mine.yaml"]).split_suffix == "s9"
    with pytest.raises(ConfigError, match="SplitConfig: unknown key 'encoder'"):
        make_config(SplitConfig, overrides={"encoder": "other"})
    (tmp_path / "typo.yaml").write_text("split_sufix: s9\n")
    with pytest.raises(ConfigError, match=r"typo\.yaml: unknown key 'split_sufix' - did you mean 'split_suffix'"):
        make_config(SplitConfig, files=[tmp_path / "typo.yaml"])


def test_a_named_preset_wins_over_the_datasets_file_and_the_default_loses_to_it():
    from girl_recbole.sft import SFTConfig

    tokens = {
        preset: make_config(SFTConfig, dataset="resume-corpus", preset=f"generator/{preset}").max_cv_tokens
        for preset in ("tiny", "qwen-0.5b-lora")
    }
    assert tokens == {"tiny": 192, "qwen-0.5b-lora": 1024}


def test_later_layers_win(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\nsplit: warm\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    config = make_config(
        SplitConfig,
        dataset="resume-corpus",
        files=[tmp_path / "a.yaml", tmp_path / "b.yaml"],
        overrides={"split_seed": 7},
    )
    assert (config.seed, config.split, config.split_seed) == (2, "warm", 7)
    assert make_config(SplitConfig, dataset="resume-corpus").split == "cold"  # the dataset's own file
    assert make_config(SplitConfig, dataset="no-such").split == "warm"  # the default


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("seed", "many", "seed: 'many' is a str; int is required"),
        ("seed", True, "seed: True is a bool; int is required"),
        ("seed", 1.5, "seed: 1.5 is a float; int is required"),
        ("split_seed", "x", "split_seed: 'x' is a str; int or NoneType is required"),
        ("split_ratio", 0.5, "split_ratio: 0.5 is a float; list is required"),
        ("split", None, "split: None is a NoneType; str is required"),
    ],
)
def test_types(key, value, said):
    with pytest.raises(ConfigError, match=said):
        make_config(SplitConfig, overrides={key: value})


def test_an_int_serves_as_a_float_and_a_missing_value_is_named():
    @dataclass(frozen=True)
    class Kind:
        near_duplicate: float

    @dataclass(frozen=True)
    class Unset:
        near_duplicate: float
        nobody_sets_this: int

    value = make_config(Kind, overrides={"near_duplicate": 1}).near_duplicate
    assert value == 1.0
    assert isinstance(value, float)
    with pytest.raises(ConfigError, match="Unset: no value for nobody_sets_this"):
        make_config(Unset)


@pytest.mark.parametrize(
    "content, said",
    [
        ("- a\n- b\n", "a mapping of key: value is required, not a list"),
        ("a: 1\na: 2\n", "key 'a' is given twice"),
        ("a: [1\n", "not a YAML file"),
        (b"a: \xff\n", "not a YAML file"),
    ],
)
def test_bad_property_files(tmp_path, content, said):
    (tmp_path / "x.yaml").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=said):
        load_properties(tmp_path / "x.yaml")


def test_property_file_details(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.yaml: no such property file"):
        load_properties(tmp_path / "gone.yaml")
    (tmp_path / "x.yaml").write_text("")
    assert load_properties(tmp_path / "x.yaml") == {}
    (tmp_path / "x.yaml").write_text("rate: 1e-3\nsize: 2E5\ncount: 10\n")
    assert load_properties(tmp_path / "x.yaml") == {"rate": 1e-3, "size": 2e5, "count": 10}


def test_yes_and_no_are_words(tmp_path):
    (tmp_path / "x.yaml").write_text("labels: {yes: 1, no: 0, On: 1}\na: true\nb: False\nc: off\n")
    assert load_properties(tmp_path / "x.yaml") == {
        "labels": {"yes": 1, "no": 0, "On": 1}, "a": True, "b": False, "c": "off",
    }  # fmt: skip


def test_every_default_says_its_type_and_meaning():
    said = {key for key, _, _ in documented_keys()}
    assert set(load_properties(properties_file("overall.yaml"))) == said
