"""Settings: where they come from, what is wrong with them, and what nobody may see of them."""

import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import SecretStr, ValidationError

from service.config import PREFIX, Config, ConfigError

SECRET = "0123456789abcdef0123456789abcdef"
HUSH = "hush-this-is-secret"


def read(**values: str) -> Config:
    """The configuration of these variables, without the prefix."""
    return Config.from_environment({PREFIX + name: value for name, value in values.items()})


def problems_of(**values: str) -> list[str]:
    """What is wrong with these variables."""
    with pytest.raises(ConfigError) as caught:
        read(**values)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def value_of(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


# --- where values come from ---

def test_nothing_set_gives_the_defaults() -> None:
    config = Config.from_environment({})
    assert (config.host, config.port, config.data_root) == ("127.0.0.1", 9000, Path("var").absolute())
    assert config.workers == os.cpu_count()
    assert (config.database_url, config.redis_url, config.jwt_secret, config.quota) == (None, None, None, None)
    assert Config.from_environment(config.to_environment()) == config


def test_only_variables_with_the_prefix_count() -> None:
    config = Config.from_environment({"PORT": "1", "HOST": "example.org", "file_storage_port": "2",
                                      "XFILE_STORAGE_PORT": "3", "FILE_STORAGE_PORT": "4"})
    assert (config.port, config.host) == (4, "127.0.0.1")


def test_environment_of_the_process_is_not_read_behind_our_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "port", "FILE_STORAGE_PORT", "HOST"):
        monkeypatch.setenv(name, "77")
    assert Config.from_environment({}).port == 9000


def test_value_may_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret with spaces"
    file.write_text(f"\n {SECRET}ü \n", encoding="utf-8")
    assert value_of(read(JWT_SECRET_FILE=str(file)).jwt_secret) == f"{SECRET}ü"
    (tmp_path / "port").write_text("8080\n", encoding="ascii")
    assert read(PORT_FILE=str(tmp_path / "port")).port == 8080


def test_value_and_file_at_once_are_refused_and_neither_is_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET * 2, encoding="ascii")
    [problem] = problems_of(JWT_SECRET=SECRET, JWT_SECRET_FILE=str(tmp_path / "secret"))
    assert "JWT_SECRET_FILE" in problem and "one of them is enough" in problem
    assert SECRET not in problem


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "not text"])
def test_file_that_cannot_be_read_is_a_problem_and_no_default_is_taken(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    [problem] = problems_of(JWT_SECRET_FILE=str(tmp_path / "secret"))
    assert problem.startswith("FILE_STORAGE_JWT_SECRET_FILE: cannot be read")


def test_folder_as_file_is_a_problem(tmp_path: Path) -> None:
    [problem] = problems_of(QUOTA_FILE=str(tmp_path))
    assert problem.startswith("FILE_STORAGE_QUOTA_FILE: cannot be read")


def test_empty_file_of_a_secret_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n", encoding="ascii")
    [problem] = problems_of(JWT_SECRET_FILE=str(tmp_path / "secret"))
    assert problem.startswith("FILE_STORAGE_JWT_SECRET: needs at least 32 bytes")


def test_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET, encoding="ascii")
    assert read(**{name.upper(): "" for name in Config.model_fields}) == read()
    config = read(JWT_SECRET="", JWT_SECRET_FILE=str(tmp_path / "secret"), PORT="81", PORT_FILE="", NONSENSE="")
    assert (value_of(config.jwt_secret), config.port) == (SECRET, 81)


def test_home_of_nobody_is_a_problem() -> None:
    [problem] = problems_of(DATA_ROOT="~nobody-of-that-name/files")
    assert problem.startswith("FILE_STORAGE_DATA_ROOT: begins with the name of nobody here")


def test_relative_data_root_and_home_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere/else")
    assert read(DATA_ROOT="some data").data_root == tmp_path / "some data"
    assert read(DATA_ROOT="~/files").data_root == Path("/somewhere/else/files")


# --- what is refused ---

