"""From a command line and YAML files to a configuration, and back to plain values."""

import argparse
import dataclasses
import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from t0jax.config.checks import check
from t0jax.config.sections import Config, ConfigError, Head


def known_keys() -> list[str]:
    """All keys, dotted: `train.steps`."""
    return [
        f"{section.name}.{key.name}"
        for section in dataclasses.fields(Config)
        for key in dataclasses.fields(section.type)  # type: ignore[arg-type]
    ]


def parse(
    argv: Sequence[str],
    description: str,
    base: Config | None = None,
    /,
    *,
    of_model: bool = False,
    **options: dict[str, Any],
) -> tuple[Config, Any]:
    """Command line -> the configuration and the script's own options.

    Args:
        argv: e.g. `["--config", "configs/toy.yaml", "--train.steps", "100"]`.
        description: for `--help`.
        base: what holds where `argv` says nothing; the defaults when None.
        of_model: the script's `--model M` is taken from `argv` (`take_model`), which `--help` says.
        **options: a script's own arguments: name -> keywords of `ArgumentParser.add_argument`.

    Returns:
        The checked configuration and a namespace of `options`.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a bad value or a contradiction.
    """
    import jsonargparse  # here: 0.1 s that a plain `import t0jax.config` does not need

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)  # for --help
    parser = jsonargparse.ArgumentParser(
        description=description,
        exit_on_error=False,
        usage=f"%(prog)s {'--model M ' * of_model}[options]",  # the keys are named below it
        formatter_class=_help_formatter(),
    )
    parser.add_argument("--config", action="config", help="YAML recipe; later values win.")
    base = base or Config()
    for section in dataclasses.fields(Config):
        default = getattr(base, section.name)
        parser.add_argument(f"--{section.name}", type=section.type, default=default)
    for name, keywords in options.items():
        parser.add_argument(f"--{name}", **keywords)
    if of_model:
        _tell_model(parser)
    _check_flags(argv, [*known_keys(), *options, "config", "help", "print_config"])
    try:
        namespace = parser.parse_args(list(argv))
        parsed = parser.instantiate(namespace)
    except (jsonargparse.ArgumentError, OSError) as error:
        raise ConfigError(str(error)) from None
    sections = {s.name: parsed[s.name] for s in dataclasses.fields(Config)}
    return check(Config(**sections)), parsed


def _help_formatter() -> Any:
    """jsonargparse's, which leaves the lines of a script's description as they are."""
    import jsonargparse

    bases = argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter
    return type("HelpFormatter", bases, {})


def _tell_model(parser: Any) -> None:
    """Has `--help` say what `--model` takes in scripts that read a model."""
    for action in parser._actions:
        if "--model" in action.option_strings:
            action.metavar, action.help = "M", MODEL_HELP


MODEL_HELP = "A run folder, one of its checkpoints, or a Hugging Face directory."


def take_model(argv: Sequence[str]) -> tuple[Path, list[str]]:
    """A script's `--model M` and its other arguments; `--model.KEY` are the configuration's and stay.

    Raises:
        ConfigError: no `--model`, unless it is `--help` that was asked for.
    """
    rest = [word for argument in argv for word in _split_model(argument)]
    if "--model" not in rest:
        if "--help" in rest:
            return Path(), rest
        raise ConfigError("no model: give --model DIR (a run, a checkpoint, or a HF directory)")
    at = rest.index("--model")
    if at + 1 == len(rest):
        raise ConfigError("--model needs a folder")
    return Path(rest[at + 1]), rest[:at] + rest[at + 2 :]


def _split_model(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--model=") else [argument]


def refuse_unread(argv: Sequence[str], read: Collection[str], way_out: str) -> None:
    """Refuses keys of the configuration that a script would take and not read.

    Args:
        argv: its arguments.
        read: the keys that it reads, or sections of which it reads all; "config", of recipes.
        way_out: what to do instead.

    Raises:
        ConfigError: names them.
    """
    given = [word.removeprefix("--").partition("=")[0] for word in argv if word.startswith("--")]
    keys = [name for name in given if name in (*known_keys(), "config")]
    unread = [key for key in keys if key not in read and key.partition(".")[0] not in read]
    if unread:
        raise ConfigError(f"{', '.join(f'--{key}' for key in unread)} would not be read; {way_out}")


def _check_flags(argv: Sequence[str], known: Sequence[str]) -> None:
    for flag, value in zip(argv, [*argv[1:], ""], strict=False):
        name = flag.removeprefix("--").split("=")[0]
        if flag.startswith("--") and name not in known:
            raise ConfigError(_unknown(name, known))
        if flag in ("--config", "--config=") or flag.startswith("--config="):
            path = Path(flag.partition("=")[2] or value)
            if path.exists():
                _check_keys(read_yaml(path), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, read safely."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not a mapping of sections")
    return content


def _check_keys(content: Mapping[str, Any], where: str) -> None:
    sections = [section.name for section in dataclasses.fields(Config)]
    for section, values in content.items():
        if section not in sections:
            raise ConfigError(f"{where}: {_unknown(section, sections)}")
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"{where}: section {section!r} holds {values!r}, not keys")
        for key in values or {}:
            if f"{section}.{key}" not in known_keys():
                raise ConfigError(f"{where}: {_unknown(f'{section}.{key}', known_keys())}")


def _unknown(name: str, known: Sequence[str]) -> str:
    near = [key for key in known if key.rpartition(".")[2] == name]
    near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "; --help names them all"
    return f"unknown configuration key {name!r}{hint}"


def from_dict(values: Mapping[str, Any], where: str) -> Config:
    """The inverse of `to_dict`; `where` names the file in errors."""
    _check_keys(values, where)
    sections = {}
    for section in dataclasses.fields(Config):
        given = {k: _as_field(k, v) for k, v in (values.get(section.name) or {}).items()}
        sections[section.name] = section.type(**given)  # type: ignore[operator]
    return Config(**sections)


def _as_field(key: str, value: Any) -> Any:
    """A plain value of a file as the field of a section."""
    if key == "heads":
        return tuple(Head(**(head | {"labels": tuple(head["labels"])})) for head in value)
    return tuple(value) if isinstance(value, list) else value
