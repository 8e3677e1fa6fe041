"""Configuration of every command: strict pydantic models, YAML files, command-line overrides; and
whether it is the one that an earlier start had.

A command's configuration is one YAML file in configs/ plus overrides of any field:

    python -m train --config configs/demo_mhc.yaml --name X --optimizer.lr 0.01
"""

from __future__ import annotations

import difflib
import functools
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar, get_args

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mhc_model.errors import ConfigError, MHCError
from mhc_model.files import replace_text
from mhc_model.running import check_address, check_temp_dir, private_directory


class Settings(BaseModel):
    """Base of every configuration: frozen; unknown keys and non-finite numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)
P = ParamSpec("P")


class RaySettings(Settings):
    """Where Ray runs. Two runs can share a machine: each may have its own ports and directory."""

    address: str | None = Field(
        None,
        description="none starts a private cluster on this machine; 'auto' joins the running one "
        "(as does `ray job submit`); or host:port",
    )
    num_cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a private cluster; none counts the machine's cores"
    )
    temp_dir: str | None = Field(
        None,
        description="absolute directory of a private cluster's sockets and logs, which stay there; "
        "keep it short. None is one that only this user can read, deleted at the end",
    )

    def init_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `ray.init`. Call it before Ray is imported: Ray reads the
        authentication mode then.

        A private cluster is closed to others: token authentication, with a token of this process
        unless the environment sets RAY_AUTH_MODE, and a directory that only this user can read.

        Raises:
            ConfigError: if the address is none, or the directory is too long for sockets.
        """
        source = "RAY_ADDRESS" if self.address is None else "ray.address"
        address = os.environ.get("RAY_ADDRESS") if self.address is None else self.address
        if address and address != "local":
            check_address(address, source)
            return {"address": address, "log_to_driver": True}
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", os.urandom(32).hex())
        # A busy machine takes longer than the 20 seconds that Ray gives its own server.
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "120")
        arguments: dict[str, Any] = {"address": "local", "include_dashboard": False}
        if self.num_cpus is not None:
            arguments["num_cpus"] = self.num_cpus
        directory, source = self.temp_dir, "ray.temp_dir"
        if directory is None:
            directory, source = os.environ.get("RAY_TMPDIR"), "RAY_TMPDIR"
        if directory is None:
            directory, source = str(private_directory()), "the place for temporary files (TMPDIR)"
        check_temp_dir(directory, source)
        arguments["_temp_dir"] = directory
        return arguments


_MOST_FAULTS, _MOST_SHOWN = 10, 300  # of an error: what a file holds may be long


def validate_settings(settings: type[S], values: Any, source: str) -> S:
    """Builds `settings` from plain values.

    Raises:
        ConfigError: naming `source`, the field, the value and what is allowed; an unknown key gets
            the nearest known one.
    """
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        lines = [_explain(settings, detail) for detail in found[:_MOST_FAULTS]]
        lines += [f"and {len(found) - len(lines)} more"] if len(found) > len(lines) else []
        raise ConfigError(f"{source}: " + "; ".join(lines)) from None


def _explain(settings: type[BaseModel], detail: Any) -> str:
    location = detail["loc"]
    name = ".".join(str(part) for part in location)
    if detail["type"] == "missing":  # its input is the whole parent, which tells nothing
        return f"{name} is missing: {detail['msg']}"
    if detail["type"] != "extra_forbidden":
        value = detail["input"]
        if not name and isinstance(value, dict):  # fields that contradict each other: it names them
            return f"configuration: {detail['msg']}"
        return f"{name or 'configuration'} is {value!r:.{_MOST_SHOWN}}: {detail['msg']}"
    fields = _fields_at(settings, location[:-1])
    near = difflib.get_close_matches(str(location[-1]), fields, n=1)
    # A field in the wrong place comes before one with a like name in this.
    near = [path for path in _paths(settings) if path.split(".")[-1] == location[-1]][:1] or near
    hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(sorted(fields))}"
    return f"unknown key {name!r}; {hint}"