def test_all_problems_are_told_at_once() -> None:
    problems = problems_of(PORT="65536", WORKERS="0", QUOTA="-1", JWT_SECRET="short", DATABASE_URL="mysql://db/x",
                           REDIS_URL="http://cache", NGINX="maybe", LOG_LEVEL="loud", BCRYPT_COST="many",
                           NO_SUCH_THING="1", SESSION_TTL_FILE="/nowhere/at/all")
    named = sorted(problem.partition(":")[0].removeprefix(PREFIX) for problem in problems)
    assert named == sorted(["PORT", "WORKERS", "QUOTA", "JWT_SECRET", "DATABASE_URL", "REDIS_URL", "NGINX", "LOG_LEVEL",
                            "BCRYPT_COST", "NO_SUCH_THING", "SESSION_TTL_FILE"])
    assert all(len(problem.splitlines()) == 1 for problem in problems)


@pytest.mark.parametrize("name", ["PROT", "FILE", "_FILE", "JWT_SECRET_FILE_FILE", "MODEL_CONFIG"])
def test_unknown_name_is_refused(name: str) -> None:
    [problem] = problems_of(**{name: "1"})
    assert problem == f"FILE_STORAGE_{name}: there is no such setting"


@pytest.mark.parametrize(("name", "good", "bad"), [
    ("PORT", ["1", "65535"], ["0", "-1", "65536", "x", "1.5"]),
    ("WORKERS", ["1", "64"], ["0", "65"]),
    ("DATABASE_POOL_SIZE", ["2", "1000"], ["1", "1001"]),
    ("MAX_UPLOAD_SIZE", ["1", str(2**62)], ["0", str(2**62 + 1)]),
    ("MIN_FREE_SPACE", ["0"], ["-1"]),
    ("QUOTA", ["0", str(2**62)], ["-1", str(2**63), "10 GiB"]),
    ("ACCESS_TOKEN_TTL", ["5", "86400"], ["4", "86401"]),
    ("SESSION_TTL", ["60"], ["59"]),
    ("BCRYPT_COST", ["4", "16"], ["3", "17"]),
    ("LOGIN_ATTEMPTS_PER_MINUTE", ["1"], ["0"]),
    ("REQUESTS_PER_MINUTE", ["1"], ["0"]),
    ("COSTLY_REQUESTS_PER_MINUTE", ["0", "1"], ["-1"]),
    ("UPLOADS_PER_ACCOUNT", ["1", "65535"], ["0", "65536"]),
    ("NGINX", ["auto", "off"], ["on", "Auto"]),
    ("LOG_LEVEL", ["debug", "INFO", "Warning", "error"], ["trace", "1"]),
    ("HOST", ["0.0.0.0", "::1"], [" "]),
    ("TRUSTED_PROXIES", ["10.0.0.5", "192.168.1.0/24, fd00::/8", "::1"],
     ["10.0.0.5,", "10.0.0.5/24", "proxy.example.org", "0.0.0.0/0", "10.0.0.5; deny all", "::/0"]),
    ("JWT_SECRET", ["x" * 32, "ü" * 16], ["x" * 31, "ü" * 15, " " * 10]),
    ("DATABASE_URL", ["postgresql://u:p@h/d", "postgres:///d?host=/run"], ["mysql://h/d", "h", "postgresql+x://h"]),
    ("REDIS_URL", ["redis://h:1/0", "rediss://h", "unix:///run/redis.sock"], ["http://h", "h:6379"]),
])
def test_value_at_the_edge_is_taken_and_one_beyond_it_refused(name: str, good: list[str], bad: list[str]) -> None:
    for value in good:
        read(**{name: value})
    for value in bad:
        [problem] = problems_of(**{name: value})
        assert problem.startswith(f"FILE_STORAGE_{name}: ")


@pytest.mark.parametrize("secret", [
    "change-me-change-me-change-me-change-me", "CHANGEME" * 4, "please change this " * 2,
    "an example of a secret, 32 bytes long", "your-256-bit-secret-your-256-bit-secret",
    "a-string-secret-at-least-256-bits-long"])
def test_example_of_a_secret_is_refused(secret: str) -> None:
    [problem] = problems_of(JWT_SECRET=secret)
    assert problem == "FILE_STORAGE_JWT_SECRET: is an example that others know too; try: openssl rand -hex 32"


@pytest.mark.parametrize(("host", "metrics_host"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"),
                                                    ("10.0.0.1", "0.0.0.0"), ("::", "127.0.0.1")])
def test_port_for_metrics_that_is_the_public_one_is_refused(host: str, metrics_host: str) -> None:
    given = {"PORT": "9100", "HOST": host, "METRICS_HOST": metrics_host}
    [problem] = problems_of(**given, METRICS_PORT="9100")
    assert problem == "FILE_STORAGE_METRICS_PORT: is the same as FILE_STORAGE_PORT; /metrics needs a port of its own"
    assert read(**given, METRICS_PORT="9101").metrics_port == 9101


