"""Settings: the environment over the file over the default, and a malformed one stops the start with its name."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from sojourn import settings
from sojourn.errors import Invalid


def load(folder: Path, env: Mapping[str, str] = {}, file: str = "") -> settings.Settings:
    (folder / "sojourn.toml").write_text(file)
    return settings.load({"SOJOURN_DATA_DIR": str(folder), **env})


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    found = load(tmp_path, {"SOJOURN_LEASE_S": "7"}, "lease_s = 5\nbeat_s = 0.5")
    assert (found.lease_s, found.beat_s, found.drain_s) == (7.0, 0.5, 30.0)


def test_known_providers_are_described_by_their_variables(tmp_path: Path) -> None:
    env = {"OPENAI_API_KEY": "a, b", "OPENAI_CALLS_MAX": "3", "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}
    openai, anthropic = load(tmp_path, env).endpoints
    assert (openai.keys, openai.calls_max, openai.key_required) == (("a", "b"), 3, True)
    assert (anthropic.base_url, anthropic.calls_max, anthropic.key_required) == ("http://127.0.0.1:1", None, False)


@pytest.mark.parametrize(
    ("env", "file", "told"),
    [
        ({"SOJOURN_LEASE_S": "soon"}, "", "lease_s"),
        ({"SOJOURN_LEASE_S": "301"}, "", "lease_s"),
        ({"SOJOURN_PUBLIC_URL": "https://example.org\n"}, "", "PUBLIC_URL|public_url"),
        ({"OPENAI_CALLS_MAX": "0"}, "", "OPENAI_CALLS_MAX"),
        ({"OPENAI_CALLS_MAX": "many"}, "", "OPENAI_CALLS_MAX"),
        ({}, "lease = 5", "lease"),
        ({}, "lease_s = ", "sojourn.toml"),
        ({"SOJOURN_CONFIG": "/nowhere/sojourn.toml"}, "", "/nowhere/sojourn.toml"),
    ],
)
def test_a_malformed_setting_stops_the_start_with_its_name(
    tmp_path: Path, env: Mapping[str, str], file: str, told: str
) -> None:
    with pytest.raises(Invalid, match=told) as refused:
        load(tmp_path, env, file)
    assert refused.value.code == "settings.invalid"
