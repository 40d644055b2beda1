"""A run's settings: one YAML file, checked before anything is loaded, and `key=value` on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError
from pydantic.fields import FieldInfo

Chance = Annotated[float, Field(ge=0, le=1)]
"""A probability."""

Count = Annotated[int, Field(ge=0)]


def expand_home(value: Any) -> Any:
    return Path(value).expanduser() if isinstance(value, str) else value


UserPath = Annotated[Path, BeforeValidator(expand_home)]
"""A path in which `~` is the home folder."""


class Settings(BaseModel):
    """A part of a run's settings: unknown keys are errors, and a number in quotes is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)


class OptimizerSettings(Settings):
    name: Literal["adamw", "adamw8bit", "muon", "prodigy"] = "adamw"
    """`muon`: for the blocks' matrices, with AdamW for the rest. `adamw8bit` needs bitsandbytes."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Prodigy estimates its own and takes this as a factor: 1."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    bias_correction: bool = True
    """Prodigy's."""
    safeguard_warmup: bool = True
    """Prodigy's: keep the estimate of the step size from growing during warm-up."""


class ScheduleSettings(Settings):
    """The learning rate: linear warm-up, constant, half cosine to 0."""

    warmup: Count = 0
    """Steps over which the rate rises from 0."""
    cooldown: Count = 0
    """Steps over which it falls to 0 at the end; as many as the run has for a cosine throughout."""


class CheckpointSettings(Settings):
    every: PositiveInt = 500
    """Steps."""
    keep: PositiveInt = 2
    """The newest ones; older are deleted. With 1, the one before stays until steps have shown the newest sound."""
    export: bool = True
    """Write the files for the nodes with every checkpoint, not only at the end."""


class LogSettings(Settings):
    every: PositiveInt = 10
    """Steps over which figures are averaged."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Names that accelerate knows: tensorboard, wandb, ..."""
    project: str = "realisr"
    """What a tracker groups runs by."""


class ValidationSettings(Settings):
    images: tuple[UserPath, ...] = ()
    """Files or folders of clean images, degraded once and alike for every validation."""
    every: PositiveInt = 500
    """Steps between sample grids."""
    count: PositiveInt = 4
    """Largest number of images."""


class RunConfig(Settings):
    """What every method's run has. Sizes are pixels, times are steps of the optimizer."""

    out: UserPath
    """Folder of the run: checkpoints, samples, logs, and the trained files."""
    seed: Count = 0
    steps: PositiveInt
    batch: PositiveInt = 1
    """Samples of a micro-batch on one device."""
    accumulate: PositiveInt = 1
    """Micro-batches of a step on each device."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """`bf16`: mixed precision; trained parameters stay in float32."""
    compile: bool = False
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient."""
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of the average of the weights that is validated and exported; null: the weights themselves."""
    workers: Count = 2
    """Processes of each device that read data; 0: the training process itself, as always outside of Linux."""
    threads: PositiveInt | None = None
    """Of torch on the CPU; null: torch decides."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    checkpoints: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    validation: ValidationSettings = ValidationSettings()


ConfigT = TypeVar("ConfigT", bound=Settings)


def read_config(path: Path, overrides: Sequence[str], config_type: type[ConfigT]) -> ConfigT:
    """The settings of a YAML file with `key=value` or `part.key=value` on top, values in YAML.

    Raises ValueError with one line per mistake: the key, what is wrong, and the nearest known key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no file {path}; training/configs holds a settings file for each run"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `key: value` lines, one of them `out`")
    for override in overrides:
        apply_override(content, override)
    try:
        return config_type.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}:\n" + "\n".join(explain(error, config_type))) from error


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set one `part.key=value` in place. Raises ValueError when it is no such text."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"'{override}' is no setting: write key=value, for example batch=4 or optimizer.name=adamw")
    *parts, last = key.split(".")
    place = content
    for part in parts:
        inner = place.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ValueError(f"'{override}': {part} holds {inner!r}, which has no parts")
        place = inner
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"'{override}': the value is not YAML: {error}") from error


def explain(error: ValidationError, config_type: type[BaseModel]) -> list[str]:
    """A line per mistake in a file's terms."""
    mistakes: list[dict[str, Any]] = [dict(mistake) for mistake in error.errors()]
    places = [tuple(mistake["loc"]) for mistake in mistakes]
    lines = []
    for mistake, place in zip(mistakes, places, strict=True):
        # A list whose items are wrong also counts as one without items.
        inside = any(len(other) > len(place) and other[: len(place)] == place for other in places)
        if not (mistake["type"] == "too_short" and inside):
            lines.append(f"  {explain_one(mistake, config_type)}")
    return lines


def explain_one(mistake: Mapping[str, Any], config_type: type[BaseModel]) -> str:
    place = tuple(mistake["loc"])
    key = ".".join(str(part) for part in place)
    if mistake["type"] == "extra_forbidden":
        known = known_keys(config_type, place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.4)
        advice = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{key}: there is no such setting; {advice}"
    if mistake["type"] == "missing":
        return f"{key}: this setting is needed"
    return f"{key}: {mistake['msg'][:1].lower()}{mistake['msg'][1:]}, not {mistake['input']!r}"


def known_keys(config_type: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The settings beside a key, found by walking the models down to its part."""
    models = [config_type]
    for part in place:
        if not isinstance(part, str):  # a place in a list
            continue
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        inner = [kind for field in fields for kind in settings_types(field)]
        # Where a list holds settings of several kinds, the kind's name is a part of the place.
        models = inner or [model for model in models if part in names_of_kind(model)] or models
    return sorted({key for model in models for key in model.model_fields})


def settings_types(field: FieldInfo) -> list[type[BaseModel]]:
    """The settings classes within a field's annotation, whatever is around them."""
    found: list[type[BaseModel]] = []
    waiting: list[Any] = [field.annotation]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        waiting.extend(getattr(kind, "__args__", ()))
    return found


def names_of_kind(model: type[BaseModel]) -> set[Any]:
    """What a class's own name is where several may stand: the values that its `kind` takes."""
    field = model.model_fields.get("kind")
    return set(getattr(field.annotation, "__args__", ())) if field is not None else set()
