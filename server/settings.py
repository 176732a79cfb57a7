"""Every setting of the server with its meaning, unit and range; variables, flags and `--help` derive from here."""

import difflib
import ipaddress
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationInfo, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from server import cli
from server.cli import Environment, Variables, split
from server.inference.hardware import available_cpus

EngineName = Literal["auto", "openvino", "onnx", "onnx-fp32", "torch"]
LogLevel = Literal["debug", "info", "warning", "error"]
PREFIX = "DISTRINEWS_"
_NOT_OURS = {"DISTRINEWS_TERMINAL", "DISTRINEWS_API_KEY"}  # read by the command line, which may start the server
_SERVICE_LINK = re.compile(
    r"DISTRINEWS_(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT=\w+://.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*)"
)


RATE_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_RATE = re.compile(rf"[1-9]\d{{0,8}}/({'|'.join(RATE_UNITS)})")
_BYTES_PER_CHARACTER = 12  # of JSON at most: an escaped surrogate pair, such as \ud83d\ude00
_SPARE_FILES = 100  # of our own: the model, the log, Prometheus, an issuer of tokens
_MOST_CONNECTIONS = 2000  # some times as many as the texts of a full queue

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-f:.]+\](:\d{1,5})?")


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        if value != "*" and not _ORIGIN.fullmatch(value):
            raise ValueError(
                f"{value!r} is no origin, such as https://news.example or http://localhost:3000, in small letters and without a path"
            )
    return values


def _named_origins(values: tuple[str, ...]) -> tuple[str, ...]:
    if "*" in values:
        raise ValueError("origins are named one by one here, such as https://huggingface.co")
    return _origins(values)


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            ipaddress.ip_network(value)
        except ValueError:
            raise ValueError(f"{value!r} is no address or network, such as 10.0.0.7 or 10.0.0.0/8") from None
    return values


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError("should be a URL, such as https://accounts.example/realms/news")
    return value


def _no_service_link(value: object, info: ValidationInfo) -> object:
    """Refuses the variables that Kubernetes makes of a Service, such as DISTRINEWS_PORT=tcp://10.0.0.1:8080."""
    if isinstance(value, str) and re.match(r"\w+://", value):
        service = f"{PREFIX}{info.field_name}".lower().removesuffix("_port").replace("_", "-")
        raise ValueError(
            f"is set by Kubernetes for the Service {service}, and is no port: put enableServiceLinks: false into the "
            "pod's spec, or set the variable there"
        )
    return value


def above_port(data: dict[str, Any]) -> int:
    port: int = data["port"]
    return port and (port + 1000 if port <= 64_535 else port - 1000)


def by_log_format(data: dict[str, Any]) -> LogLevel:
    return "info" if data["log_format"] == "json" else "warning"


def _rate(expression: str) -> str:
    if not all(_RATE.fullmatch(part.strip()) for part in expression.split(";")):
        raise ValueError("should be a number of requests and a time, such as 600/minute or 20/second;600/minute")
    return expression


def most_connections() -> int:
    """Returns the number of connections that this process has open files for, up to a number that is enough."""
    return max(1, min(_MOST_CONNECTIONS, _open_files() - _SPARE_FILES))


def _within_open_files(connections: int) -> int:
    room = max(1, _open_files() - _SPARE_FILES)
    if connections > room:
        raise ValueError(f"this process has open files for {room:,} connections: choose fewer, or raise ulimit -n")
    return connections


def _open_files() -> int:
    if sys.platform == "win32":
        return _MOST_CONNECTIONS + _SPARE_FILES  # it counts no sockets
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _installed(*modules: str) -> bool:
    try:
        return all(find_spec(module) for module in modules)
    except ModuleNotFoundError:  # not even what they are part of
        return False


Origins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(_origins)]
NamedOrigins = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(_named_origins)]
Networks = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split), AfterValidator(_networks)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]


class _Secrets(Environment):
    model_config = SettingsConfigDict(env_prefix=PREFIX)

    api_keys: SecretStr | None = None


