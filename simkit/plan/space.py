"""The deployments to choose from: every combination of what a user allows, in a fixed order."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from simkit.cluster.topology import LinkSpec
from simkit.engine.deployment import Deployment
from simkit.engine.settings import EngineSettings
from simkit.errors import InputError, suggestion
from simkit.models.catalog import load_model
from simkit.models.device import Device, load_device
from simkit.plan.split import TOGETHER, Split

MOST_KINDS = 100_000

Setting = str | int | float | bool | None


class DeviceOffer(BaseModel):
    """A device that can be had, at a price; what is left out is the device's own figure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    usd_per_hour: float | None = Field(default=None, ge=0, le=1e6, allow_inf_nan=False, description="of one GPU")
    power_w: float | None = Field(default=None, gt=0, le=1e5, allow_inf_nan=False, description="limit of one GPU")
    idle_w: float | None = Field(default=None, ge=0, le=1e5, allow_inf_nan=False)
    available: int | None = Field(default=None, ge=1, description="GPUs that can be had; default any number")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: object) -> object:
        return {"device": given} if isinstance(given, str) else given


class SearchSpace(BaseModel):
    """Lists of what may be chosen; a list left out has the deployment's own value only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field(default=(), max_length=100)
    devices: tuple[DeviceOffer, ...] = Field(default=(), max_length=100)
    tensor: tuple[int, ...] = Field(default=(), max_length=20)
    pipeline: tuple[int, ...] = Field(default=(), max_length=20)
    expert_parallel: tuple[bool, ...] = Field(
        default=(), max_length=2, description="experts spread over the tensor group"
    )
    weights: tuple[str | None, ...] = Field(default=(), max_length=20)
    kv: tuple[str, ...] = Field(default=(), max_length=20)
    engine: dict[str, tuple[Setting, ...]] = Field(
        default_factory=dict, max_length=20, description="engine settings by name, a list of values each"
    )
    disaggregated: tuple[Split | None, ...] = Field(
        default=(), max_length=50, description="groups of prefill and decode replicas, 1P2D; together is none"
    )
    link: LinkSpec = Field(default=LinkSpec(kind="infiniband-ndr"), description="from prefill to decode replicas")
    replicas: int = Field(default=64, ge=1, le=10_000, description="the most replicas, or groups, of a deployment")

    @field_validator("disaggregated", mode="before")
    @classmethod
    def _together_is_none(cls, given: object) -> object:
        several = [given] if isinstance(given, str) else given
        return [None if one == TOGETHER else one for one in several] if isinstance(several, list | tuple) else several

    @model_validator(mode="after")
    def _settings_are_known(self) -> Self:
        for name in self.engine:
            if name not in EngineSettings.model_fields:
                raise ValueError(f"engine.{name} is not known; {suggestion(name, EngineSettings.model_fields)}")
        return self


@dataclass(frozen=True)
class Apart:
    """A group of replicas in place of one: these compute prompts, the kind's own deployment generates."""

    prefills: int
    decodes: int
    prefill: Deployment
    link: LinkSpec


@dataclass(frozen=True)
class Kind:
    """One replica's deployment, with what a GPU of it costs and draws; how many replicas is still open.

    Where prefill and decode are apart, what is multiplied is a group: read "group" for "replica".
    """

    number: int  # in the order of the space
    deployment: Deployment
    usd_per_hour: float  # of one GPU
    power_w: float  # limit of one GPU
    idle_w: float | None  # of one GPU; None: not known
    most_replicas: int
    differs: tuple[str, ...] = field(default=())  # what tells it from the others, "h100", "tensor 2", ..
    apart: Apart | None = None

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        own = self.deployment.layout.gpus
        if self.apart is None:
            return own
        return self.apart.decodes * own + self.apart.prefills * self.apart.prefill.layout.gpus

    @property
    def noun(self) -> str:
        """What is multiplied, in a word."""
        return "replica" if self.apart is None else "group"

    @property
    def replica_usd_per_hour(self) -> float:
        """The price of one replica."""
        return self.gpus * self.usd_per_hour

    @property
    def label(self) -> str:
        """The kind in a few words."""
        return ", ".join(self.differs)


