"""Bodies of calls and answers. Limits that a server sets stand in `Settings`, not here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator

from peft_aot.serving.request import Classification, Kind, MultiLabel, Regression, Tags

BASE = "__base__"
LONGEST_NAME = 128


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected text, got half of a surrogate pair at character {error.start}; send both halves or neither"
        ) from error
    return text


Text = Annotated[str, AfterValidator(_whole)]  # JSON can say what no UTF-8 can, and no answer could repeat
Name = Annotated[Text, Field(min_length=1, max_length=LONGEST_NAME, description="Name of a task.")]
NewName = Annotated[Text, Field(min_length=1, max_length=LONGEST_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")]
Timeout = Annotated[
    float | None,
    Field(default=None, gt=0, allow_inf_nan=False, description="Seconds after which no answer is wanted any more."),
]
Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
Pairs = Annotated[
    list[Annotated[list[Text], Field(min_length=2, max_length=2)]],
    Field(min_length=1, fail_fast=True, description="Pairs."),
]


class Call(BaseModel):
    """Refuses fields it does not know, so that a typing error is not a silent default."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Asked(Call):
    """One of text, texts and pairs, for one task."""

    task: Name
    text: Text | None = Field(default=None, description="One text.")
    texts: Texts | None = Field(default=None, description="Several texts.")
    pairs: Pairs | None = Field(default=None, description="Several pairs of texts, for tasks that read two.")
    timeout: Timeout

    @model_validator(mode="after")
    def _one_of_three(self) -> Asked:
        given = [name for name in ("text", "texts", "pairs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of text, texts and pairs, got {' and '.join(given) or 'none'}; send one of them"
            )
        return self

    @property
    def questions(self) -> list[tuple[str, str | None]]:
        """Text and second text of each question."""
        if self.pairs is not None:
            return [(first, second) for first, second in self.pairs]
        return [(text, None) for text in (self.texts if self.texts is not None else [self.text or ""])]


class AskedEmbedding(Asked):
    """One of text, texts and pairs, for an embedding task or for the backbone."""

    task: Annotated[
        Text, Field(default=BASE, min_length=1, max_length=LONGEST_NAME, description="A task, or the backbone alone.")
    ]


class Question(Call):
    """One text, or pair of texts, for one task."""

    task: Name
    text: Text
    pair: Text | None = None


class Mixed(Call):
    """Questions for different tasks in one call."""

    requests: Annotated[list[Question], Field(min_length=1, fail_fast=True)]
    timeout: Timeout


class LoadAdapter(Call):
    """An adapter to serve; the names are vLLM's."""

    lora_name: NewName = Field(validation_alias=AliasChoices("lora_name", "name"), description="The task's name.")
    lora_path: Text = Field(
        validation_alias=AliasChoices("lora_path", "path"),
        min_length=1,
        max_length=4096,
        description="A folder inside an allowed one, or an allowed hub id.",
    )
    load_inplace: bool = Field(default=False, description="Whether to take the place of a task of that name.")


class UnloadAdapter(Call):
    """A task to forget; the names are vLLM's."""

    lora_name: Name = Field(validation_alias=AliasChoices("lora_name", "name"))
    lora_int_id: int | None = Field(default=None, description="Not used; vLLM's clients may send it.")


class Classified(BaseModel):
    """Answers of a task that classifies or predicts a number, in the order asked."""

    task: str
    results: list[Classification | MultiLabel | Regression]


class Tagged(BaseModel):
    """Answers of a task that labels words, in the order asked."""

    task: str
    results: list[Tags]


class Vector(BaseModel):
    """An embedding of length 1."""

    embedding: list[float]


class Embedded(BaseModel):
    """Answers of a task that embeds, in the order asked."""

    task: str
    width: int
    results: list[Vector]


class Error(BaseModel):
    """What went wrong."""

    type: str = Field(description="For programs.", examples=["unknown_task"])
    message: str = Field(description="For people.")


class ErrorBody(BaseModel):
    """The body of every call that fails."""

    error: Error


class MixedAnswer(BaseModel):
    """The answer of one question of several: a result or an error."""

    task: str
    result: Classification | MultiLabel | Regression | Tags | Vector | None = None
    error: Error | None = None


class MixedAnswers(BaseModel):
    """Answers in the order asked."""

    results: list[MixedAnswer]


class TaskDescription(BaseModel):
    """A task that is served."""

    name: str
    kind: Kind
    endpoint: str
    labels: tuple[str, ...]
    max_length: int
    nbytes: int
    has_table: bool


class TaskList(BaseModel):
    """The tasks that are served."""

    backbone: str
    tasks: list[TaskDescription]


class Done(BaseModel):
    """A change that was made."""

    message: str


class Health(BaseModel):
    """How a server is."""

    status: str


class Load(BaseModel):
    """How busy a server has been in the last seconds."""

    seconds: float = Field(description="Length of the time looked at.")
    queued: int = Field(description="Requests that wait.")
    tasks: int = Field(description="Tasks that are served.")
    tasks_version: int = Field(description="Another number whenever tasks came, changed or went.")
    texts_per_second: float
    batches_per_second: float
    batch_examples: float = Field(description="Requests of a batch, on average.")
    batch_tasks: float = Field(description="Distinct tasks of a batch, on average.")
    latency: Mapping[str, float] = Field(description="Seconds from being queued to being answered: p50, p95, p99.")
