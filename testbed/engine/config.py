"""Experiment and bench files: read once, checked once, frozen.

A file that was loaded is valid; a file that cannot be loaded says all that is wrong with it at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from testbed.core.bench import BenchSpec, Positive
from testbed.core.errors import ConfigError, ConfigErrors
from testbed.core.scheme import Scheme
from testbed.core.specs import AlignmentSpec, DataSpec, LoraSpec, ModelSpec, Spec, TrainingSpec
from testbed.engine.overrides import Override, parse_overrides
from testbed.engine.plain_words import explain, schema_at
from testbed.engine.preset_files import FOLDERS, Kind, find, preset_names
from testbed.engine.scheme_names import anchored, scheme_class
from testbed.engine.toml_files import KeyPath, dotted, line_numbers, line_of, parse_toml, read_text

Model = TypeVar("Model", bound=BaseModel)


class SchemeSpec(BaseModel):
    """The scheme's name; the other keys are that scheme's parameters and are checked by its class."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str = Field(
        min_length=1,
        description="a scheme of `testbed schemes`, or one of your own: module:Class or path.py:Class",
        examples=["ota-fedavg"],
    )

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The scheme's parameters."""
        return self.model_extra or {}


class BudgetSpec(Spec):
    """The run ends after the first round that exceeds one of these."""

    latency_s: Positive | None = Field(None, description="time on the run's clock")
    energy_j: Positive | None = Field(None, description="of nodes, transmitters and stages together")


class ExperimentSpec(Spec):
    """A whole experiment."""

    extends: None = Field(
        None, description="a preset or file whose keys hold where this file has none; a scheme of another name replaces"
    )
    name: str = Field(min_length=1, description="names the run's folder", examples=["my-experiment"])
    seed: int = Field(0, ge=0, description="of every random draw")
    rounds: int = Field(ge=1, description="rounds after the base model has been scored", examples=[5])
    evaluate_every: int = Field(1, ge=1, description="rounds between two scorings; the last round is always scored")
    bench: str = Field("tabletop", min_length=1, description="a bench preset of `testbed presets`, or a bench file")
    model: ModelSpec = Field(default=ModelSpec(), description="the pre-trained model")
    lora: LoraSpec = Field(default=LoraSpec(), description="the low-rank adapters")
    data: DataSpec = Field(default=DataSpec(), description="the text and its partition over the nodes")
    training: TrainingSpec = Field(default=TrainingSpec(), description="local training of one round")
    alignment: AlignmentSpec | None = Field(
        None, description="local alignment with preferences, for schemes that align"
    )
    scheme: SchemeSpec = Field(description="the scheme and its parameters", examples=[{"name": "ota-fedavg"}])
    budget: BudgetSpec = Field(default=BudgetSpec(), description="when to end early")
    calibrations: tuple[str, ...] = Field(
        (),
        description="calibrations whose profiles the run uses: carrier, timing, iq, gain, field; docs/calibration.md",
    )
    auto_calibrate: bool = Field(False, description="make those profiles anew that are absent, stale or do not match")
    audit: bool = Field(
        True, description="nodes also report their true update over the control link, so that the error is measured"
    )


@dataclass(frozen=True)
class Loaded:
    """An experiment ready to run.

    Attributes:
        spec: resolved: every default filled in, also the scheme's; existing paths absolute.
        scheme: the configured scheme.
        bench: the bench it runs on.
        file, bench_file: where they were read from.
    """

    spec: ExperimentSpec
    scheme: Scheme[Any]
    bench: BenchSpec
    file: Path
    bench_file: Path


def load_experiment(
    name_or_path: str | Path, overrides: Sequence[str] = (), seed: int | None = None, bench: str | None = None
) -> Loaded:
    """An experiment with its scheme and its bench.

    Args:
        name_or_path: a preset's name, or a TOML file.
        overrides: `key=value` with dotted keys; keys under `bench.` change the bench file's.
        seed: instead of the file's.
        bench: preset or file instead of the one the experiment names.

    Raises:
        ConfigErrors: all that is wrong.
    """
    changes = parse_overrides(overrides)
    if seed is not None:
        changes.append(Override("--seed", ("seed",), seed))
    path = find(str(name_or_path), "experiment")
    own = [change for change in changes if change.path[:1] != ("bench",) or len(change.path) == 1]
    of_bench = [change.below("bench") for change in changes if change not in own]
    if bench is not None:
        own.append(Override(f"--bench {bench}", ("bench",), bench))
    text = _Text.read(path, "experiment", ExperimentSpec, own)
    errors: list[ConfigError] = []
    spec = _check(ExperimentSpec, text, errors)
    scheme = _check_scheme(text, errors)
    loaded_bench: tuple[BenchSpec, Path] | None = None
    try:
        wanted = text.content.get("bench", ExperimentSpec.model_fields["bench"].default)
        if isinstance(wanted, str) and wanted:
            folder = None if text.overridden(("bench",)) else path.parent
            loaded_bench = _load_bench(wanted, folder, of_bench, text.place(("bench",)))
    except ConfigErrors as more:
        errors.extend(more.errors)
    except ConfigError as one:
        errors.append(one)
    if errors or spec is None or scheme is None or loaded_bench is None:
        raise ConfigErrors(errors)
    found_bench, bench_file = loaded_bench
    return Loaded(_resolved(spec, scheme, path, bench_file), scheme, found_bench, path, bench_file)


