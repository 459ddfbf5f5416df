"""Every setting: its name with the unit, its default, and why one would change it.

`cli` and `wiring` read them once; nothing else looks at the environment. The rule: the environment wins over the file,
the file wins over the default, and a malformed setting stops the start with its name.

A setting `lease_s` is the variable SOJOURN_LEASE_S, or `lease_s = 15` in the settings file: SOJOURN_CONFIG, else
`sojourn.toml` in the data folder. Tables of it: [providers.NAME], [issuers.NAME], [prices."provider:model"],
[rates.CLASS] and [tools.NAME].
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sojourn.errors import Invalid
from sojourn.identity.issuers import Issuer
from sojourn.loop.budget import DEPTH_MAX
from sojourn.loop.continuation import Flow
from sojourn.loop.policy import Verdict
from sojourn.models.model import Endpoint, TimeOuts
from sojourn.sandboxes.sandbox import Limits as SandboxLimits
from sojourn.store.budgets.pools import Defaults
from sojourn.store.db import Pooler
from sojourn.store.sharing.rates import NAMES, Rates, read

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Bytes = Annotated[int, Meta(ge=1)]
IssuerName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,32}\Z")]
PublicUrl = Annotated[str, Meta(pattern=r"^(https?://[^\s?#\"\\]+[^\s?#\"\\/])?\Z")]
Days = Annotated[int, Meta(ge=0, le=36500)]
Dollars = Annotated[float, Meta(ge=0, le=1e9)]
Tokens = Annotated[int, Meta(ge=0, le=10**15)]


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table [providers.NAME] of the settings file: a server that speaks a known dialect."""

    dialect: Literal["openai", "anthropic"] = "openai"
    base_url: str
    api_key_env: str = ""
    """The variable that holds its key, or several keys with commas between."""
    key_required: bool = True
    tool_mode: Literal["native", "json_schema"] = "native"
    headers: dict[str, str] = {}
    calls_max: Count | None = None
    """Calls that all workers together have on their way at once; the others wait."""
    cache_key: bool = False
    """It takes `prompt_cache_key`, which sends requests that begin alike to one cache."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table [prices."provider:model"]: US dollars for a million tokens."""

    input: float
    output: float
    cache_read: float | None = None
    cache_write: float | None = None


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The settings of one process."""

    data_dir: str = ""
    """Where the embedded database, sandboxes and keys live; /var/lib/sojourn for root, else the XDG data folder."""
    database_url: str = ""
    """A PostgreSQL >= 16 of your own; empty means the embedded one in the data folder."""
    database_url_api: str = ""
    """A login of its own for the API, where roles are to be separated by more than SET ROLE."""
    database_url_engine: str = ""
    """The same for the workers."""
    database_url_session: str = ""
    """A login straight to the server, where the two above go through a pooler, that may act as `sojourn_api` and as
    `sojourn_engine`; empty means that of `database_url`."""
    database_pooler: Pooler = "none"
    """What stands before the API's and the workers' logins: `transaction` for a pooler such as pgbouncer in transaction
    mode, `prepared` for one that keeps prepared statements too."""
    database_connections_max: Count = 10
    """Connections of each of the two pools of a process."""
    database_wait_s: Annotated[float, Meta(ge=0)] = 0.0
    """How long a start waits for a database that does not answer yet, before it gives up."""

    root_key: str = ""
    """The keys that the API keeps secrets under, in base64, commas between; empty means those in `root_key_file`."""
    root_key_file: str = ""
    """A file with one such key a line; empty means `root.key` in the data folder."""

    host: str = "127.0.0.1"
    """The address to listen on; put a TLS proxy before anything but loopback."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8420
    public_url: PublicUrl = ""
    """How callers reach this server, without a slash at the end; OAuth clients are told it."""
    body_max_bytes: Bytes = 1 << 20
    message_max_bytes: Bytes = 256 << 10
    """The longest text of one message; larger inputs belong into the session's files."""
    file_max_bytes: Bytes = 32 << 20
    blob_max_bytes: Bytes = 20 << 20
    """The largest image or file that a message refers to, and all of one message together."""
    blobs_max_bytes: Bytes = 10 << 30
    """All blobs of one tenant, sessions that were put away included; uploads past it are refused with 429."""
    export_max_bytes: Bytes = 64 << 20
    """The largest export of a run that is made or read, its session's files included."""
    file_requests_waiting_max: Count = 32
    """Requests for sessions' files of one process that wait for a sandbox to open; more are refused with 503."""
    queued_runs_max: Count = 1000
    """Runs of one tenant that wait for a worker; more are refused with 429. `sojourn tenants set` overrules it."""
    delayed_runs_max: Count = 10_000
    """Runs of one tenant that are to begin later; more are refused with 429."""
    schedules_max: Count = 1000
    """Schedules of one tenant; more are refused with 429."""
    tenant_runs_max: Count | None = None
    """Runs of one tenant that workers hold at once; the others wait. `sojourn tenants set` overrules it."""
    rates: Rates = Rates()
    """How often callers may ask, by class of request; `sojourn tenants set` overrules it."""
    stream_clients_max: Count = 2000
    """Open event streams of one process."""
    stream_clients_tenant_max: Count = 1000
    """Those of one tenant among them, so that none takes them all."""
    stream_life_s: Seconds = 900.0
    """A stream ends after this time and the client comes back with Last-Event-ID."""
    linger_s: Annotated[float, Meta(ge=0)] = 0.0
    """How long the API goes on answering once it was told to stop, for load balancers to see /readyz fail."""
    idempotency_hours: Count = 24
    uploads_kept_hours: Count = 24
    """How long an uploaded image or file is kept that no run refers to."""
    runs_kept_days: Days = 0
    """A session goes with its runs and files once nothing of it was used for so long; 0: never."""
    ledger_kept_days: Days = 0
    """How long the records of what was paid are kept; 0: for ever."""
    disk_reserve_bytes: Bytes = 256 << 20
    """New runs and uploads are refused while the data folder's disk has less room; what goes on may use it up."""

    tenant_usd_day: Dollars | None = None
    """US dollars that a tenant may spend on models in a day (UTC). `sojourn tenants set` overrules it."""
    tenant_tokens_day: Tokens | None = None
    """The same in tokens, of input and output together."""
    user_usd_day: Dollars | None = None
    """US dollars that each user of a tenant may spend in a day. `sojourn tenants set` overrules it."""
    user_tokens_day: Tokens | None = None

    steps_default: Count = 75
    active_s_default: Seconds = 3600.0
    depth_max: Annotated[int, Meta(ge=0, le=DEPTH_MAX)] = DEPTH_MAX
    """How deep agents and runs may let sub-agents be nested."""

    worker_runs_max: Count = 200
    """Runs that one worker process drives at the same time."""
    lease_s: Annotated[float, Meta(gt=0, le=300)] = 15.0
    """How long a worker that cannot reach the database keeps its runs; a dead one loses them at once.

    It stops what it performs after four fifths of it. All workers of a database must have the same."""
    beat_s: Seconds = 1.0
    """How often a worker renews its lease and looks for dead ones."""
    drain_s: Seconds = 30.0
    """How long a worker that was told to stop finishes what is in flight before it hands its runs back."""
    delta_flush_ms: Count = 20
    """Model deltas are collected this long before they go to the stream."""
    tool_timeout_s: Seconds = 120.0
    observation_max_bytes: Bytes = 64 << 10
    """Longer tool output reaches the model as its head and tail."""

    sandbox: Literal["auto", "bwrap"] = "auto"
    sandbox_limits: SandboxLimits = SandboxLimits()
    sandbox_idle_s: Seconds = 900.0
    """A sandbox that no run used for this long is put away: its files are kept, its processes end."""
    sandbox_suspend_s: Annotated[float, Meta(ge=0)] = 5.0
    """The same for the sandbox of a run that is suspended; an answer that comes before finds its processes alive."""
    host_name: str = ""
    """The name of the machine that has `data_dir`, as sessions remember it; the system's if empty. Keep it."""

    model_time_outs: TimeOuts = TimeOuts()
    tools: dict[str, Flow] = {}
    outward_floor: Verdict = "allow"
    """The mildest that may become of a call that sends outward what must not be sent unseen, whatever agents say."""
    providers: dict[str, Provider] = {}
    issuers: dict[IssuerName, Issuer] = {}
    prices: dict[str, Price] = {}
    windows: dict[str, int] = {}
    """What a model holds, by "provider:model", in tokens, where the price table does not say it."""
    window_tokens_default: int = 128_000
    """What a model holds of which nobody says it."""

    webhooks_http_allowed: bool = False
    """Let tenants' webhooks have http:// URLs, which whoever is on the way can read."""
    webhook_hosts_allowed: str = ""
    """Hosts, with commas between, that webhooks may reach although their addresses are not the public internet's."""
    alerts_every_s: Seconds = 60.0
    """How often the alerts are looked for, by one process of all."""
    alert_spend_times: Annotated[float, Meta(ge=1)] = 2.0
    """A day's spending is told once it is so many times the mean of the 7 days before,"""
    alert_spend_floor_usd_micros: Count = 10_000_000
    """and more than this: of a user, an agent or a tenant."""
    alert_budget_share: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """A pool of the day is told of once so much of it is spent."""
    alert_errors_share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """An agent is told of whose runs of the last hour failed by more than this share,"""
    alert_errors_min: Count = 5
    """and at least so many."""
    alert_queue_s: Seconds = 300.0
    """A tenant is told that its oldest ready run has waited for longer than this."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"
    """`auto` writes text to a terminal and JSON lines elsewhere."""

    endpoints: tuple[Endpoint, ...] = ()
    """Filled in from the environment and `providers`; not a setting of its own."""

    @property
    def day_defaults(self) -> Defaults:
        """The bounds of a day's pools where an operator set none for a tenant."""
        usd, user_usd = self.tenant_usd_day, self.user_usd_day
        return Defaults(
            usd_micros=None if usd is None else round(usd * 1_000_000),
            tokens=self.tenant_tokens_day,
            user_usd_micros=None if user_usd is None else round(user_usd * 1_000_000),
            user_tokens=self.user_tokens_day,
        )

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)

    @property
    def root_key_path(self) -> Path:
        return Path(self.root_key_file).expanduser().absolute() if self.root_key_file else self.data_path / "root.key"


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of this process. Raises Invalid, naming the setting."""
    env = os.environ if environ is None else environ
    values = _from_env(env)
    data_dir = Path(values.get("data_dir") or _default_data_dir(env)).expanduser().absolute()
    values["data_dir"] = str(data_dir)
    merged = {**_from_file(env, data_dir), **values}
    merged["rates"] = _rates(merged.get("rates", {}), env)
    try:
        settings = msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"A setting cannot be used: {error}.", code="settings.invalid") from None
    return msgspec.structs.replace(settings, endpoints=_endpoints(settings, env))


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    """The variables SOJOURN_<SETTING>. Kubernetes sets SOJOURN_PORT=tcp://... for a service of our name: not ours."""
    env = {key: value for key, value in env.items() if not value.startswith("tcp://")}
    tables = {"endpoints", "tools", "providers", "issuers", "prices", "windows", "rates"}
    simple = {field.name for field in msgspec.structs.fields(Settings)} - tables
    found = {name: env[f"SOJOURN_{name.upper()}"] for name in sorted(simple) if f"SOJOURN_{name.upper()}" in env}
    for group in ("sandbox_limits", "model_time_outs"):
        prefix = f"SOJOURN_{group.upper()}_"
        inner = {key[len(prefix) :].lower(): value for key, value in env.items() if key.startswith(prefix)}
        if inner:
            found[group] = inner
    return found