class _PortOfTheHost(Variables):
    """Reads the variable PORT, in which many hosts give a container its port."""

    def __call__(self) -> dict[str, Any]:
        return {"port": port} if (port := os.environ.get("PORT")) else {}


class Settings(cli.Settings):
    """Settings of the server, from flags and from variables with the prefix DISTRINEWS_."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)
    sources = (Variables, _PortOfTheHost)

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; 0.0.0.0 is every one of this machine."""

    port: Annotated[int, BeforeValidator(_no_service_link)] = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one, which the first line of output names. Without this setting the variable PORT counts, which hosts such as Hugging Face Spaces set."""

    metrics_port: Annotated[
        Annotated[int, Field(ge=0, le=65535)] | Literal["off"], BeforeValidator(_no_service_link)
    ] = Field(default_factory=above_port)
    """Port of /metrics for Prometheus: by default 1,000 above --port (9080), 0 for a free one, which the first line of output names, or off."""

    engine: EngineName = "auto"
    """Library that runs the model: openvino (int8, the fastest in batches), onnx (int8, the smallest), the same in fp32, or torch (bf16 on a CUDA device, else slow); auto takes torch on a CUDA device, else the first of them that is installed and in the folder."""

    workers: int = Field(default_factory=available_cpus, ge=1, le=256)
    """Batches computed at the same time, one thread each. By default the CPUs that this process may use; a GPU gets no more than 2."""

    max_text_characters: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most characters of a text; a longer one is refused. The model reads only its first tokens."""

    max_batch_texts: int = Field(default=64, ge=1, le=1024)
    """Most texts of one request; a request with more is refused."""

    max_queued_texts: int = Field(default=512, ge=1, le=1_000_000)
    """Most texts that wait, no fewer than one request may have; a request for which there is no room is refused with 429."""

    max_queued_tokens: int = Field(default=32_768, ge=64, le=100_000_000)
    """Most tokens of waiting texts; a request for which there is no room is refused with 429, unless nothing waits."""

    max_connections: Annotated[int, AfterValidator(_within_open_files)] = Field(
        default_factory=most_connections, ge=1, le=100_000
    )
    """Most open connections. For one more, the one that has waited longest without a request is closed. By default 2,000, or what the limit on open files (ulimit -n) has room for."""

    keep_alive_seconds: int = Field(default=75, ge=1, le=3600)
    """Seconds for which a connection stays open without a request: more than the 60 s for which most load balancers keep theirs."""

    timeout_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Seconds that a request may take unless its header X-Request-Timeout-Ms sets another time."""

    model_name: str = Field(default="distrinews", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the model under /v2/models, by which clients of KServe and Triton call it: letters, digits, dots, _ and -."""

    model_version: str = Field(default="1", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Version of the model under /v2/models, of the same characters."""

    drain_seconds: float = Field(default=5.0, ge=0, le=600)
    """Seconds for which a server still answers after the signal to stop, while load balancers learn that it is not ready."""

    log_format: Literal["text", "json"] = "text"
    """Format of the log on standard error: text to read, or json, one object a line, to collect."""

    log_level: LogLevel = Field(default_factory=by_log_format)
    """Least severe messages that are written: by default warning for text, and for json info, which adds a line for each request."""

    log_texts: bool = False
    """Log the texts of each request. They may be private."""

    traces: bool = False
    """Send spans of each request by OTLP over HTTP, to http://localhost:4318 or OTEL_EXPORTER_OTLP_ENDPOINT; the standard variables OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER and so on count too."""

    api_keys_file: Path | None = None
    """File with a line NAME:SHA256 for each key that may call in the header X-API-Key, as distrinews key NAME prints it; read again when it changes. The variable DISTRINEWS_API_KEYS may hold such lines instead; it is no flag, since others could read that."""

    oidc_issuer: HttpUrl | None = None
    """URL of an OpenID Connect issuer whose tokens (JWT) may call with Authorization: Bearer, exactly as it names itself; https, unless the network is trusted. Beside keys, either is enough."""

    oidc_audience: str | None = Field(default=None, min_length=1)
    """Audience for which tokens have to be made; needed with --oidc-issuer."""

    oidc_jwks_url: HttpUrl | None = None
    """URL of the issuer's public keys, in place of the one that its discovery document names."""

    rate_limit: Annotated[str, AfterValidator(_rate)] | None = None
    """Requests that a caller may make, such as 600/minute or 20/second;600/minute; more get 429. A batch is one request. Without keys and tokens a caller is an address. Each process counts for itself."""

    forwarded_allow_ips: Networks = ()
    """Addresses or networks of the proxies, with commas between, whose X-Forwarded-For and X-Forwarded-Proto are believed; none by default."""

    cors_origins: Origins = ()
    """Origins, with commas between, whose pages may call from a browser, such as https://news.example; * is any, and only without keys and tokens. None by default."""

    frame_origins: NamedOrigins = ()
    """Origins, with commas between, whose pages may show this server's pages in a frame, such as https://huggingface.co; none by default."""

    _secrets: _Secrets = PrivateAttr(default_factory=_Secrets)

    @classmethod
    def origin(cls, name: str) -> str:
        """Names the variable of a value that no flag gave, for an error."""
        variable = PREFIX + name.upper()
        return "PORT" if name == "port" and variable not in os.environ else variable

    @property
    def api_keys(self) -> SecretStr | None:
        """The content of DISTRINEWS_API_KEYS."""
        return self._secrets.api_keys

    @property
    def max_body_bytes(self) -> int:
        return _BYTES_PER_CHARACTER * self.max_batch_texts * self.max_text_characters + 4096

    def timeout_of(self, milliseconds: int | None) -> float:
        """Returns the seconds that a request may take whose header sets so many milliseconds, or none."""
        return self.timeout_seconds if milliseconds is None else milliseconds / 1000

    @model_validator(mode="after")
    def _authentication_is_consistent(self) -> Self:
        if self.api_keys is not None and self.api_keys_file:
            raise ValueError("--api-keys-file and DISTRINEWS_API_KEYS are both set; one of them should hold all keys")
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError("--oidc-issuer needs --oidc-audience: without it, tokens made for others would be taken")
        if not self.oidc_issuer and (self.oidc_audience or self.oidc_jwks_url):
            raise ValueError("--oidc-audience and --oidc-jwks-url mean nothing without --oidc-issuer")
        if self.oidc_issuer and not (find_spec("jwt") and find_spec("cryptography")):
            raise ValueError("--oidc-issuer needs a package that is not installed: pip install 'distrinews[oidc]'")
        if "*" in self.cors_origins and (self.api_keys_file or self.api_keys or self.oidc_issuer):
            raise ValueError("--cors-origins * lets every page call; with keys or tokens, name the origins that may")
        return self

    @model_validator(mode="after")
    def _the_queue_holds_a_request(self) -> Self:
        if self.max_batch_texts > self.max_queued_texts:
            raise ValueError(
                f"--max-batch-texts is {self.max_batch_texts}, more than --max-queued-texts, {self.max_queued_texts}: "
                f"requests of so many texts find no room; set the first to {self.max_queued_texts} at most or the second to {self.max_batch_texts} at least"
            )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port and self.port == self.metrics_port:
            raise ValueError(f"--port and --metrics-port are both {self.port}: choose two, or --metrics-port off")
        return self

    @model_validator(mode="after")
    def _traces_can_be_made(self) -> Self:
        if self.traces and not _installed("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"):
            raise ValueError("--traces needs packages that are not installed: pip install 'distrinews[telemetry]'")
        return self

    @model_validator(mode="after")
    def _every_variable_names_a_setting(self) -> Self:
        known = [PREFIX + name.upper() for name in (*Settings.model_fields, *_Secrets.model_fields)]
        for variable, value in os.environ.items():
            if not variable.upper().startswith(PREFIX) or variable in {*known, *_NOT_OURS}:
                continue
            # A Service whose name begins with distrinews makes variables in every pod of its namespace.
            if not _SERVICE_LINK.fullmatch(f"{variable}={value}"):
                near = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=0)
                raise ValueError(f"the environment variable {variable} names no setting; the nearest is {near[0]}")
        return self