def load_bench(name_or_path: str | Path, relative_to: Path | None = None, overrides: Sequence[str] = ()) -> BenchSpec:
    """A bench.

    Args:
        name_or_path: a preset's name, or a TOML file.
        relative_to: folder in which a relative path is looked for first.
        overrides: `key=value` with dotted keys.

    Raises:
        ConfigErrors: all that is wrong.
    """
    return _load_bench(str(name_or_path), relative_to, parse_overrides(overrides), None)[0]


def load_instance(model: type[Model], name_or_path: str | Path, overrides: Sequence[str] = ()) -> Model:
    """An instance of a system's problem.

    Args:
        model: the system's instance.
        name_or_path: a preset's name, or a TOML file.
        overrides: `key=value` with dotted keys.

    Raises:
        ConfigErrors: all that is wrong.
    """
    text = _Text.read(find(str(name_or_path), "instance"), "instance", model, parse_overrides(overrides))
    errors: list[ConfigError] = []
    instance = _check(model, text, errors)
    if instance is None:
        raise ConfigErrors(errors)
    return instance


def build_scheme(spec: SchemeSpec) -> Scheme[Any]:
    """The configured scheme of a resolved experiment. Raises ConfigError where the scheme no longer is what it was."""
    text = _Text("the recorded experiment", "", {"scheme": spec.model_dump(mode="json")}, ())
    errors: list[ConfigError] = []
    scheme = _check_scheme(text, errors)
    if scheme is None:
        raise ConfigErrors(errors)
    return scheme