def _rates(given: Any, env: Mapping[str, str]) -> Any:
    """The file's rate limits with those of the environment, and those read that are written as 20/60/5.

    Raises Invalid. What is no table is left for the conversion to refuse.
    """
    if not (isinstance(given, dict) and all(isinstance(limits, dict) for limits in given.values())):
        return given
    rates: dict[str, dict[str, Any]] = {class_: dict(limits) for class_, limits in given.items()}
    for class_, _, subject in (name.partition(".") for name in NAMES):
        if (limit := env.get(f"SOJOURN_RATES_{class_}_{subject}".upper())) is not None:
            rates.setdefault(class_, {})[subject] = limit
    return {
        class_: {subject: read(limit) if isinstance(limit, str) else limit for subject, limit in limits.items()}
        for class_, limits in rates.items()
    }


def _from_file(env: Mapping[str, str], data_dir: Path) -> dict[str, Any]:
    named = env.get("SOJOURN_CONFIG")
    path = Path(named) if named else data_dir / "sojourn.toml"
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        if named:
            raise Invalid(f"SOJOURN_CONFIG names {named}, which does not exist.", code="settings.invalid") from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"The settings file {path} cannot be read: {error}.", code="settings.invalid") from None


def _default_data_dir(env: Mapping[str, str]) -> str:
    if os.geteuid() == 0:
        return "/var/lib/sojourn"
    return str(Path(env.get("XDG_DATA_HOME") or "~/.local/share") / "sojourn")