def test_one_port_at_two_addresses_is_two_ports() -> None:
    assert read(PORT="9100", HOST="127.0.0.1", METRICS_PORT="9100", METRICS_HOST="127.0.0.2").metrics_port == 9100


def test_configuration_cannot_be_changed() -> None:
    config = Config.from_environment({})
    with pytest.raises(ValidationError):
        setattr(config, "port", 1)


# --- secrets ---

SECRETS = {"JWT_SECRET": f"{HUSH}-{SECRET}", "DATABASE_URL": f"postgresql://user:{HUSH}@db/files",
           "REDIS_URL": f"redis://:{HUSH}@cache/0"}


def test_secrets_are_in_no_text_of_the_configuration() -> None:
    config = read(**SECRETS)
    assert config.database_url is not None and HUSH in config.database_url.get_secret_value()
    for text in (repr(config), str(config), f"{config}", repr(config.model_dump()), str(config.model_dump_json()),
                 repr(vars(config)), repr([config])):
        assert HUSH not in text and SECRET not in text


@pytest.mark.parametrize(("name", "value"), [
    ("JWT_SECRET", HUSH),
    ("DATABASE_URL", f"mysql://user:{HUSH}@db/files"),
    ("DATABASE_URL", HUSH),
    ("DATABASE_URL", f"postgresql://user:[{HUSH}]@db/files"),
    ("DATABASE_URL", f"postgresql://user:{HUSH}\u2100@db/files"),
    ("DATABASE_URL", f"postgresql://user:{HUSH}[@db/files"),
    ("REDIS_URL", f"redis+x://:{HUSH}@cache"),
    ("REDIS_URL", f"redis://:[{HUSH}]@cache"),
    ("REDIS_URL", f"redis://:{HUSH}\u2100@cache"),
])
def test_complaint_about_a_secret_does_not_quote_it(name: str, value: str) -> None:
    [problem] = problems_of(**{name: value})
    assert problem.startswith(f"FILE_STORAGE_{name}: ")
    assert HUSH not in problem


def test_complaint_about_a_secret_from_a_file_does_not_quote_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(HUSH, encoding="ascii")
    [problem] = problems_of(JWT_SECRET_FILE=str(tmp_path / "secret"))
    assert HUSH not in problem


def test_wrong_settings_on_the_command_line_tell_no_secret_and_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-m", "service", "run"], capture_output=True, text=True, timeout=60,
                          env={"PATH": os.environ["PATH"], "FILE_STORAGE_JWT_SECRET": HUSH, "FILE_STORAGE_PORT": "x"},
                          cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 2 and HUSH not in done.stderr


# --- for child processes ---

# what an environment can hold; the operating system has no variable with a NUL in it
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)
given_settings: st.SearchStrategy[Mapping[str, str]] = st.fixed_dictionaries({}, optional={
    "HOST": words.filter(str.strip),
    "PORT": st.integers(1, 65535).map(str),
    "DATA_ROOT": words.filter(lambda path: not path.startswith("~")),
    "DATABASE_URL": words.map("postgresql:///{}".format),
    "REDIS_URL": words.map("redis:///{}".format),
    "JWT_SECRET": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs"]), min_size=32),
    "WORKERS": st.integers(1, 64).map(str),
    "MAX_UPLOAD_SIZE": st.integers(1, 2**62).map(str),
    "QUOTA": st.integers(0, 2**62).map(str),
    "NGINX": st.sampled_from(["auto", "off"]),
    "LOG_LEVEL": st.sampled_from(["DEBUG", "info", "Error"]),
})


@settings(deadline=None)
@given(given_settings)
def test_configuration_survives_being_handed_to_a_child(values: Mapping[str, str]) -> None:
    config = read(**values)
    environment = config.to_environment()
    assert set(environment) <= {PREFIX + name.upper() for name in Config.model_fields}
    again = Config.from_environment(environment)
    assert again == config
    assert again.to_environment() == environment


def test_secret_from_a_file_is_handed_on_as_a_value(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET, encoding="ascii")
    file.chmod(stat.S_IRUSR)
    environment = read(JWT_SECRET_FILE=str(file)).to_environment()
    file.unlink()
    assert value_of(Config.from_environment(environment).jwt_secret) == SECRET
