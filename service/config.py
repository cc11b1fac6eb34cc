"""Every setting, read once from the environment at the start; nobody else reads it.

Each variable `FILE_STORAGE_X` may be given as `FILE_STORAGE_X_FILE`: the name of a file that holds the value, as
container secrets are handed over.
"""

import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

PREFIX = "FILE_STORAGE_"
MIN_JWT_SECRET_BYTES = 32
GIB = 2**30
_ALL_ADDRESSES = {"0.0.0.0", "::", "*"}  # nosec B104: nothing is bound here
# what manuals and templates have in the place of a secret
_EXAMPLES = re.compile(r"(?i)change[-_ ]?(me|this|it)|example|placeholder|your[-_ ].*secret|"
                       r"a-string-secret-at-least-256-bits-long")


class ConfigError(Exception):
    """The settings cannot be used; `problems` names every one of them."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def _scheme(address: SecretStr) -> str:
    """How the address begins; the complaints of urlsplit are not passed on, since they quote passwords."""
    try:
        return urlsplit(address.get_secret_value()).scheme
    except ValueError:
        raise ValueError("is not an address; odd characters of a password have to be percent-encoded") from None


def _parse_networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Addresses and networks with commas between; ValueError for anything else, and for all addresses there are."""
    try:
        networks = [ip_network(part.strip()) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"has to be addresses and networks like 10.0.0.5,192.168.1.0/24: {error}") from None
    if not all(network.prefixlen for network in networks):
        raise ValueError("names every address, so any client could say that it is another one")
    return networks


