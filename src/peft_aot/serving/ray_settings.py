"""What the arguments of a Serve application may be, checked before anything is started."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from peft_aot.aot.placement import Name
from peft_aot.suggestions import did_you_mean

from .body import Precision
from .http.auth import check_exposure, read_keys
from .http.settings import Settings
from .limits import Limits

EVERYWHERE = "0.0.0.0"  # where Serve's proxies listen, whatever their own settings say


class HttpArguments(BaseModel):
    """What callers may do over HTTP."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loading: Annotated[bool, Field(description="Whether tasks may be loaded and unloaded; needs an admin key.")] = False
    hub: Annotated[tuple[str, ...], Field(description="Hub ids that may be loaded: org/name, or org/*.")] = ()
    api_key_file: Annotated[Path | None, Field(description="File of the key; else PEFT_AOT_API_KEY, if set.")] = None
    admin_key_file: Annotated[Path | None, Field(description="File of the admin key; else PEFT_AOT_ADMIN_KEY.")] = None
    timeout: Annotated[float, Field(gt=0, description="Seconds that a call may take if it does not say.")] = 30.0

    def settings(self, tasks: Path, limits: Limits) -> Settings:
        """Return the settings of the HTTP application.

        Args:
            tasks: Folder that adapters may be loaded from.
            limits: Of the engine.

        Raises:
            ValueError: Everybody could load tasks, or a key is no good.
            OSError: A key's file cannot be read.
        """
        keys = read_keys(self.api_key_file, self.admin_key_file)
        check_exposure(EVERYWHERE, keys, self.loading)
        return Settings(
            keys=keys,
            loading=self.loading,
            adapters=(tasks,),
            hub=self.hub,
            max_texts=min(Settings.max_texts, limits.of_one_task),
            timeout=self.timeout,
            max_timeout=max(self.timeout, Settings.max_timeout),
        )


class Arguments(BaseModel):
    """The `args` of the application in a Serve configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, description="Hub id or path of the backbone.")]
    tasks: Annotated[Path, Field(description="Folder of adapters, on storage that all nodes share; absolute.")]
    placement: Annotated[Name, Field(description="Where rows are kept.")] = "auto"
    memory_budget: Annotated[int, Field(gt=0)] | Literal["auto"] | None = "auto"
    precision: Annotated[Precision, Field(description="Of the backbone's weights.")] = "auto"
    device: Annotated[str | None, Field(description="Where to run; none is the accelerator, if there is one.")] = None
    limits: Annotated[Limits, Field(description="What makes a batch, and how many requests may wait.")] = Limits()
    http: HttpArguments = HttpArguments()

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: Path) -> Path:
        if not tasks.is_absolute() or not tasks.is_dir():
            raise ValueError(
                f"expected the absolute path of a folder of adapters, got {str(tasks)!r}; make the folder, on storage "
                f"that all nodes share under this path"
            )
        return tasks

    @field_validator("limits", mode="before")
    @classmethod
    def _check_limits(cls, limits: Any) -> Any:
        known = [field.name for field in fields(Limits)]
        given = asdict(limits) if isinstance(limits, Limits) else limits
        for name in given if isinstance(given, dict) else ():
            if name not in known:
                raise ValueError(f"expected the name of a limit, got {name!r}; {did_you_mean(str(name), known)}")
        return given