def kinds(space: SearchSpace, base: Deployment) -> list[Kind]:
    """Every kind of replica in the space, impossible layouts included (they are found out later, with the reason).

    Raises InputError for an unknown model, device or setting, engines that share experts, or more than `MOST_KINDS`
    combinations.
    """
    settings = [[(name, value) for value in values] for name, values in space.engine.items() if values]
    if base.layout.data > 1:
        raise InputError(
            f"plan: deployment.layout.data={base.layout.data}: engines that share experts are not searched; leave data "
            "out, and look at that layout with simkit run"
        )
    axes = (
        space.models or (base.model,),
        space.devices or (DeviceOffer(device=base.device),),
        space.tensor or (base.layout.tensor,),
        space.pipeline or (base.layout.pipeline,),
        space.expert_parallel or (base.layout.expert > 1,),
        space.weights or (base.weights,),
        space.kv or (base.kv,),
        space.disaggregated or (None,),
    )
    count = 1
    for axis in (*axes, *settings):
        count *= len(axis)
    if count > MOST_KINDS:
        raise InputError(f"plan: {count} combinations to search; leave at most {MOST_KINDS}")
    devices = {offer.device: load_device(offer.device) for offer in axes[1]}
    for model in axes[0]:
        load_model(model)  # one that cannot be read is a mistake in the question, no candidate that fails
    several = tuple(len(axis) > 1 for axis in axes)
    found: list[Kind] = []
    for *chosen, engine in product(*axes, list(product(*settings))):
        found.append(_kind(len(found), base, tuple(chosen), dict(engine), devices, several, space))
    return found


def _kind(
    number: int,
    base: Deployment,
    chosen: tuple[object, ...],
    engine: dict[str, Setting],
    devices: dict[str, Device],
    several: tuple[bool, ...],
    space: SearchSpace,
) -> Kind:
    model, offer, tensor, pipeline, expert, weights, kv, split = chosen
    assert isinstance(offer, DeviceOffer)
    assert isinstance(tensor, int)
    assert split is None or isinstance(split, Split)
    device = devices[offer.device]
    own = base.layout.model_dump(exclude_unset=True)

    def deployed(own_tensor: int | None) -> Deployment:
        wide = own_tensor or tensor
        return Deployment.model_validate(
            {
                **base.model_dump(exclude_unset=True),
                "model": str(model),
                "device": offer.device,
                "layout": {**own, "tensor": wide, "pipeline": pipeline, "expert": wide if expert else 1},
                "weights": None if weights is None else str(weights),
                "kv": str(kv),
                "engine": {**base.engine.model_dump(exclude_unset=True), **engine},
            }
        )

    try:
        deployment = deployed(split.decode_tensor if split else None)
        apart = None
        if split is not None:
            apart = Apart(split.prefill, split.decode, deployed(split.prefill_tensor), space.link)
    except ValidationError as error:
        found = error.errors()[0]
        place = ".".join(map(str, found["loc"]))
        raise InputError(f"plan: {place}={found['input']!r}: {found['msg'].lower()}") from None
    words = _words(deployment, device, split, several)
    kind = Kind(
        number=number,
        deployment=deployment,
        usd_per_hour=device.usd_per_hour.value if offer.usd_per_hour is None else offer.usd_per_hour,
        power_w=device.power_w.value if offer.power_w is None else offer.power_w,
        idle_w=offer.idle_w,
        most_replicas=space.replicas,
        differs=(*words, *(f"{name} {value}" for name, value in engine.items())),
        apart=apart,
    )
    if offer.available is None:
        return kind
    return replace(kind, most_replicas=min(space.replicas, offer.available // kind.gpus))


def _name_of(model: str) -> str:
    """A model in a word: the end of its repository's name, or the folder that its config.json is in."""
    if model.endswith("config.json"):
        return Path(model).expanduser().resolve().parent.name or model
    return model.rstrip("/").split("/")[-1]


def _words(deployment: Deployment, device: Device, split: Split | None, several: tuple[bool, ...]) -> Iterator[str]:
    """Model and device always, the rest where there is a choice."""
    layout = deployment.layout
    words = (
        _name_of(deployment.model),
        device.name,
        f"tensor {layout.tensor}",
        f"pipeline {layout.pipeline}",
        "experts spread" if layout.expert > 1 else "experts cut",
        f"weights {deployment.weights or 'as published'}",
        f"KV {deployment.kv}",
        TOGETHER if split is None else split.label,
    )
    wide, deep = several[2] or layout.tensor > 1, several[3] or layout.pipeline > 1
    shown = (True, True, wide, deep, *several[4:7], several[7] or split is not None)
    yield from (word for word, show in zip(words, shown, strict=True) if show)