class Config(BaseSettings):
    """The settings; built by `from_environment`, frozen, passed down."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `from_environment` hands over: it has already joined the two forms of each variable."""
        return (init_settings,)

    host: str = Field("127.0.0.1", min_length=1, description="address nginx listens on")
    port: int = Field(9000, ge=1, le=65535, description="port nginx listens on")
    data_root: Path = Field(Path("var"), description="folder of all bytes; made if it is not there")
    database_url: SecretStr | None = Field(None, description="PostgreSQL; unset: an embedded one under the data root")
    database_pool_size: int = Field(10, ge=2, le=1000, description="connections of each worker")
    redis_url: SecretStr | None = Field(None, description="Redis; unset: each worker caches by itself")
    jwt_secret: SecretStr | None = Field(None, description="key of access tokens; unset: made under the data root")
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=64, description="processes that decide")
    max_upload_size: int = Field(64 * GIB, ge=1, le=2**62, description="bytes of one file at most")
    public_url: str | None = Field(None, description="begin of links that are given out; unset: the host a client used")
    trusted_proxies: str | None = Field(None, description="who may say in X-Forwarded-For where a client is")
    min_free_space: int = Field(GIB // 2, ge=0, description="bytes of the disk that uploads never touch")
    quota: int | None = Field(None, ge=0, le=2**62, description="bytes of a new account; unset: no limit")
    versions_keep: int = Field(10, ge=0, le=10_000, description="former versions kept of each file")
    versions_days: int = Field(30, ge=0, le=36_500, description="days a former version is kept; 0: no such limit")
    trash_days: int = Field(30, ge=0, le=36_500, description="days until the trash is emptied of a thing; 0: never")
    audit_days: int = Field(90, ge=0, le=36_500, description="days a line of the audit trail is kept; 0: for ever")
    quarantine_days: int = Field(7, ge=1, le=36_500, description="days a file that was set aside is kept")
    scrub_rate: int = Field(2**25, ge=0, le=2**40, description="bytes read back in a second to verify them; 0: none")
    access_token_ttl: int = Field(900, ge=5, le=86400, description="seconds an access token is good for")
    session_ttl: int = Field(30 * 86400, ge=60, description="seconds a session lives without a refresh")
    bcrypt_cost: int = Field(11, ge=4, le=16, description="log2 of the rounds of a password hash")
    login_attempts_per_minute: int = Field(20, ge=1, description="for one account or link from one network")
    requests_per_minute: int = Field(120, ge=1, description="logins, registrations, tries of links from a network")
    costly_requests_per_minute: int = Field(6000, ge=0, description="of one account; 0: any number")
    uploads_per_account: int = Field(128, ge=1, le=65535, description="at the same time, of those that nginx spools")
    nginx: Literal["auto", "off"] = Field("auto", description="off: the workers send the bytes themselves")
    metrics_host: str = Field("127.0.0.1", min_length=1, description="address of METRICS_PORT")
    metrics_port: int | None = Field(None, ge=1, le=65535, description="port of GET /metrics; unset: only on sockets")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("metrics_port")
    @classmethod
    def _free(cls, value: int | None, info: ValidationInfo) -> int | None:
        given = info.data  # without those that are wrong themselves
        hosts = {given.get("host"), given.get("metrics_host")}
        if value is not None and value == given.get("port") and (len(hosts) == 1 or hosts & _ALL_ADDRESSES):
            raise ValueError(f"is the same as {PREFIX}PORT; /metrics needs a port of its own")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("data_root")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            return value.expanduser().absolute()
        except RuntimeError:
            raise ValueError("begins with the name of nobody here after ~; write the path out") from None

    @field_validator("public_url")
    @classmethod
    def _origin(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?/?", value):
            raise ValueError("has to be like https://files.example.org, without a path")
        return value.rstrip("/") if value else None

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: str | None) -> str | None:
        return ",".join(map(str, _parse_networks(value))) if value else None

    @property
    def proxy_networks(self) -> list[IPv4Network | IPv6Network]:
        """Where proxies are that are believed."""
        return _parse_networks(self.trusted_proxies) if self.trusted_proxies else []

    @field_validator("jwt_secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        # RFC 7518, section 3.2: a key of the hash output's size or larger for HS256
        if value is not None and len(value.get_secret_value().encode()) < MIN_JWT_SECRET_BYTES:
            raise ValueError(f"needs at least {MIN_JWT_SECRET_BYTES} bytes; try: openssl rand -hex 32")
        if value is not None and _EXAMPLES.search(value.get_secret_value()):
            raise ValueError("is an example that others know too; try: openssl rand -hex 32")
        return value

    @field_validator("database_url")
    @classmethod
    def _postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and _scheme(value) not in ("postgres", "postgresql"):
            raise ValueError("has to start with postgresql://")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and _scheme(value) not in ("redis", "rediss", "unix"):
            raise ValueError("has to start with redis://, rediss:// or unix://")
        return value

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Config":
        """Read the variables with the prefix; raise ConfigError with all that is wrong.

        An empty variable counts as unset, as compose files pass unset ones on.
        """
        values: dict[str, str] = {}
        problems: list[str] = []
        for variable in sorted(name for name in environment if name.startswith(PREFIX)):
            value = environment[variable]
            name = variable.removeprefix(PREFIX).lower()
            from_file = name.endswith("_file") and name.removesuffix("_file") in cls.model_fields
            if from_file:
                name = name.removesuffix("_file")
            if not value:
                continue
            if name not in cls.model_fields:
                problems.append(f"{variable}: there is no such setting")
            elif name in values:
                problems.append(f"{variable}: {PREFIX}{name.upper()} is given too; one of them is enough")
            elif from_file:
                try:
                    values[name] = Path(value).read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError) as error:
                    problems.append(f"{variable}: cannot be read: {error}")
            else:
                values[name] = value
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            problems += [f"{PREFIX}{'_'.join(map(str, e['loc'])).upper()}: {e['msg'].removeprefix('Value error, ')}"
                         for e in error.errors(include_input=False)]
        if problems:
            raise ConfigError(problems)
        return config

    def to_environment(self) -> dict[str, str]:
        """The variables from which `from_environment` builds this again, for child processes."""
        result = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None:
                result[PREFIX + name.upper()] = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        return result