def _fields_at(settings: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Names of the fields of the nested model at `path`."""
    current: type[BaseModel] = settings
    for part in path:
        field = current.model_fields.get(str(part))
        if field is None:  # a list index or the tag of a union: the model stays the same
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if models:
            current = models[0]
    return list(current.model_fields)


def _paths(settings: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted paths of all fields, those of nested models included."""
    paths = []
    for name, field in settings.model_fields.items():
        paths.append(prefix + name)
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                paths += _paths(candidate, f"{prefix}{name}.")
    return paths


def load_settings(settings: type[S], path: str | Path) -> S:
    """Reads one YAML file.

    Raises:
        ConfigError: if the file is missing, is not YAML, or does not fit `settings`.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} is not YAML: {error}") from None
    return validate_settings(settings, {} if values is None else values, str(path))


def dump_settings(settings: Settings, path: str | Path) -> None:
    """Writes the resolved configuration as YAML, whole or not at all."""
    replace_text(Path(path), to_yaml(settings))


def to_yaml(settings: Settings) -> str:
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_command_line(
    settings: type[S],
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    summary: Callable[[S], str] | None = None,
) -> S:
    """The configuration of a command: `--config FILE` gives the defaults, flags override fields.

    `--dry-run` prints the resolved configuration, after it a comment with its `summary`, and exits.

    Raises:
        ConfigError: if the file or the resulting configuration is invalid.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    path = _take_value(arguments, "--config")
    dry_run = "--dry-run" in arguments
    if dry_run:
        arguments.remove("--dry-run")
    default = tyro.MISSING_NONPROP if path is None else load_settings(settings, path)
    try:
        resolved = tyro.cli(
            settings,
            prog=prog,
            description=description
            + "\n\n--config FILE reads the defaults from a YAML file; --dry-run prints the "
            "resolved configuration and exits.",
            args=arguments,
            default=default,
            config=(tyro.conf.AvoidSubcommands,),
        )
    except ValidationError as error:
        lines = [_explain(settings, detail) for detail in error.errors()]
        raise ConfigError(f"{prog}: " + "; ".join(lines)) from None
    if dry_run:
        print(to_yaml(resolved), end="")
        if summary is not None:
            print(f"# {summary(resolved)}")
        raise SystemExit(0)
    return resolved


def _take_value(arguments: list[str], flag: str) -> str | None:
    """Removes `flag VALUE` or `flag=VALUE` from the arguments; the last one wins."""
    value, rest, position = None, [], 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == flag:
            if position + 1 == len(arguments):
                raise ConfigError(f"{flag} needs a file name")
            value = arguments[position + 1]
            position += 2
            continue
        if argument.startswith(flag + "="):
            value = argument[len(flag) + 1 :]
        else:
            rest.append(argument)
        position += 1
    arguments[:] = rest
    return value


class Difference(NamedTuple):
    """A leaf in which two records differ; None where a record lacks it."""

    path: str  # its keys, with dots between them
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.path}: {self.before!r} -> {self.now!r}"


def differences(before: Any, now: Any, free: Collection[str] = ()) -> list[Difference]:
    """Every leaf in which what an earlier start wrote down differs from what is given now.

    A directory belongs to one run: whoever goes on in it compares first.

    Args:
        before: a tree of dictionaries, as from a configuration or a JSON file.
        now: the same of this start.
        free: paths that may differ, with all that lies below them.
    """
    return [leaf for leaf in _leaves("", before, now, free) if leaf.before != leaf.now]


def _leaves(path: str, before: Any, now: Any, free: Collection[str]) -> Iterator[Difference]:
    if path in free:
        return
    if not (isinstance(before, dict) and isinstance(now, dict)):
        yield Difference(path, before, now)
        return
    for key in {**before, **now}:
        yield from _leaves(
            f"{path}.{key}" if path else str(key), before.get(key), now.get(key), free
        )


def check_same_settings(before: S, now: S, free: Collection[str], what: str) -> None:
    """Refuses to go on with what was started with other settings.

    Args:
        before: of the earlier start.
        now: of this one.
        free: as for `differences`.
        what: what exists, and where, in words.

    Raises:
        ConfigError: naming every field that differs, with both values.
    """
    if different := differences(before.model_dump(), now.model_dump(), free):
        raise ConfigError(
            f"{what} with other settings: {'; '.join(map(str, different))}; give another name, or "
            f"delete the directory"
        )


def reports_errors(main: Callable[P, int]) -> Callable[P, int]:
    """Turns an `MHCError` of a command into a line on standard error and the exit status 2."""

    @functools.wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except MHCError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return guarded
