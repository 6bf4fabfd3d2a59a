"""Field types and base classes of requests and answers."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, PlainSerializer
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from services.core.codec_fields import format_time

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant_text(instant: datetime) -> str:
    """RFC 3339, UTC, milliseconds."""
    since = instant - _EPOCH
    return format_time((since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000)


Instant = Annotated[datetime, PlainSerializer(instant_text, return_type=str)]
Name = Annotated[str, Field(max_length=128, examples=["ml"])]
PathId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
VendorName = Annotated[str, Field(max_length=63, examples=["openai"])]
ModelName = Annotated[str, Field(min_length=1, max_length=256, examples=["gpt-4o"])]
# A name to look for. PostgreSQL takes no NUL, and no name here has a control character.
Sought = Annotated[str, Query(pattern=r"^[^\u0000-\u001f]{1,256}$")]
Version = Annotated[str, Path(pattern=r"^[0-9a-f]{1,64}$", description="A catalog's version.")]
Usd = Annotated[str, Field(examples=["50.000000000"], description="US dollars, nine decimals.")]


class Body(BaseModel):
    """A request body: unknown fields and lenient conversions are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NotNull:
    """Marks an optional field that may be left out and can't be nothing: a null is refused, not taken for left out."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The field's schema, behind the check."""
        return core_schema.no_info_before_validator_function(_refuse_null, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """What the field takes, without the null."""
        told = handler(schema)
        (kind,) = (each for each in told.pop("anyOf") if each != {"type": "null"})
        return {**told, **kind}


def _refuse_null(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("null", "must not be null")
    return value


class Made(BaseModel):
    """What had to be made on the way because it did not exist yet."""

    team: bool = False
    agent: bool = False