def _endpoints(settings: Settings, env: Mapping[str, str]) -> tuple[Endpoint, ...]:
    """OpenAI and Anthropic as everybody names them, then the providers of the settings file."""
    known = {
        "openai": _known(env, "openai", "https://api.openai.com/v1"),
        "anthropic": _known(env, "anthropic", "https://api.anthropic.com"),
    }
    return tuple(
        Endpoint(
            name=name,
            dialect=provider.dialect,
            base_url=provider.base_url,
            keys=tuple(key.strip() for key in env.get(provider.api_key_env, "").split(",") if key.strip()),
            key_env=provider.api_key_env,
            key_required=provider.key_required,
            headers=provider.headers,
            tool_mode=provider.tool_mode,
            calls_max=provider.calls_max,
            cache_key=provider.cache_key or provider.base_url.startswith("https://api.openai.com"),
            time_outs=settings.model_time_outs,
        )
        for name, provider in {**known, **settings.providers}.items()
    )


def _known(env: Mapping[str, str], name: Literal["openai", "anthropic"], default_url: str) -> Provider:
    """A provider that the environment describes; a server of your own behind its URL may need no key."""
    url = env.get(f"{name.upper()}_BASE_URL")
    key_env = f"{name.upper()}_API_KEY"
    told = env.get(f"{name.upper()}_CALLS_MAX")
    try:
        calls_max = msgspec.convert(told, Count | None, strict=False)
    except msgspec.ValidationError as error:
        raise Invalid(f"{name.upper()}_CALLS_MAX cannot be used: {error}.", code="settings.invalid") from None
    return Provider(
        dialect=name, base_url=url or default_url, api_key_env=key_env, key_required=not url, calls_max=calls_max
    )