def config_sha256(spec: ExperimentSpec, bench: BenchSpec) -> str:
    """Fingerprint of all that decides a run: the resolved experiment and the content of its bench."""
    content = {
        "experiment": spec.model_dump(mode="json", exclude={"bench"}),
        "bench": bench.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def require_local_files(loaded: Loaded) -> None:
    """Raises ConfigErrors where a model or data path is not on this machine; the boards of a lab may hold their own."""
    errors: list[ConfigError] = []
    named = [("model.base", loaded.spec.model.base), ("data.source", loaded.spec.data.source)]
    if loaded.spec.alignment is not None:
        named.append(("alignment.source", loaded.spec.alignment.source))
    for key, value in named:
        is_path = value.startswith(("/", "./", "../", "~")) or Path(value).suffix in (".jsonl", ".json", ".csv", ".gz")
        if is_path and not Path(value).expanduser().exists():
            errors.append(
                ConfigError(
                    f"there is no file or folder {value}",
                    file=loaded.file,
                    key=key,
                    remedy=f"give another: --set {key}=PATH",
                )
            )
    if errors:
        raise ConfigErrors(errors)


def check_options(model: type[Model], overrides: Sequence[str], fixed: Mapping[str, Any]) -> Model:
    """Options of a command from `key=value` texts beside fixed ones. Raises ConfigErrors with all that is wrong."""
    changes = parse_overrides(overrides)
    text = _Text("the options", "", dict(fixed), changes)
    for change in changes:
        change.apply(text.content, schema_at(_schema(model), change.path).get("type") == "string")
    errors: list[ConfigError] = []
    options = _check(model, text, errors)
    if options is None:
        raise ConfigErrors(errors)
    return options


# --- the steps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """A file's content after the command line's changes, and where each key was written."""

    file: str
    text: str
    content: dict[str, Any]
    changes: Sequence[Override]
    parent: _Text | None = None

    @classmethod
    def read(
        cls,
        path: Path,
        kind: Kind,
        model: type[BaseModel],
        changes: Sequence[Override],
        seen: tuple[Path, ...] = (),
    ) -> _Text:
        remedy = "`testbed presets` lists what there is"
        text = read_text(path, what=kind, remedy=remedy)
        content, parent = parse_toml(text, str(path), what=kind), None
        if kind != "instance" and "extends" in content:
            parent = cls._parent(path, text, content.pop("extends"), kind, model, seen)
            content = _extended(parent.content, content)
        schema = _schema(model)
        for change in changes:
            change.apply(content, schema_at(schema, change.path).get("type") == "string")
        return cls(str(path), text, content, changes, parent)

    @classmethod
    def _parent(
        cls, path: Path, text: str, named: Any, kind: Kind, model: type[BaseModel], seen: tuple[Path, ...]
    ) -> _Text:
        """What this file extends. Raises ConfigError where that cannot be read, or extends this file in turn."""
        line = line_of(line_numbers(text), ("extends",))
        place = f"{path}:{line}" if line else str(path)
        if not isinstance(named, str) or not named:
            remedy = f'write extends = "{preset_names(kind)[0]}", or a file beside this one'
            raise ConfigError("extends names no file", file=place, key="extends", remedy=remedy)
        try:
            file = find(named, kind, path.parent)
        except ConfigError as error:
            raise ConfigError(error.message, file=place, key="extends", remedy=error.remedy) from error
        if file.resolve() in (*seen, path.resolve()):
            raise ConfigError(
                f"{file.name} extends itself by way of this file", file=place, key="extends", remedy="break the circle"
            )
        return cls.read(file, kind, model, (), (*seen, path.resolve()))

    def overridden(self, path: KeyPath) -> Override | None:
        """The last change from the command line that decided this key."""
        for change in reversed(self.changes):
            if path[: len(change.path)] == change.path:
                return change
        return None

    def place(self, path: KeyPath) -> tuple[str | None, str]:
        """File with line, and key, or the option that set it."""
        if change := self.overridden(path):
            return None, change.option
        line = line_of(line_numbers(self.text), path)
        if line is None and self.parent is not None:
            return self.parent.place(path)
        inside = [change.option for change in self.changes if path and change.path[: len(path)] == path]
        key = dotted(path) + (f" (with {', '.join(inside)})" if inside else "")
        return (f"{self.file}:{line}" if line else self.file), key


def _extended(parent: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The parent's keys with a file's own in their place: tables key by key, a scheme of another name as a whole."""
    merged = dict(parent)
    for key, value in own.items():
        below = merged.get(key)
        other_scheme = key == "scheme" and isinstance(value, Mapping) and "name" in value
        if isinstance(value, Mapping) and isinstance(below, Mapping) and not other_scheme:
            merged[key] = _extended(below, value)
        else:
            merged[key] = value
    return merged


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _check(model: type[Model], text: _Text, errors: list[ConfigError], table: str = "") -> Model | None:
    under: KeyPath = (table,) if table else ()
    content = text.content[table] if table else text.content
    try:
        return model.model_validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        errors.extend(explain(error, _schema(model), text.place, under=under))
        return None


def _check_scheme(text: _Text, errors: list[ConfigError]) -> Scheme[Any] | None:
    table = text.content.get("scheme")
    if not isinstance(table, Mapping) or not isinstance(name := table.get("name"), str) or not name:
        return None  # the experiment's own check says so
    folder = None if text.overridden(("scheme", "name")) else Path(text.file).parent
    try:
        cls = scheme_class(anchored(name, folder))
    except ConfigError as error:
        file, key = text.place(("scheme", "name"))
        errors.append(ConfigError(error.message, file=file, key=key, remedy=error.remedy))
        return None
    parameters = {key: value for key, value in table.items() if key != "name"}
    return _check(
        cls, _Text(text.file, text.text, {**text.content, "scheme": parameters}, text.changes), errors, "scheme"
    )


def _load_bench(
    name_or_path: str, folder: Path | None, changes: Sequence[Override], named_at: tuple[str | None, str] | None
) -> tuple[BenchSpec, Path]:
    try:
        path = find(name_or_path, "bench", folder)
    except ConfigError as error:
        file, key = named_at or (None, "--bench")
        raise ConfigError(error.message, file=file, key=key, remedy=error.remedy) from error
    text = _Text.read(path, "bench", BenchSpec, changes)
    errors: list[ConfigError] = []
    bench = _check(BenchSpec, text, errors)
    if bench is None:
        raise ConfigErrors(errors)
    if bench.world.recording is not None:
        world = bench.world.model_copy(update={"recording": _local(bench.world.recording, path.parent)})
        bench = bench.model_copy(update={"world": world})
    return bench, path


def _resolved(spec: ExperimentSpec, scheme: Scheme[Any], path: Path, bench_file: Path) -> ExperimentSpec:
    folder = path.parent
    name, alignment = anchored(spec.scheme.name, folder), spec.alignment
    if alignment is not None:
        here = {"source": _local(alignment.source, folder)}
        if alignment.rewards not in ("learned", "programmatic", "opposed"):
            here["rewards"] = _local(alignment.rewards, folder)
        alignment = alignment.model_copy(update=here)
    return spec.model_copy(
        update={
            "scheme": SchemeSpec(name=name, **scheme.model_dump(mode="json")),
            "bench": bench_file.stem if bench_file.parent == FOLDERS["bench"] else str(bench_file.resolve()),
            "model": spec.model.model_copy(update={"base": _local(spec.model.base, folder)}),
            "data": spec.data.model_copy(update={"source": _local(spec.data.source, folder)}),
            "alignment": alignment,
        }
    )


def _local(source: str, folder: Path) -> str:
    """The absolute path of what exists beside the file or here; anything else (builtin, hub name) as it stands."""
    for candidate in (folder / Path(source).expanduser(), Path(source).expanduser()):
        if not source.startswith("builtin:") and candidate.exists():
            return str(candidate.resolve())
    return source
