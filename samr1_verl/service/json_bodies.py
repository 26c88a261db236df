"""JSON in requests, read against the types of the message, so that a hostile text costs no more than its sound part.

Python's parser builds a whole text before anybody looks at it: from two million bytes 600,000 lists, whose building
lets the garbage collector walk through the process many times, while the event loop waits. msgspec knows the types,
stops at the first value of another type and at the first unknown key. pydantic then checks the values.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from fastapi import HTTPException, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response


@cache
def structure(model: type[BaseModel]) -> type[msgspec.Struct]:
    """The fields of a message and their types, without rules about values. Absent fields stay absent."""
    fields = [
        (field.alias or name, typed(field.annotation) | msgspec.UnsetType, msgspec.UNSET)
        for name, field in model.model_fields.items()
    ]
    return msgspec.defstruct(model.__name__, fields, forbid_unknown_fields=True, frozen=True, gc=False)


def typed(annotation: Any) -> Any:
    """What msgspec reads for an annotation of a message.

    Of two messages, each of which is allowed, it reads one with the fields of both; pydantic tells them apart.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return typed(arguments[0])
    if origin in (Union, types.UnionType):
        models = [one for one in arguments if isinstance(one, type) and issubclass(one, BaseModel)]
        others = [typed(one) for one in arguments if one not in models]
        return Union[tuple([*others, *([united(*models)] if models else [])])]  # noqa: UP007
    if origin is Literal or annotation in (str, int, float, bool, Any, type(None)):
        return annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return structure(annotation)
    if origin is None:
        raise TypeError(f"{annotation}: a message has no such type yet, expected one that msgspec reads as well")
    return origin[tuple(one if one is ... else typed(one) for one in arguments)]


def united(*models: type[BaseModel]) -> type[msgspec.Struct]:
    """A structure with the fields of all these messages."""
    if len(models) == 1:
        return structure(models[0])
    hints = [typing.get_type_hints(structure(model)) for model in models]
    fields = [(name, hint, msgspec.UNSET) for name, hint in {k: v for one in hints for k, v in one.items()}.items()]
    return msgspec.defstruct("Or".join(model.__name__ for model in models), fields, forbid_unknown_fields=True)


class JsonRoute(APIRoute):
    """A route whose body is read as its message is typed."""

    def get_route_handler(self) -> Callable[[Request], typing.Coroutine[Any, Any, Response]]:
        handle, field = super().get_route_handler(), self.body_field
        if field is None:
            return handle
        decoder = msgspec.json.Decoder(typed(field.field_info.annotation))

        class TypedRequest(Request):
            async def json(self) -> Any:
                try:
                    return msgspec.to_builtins(decoder.decode(await self.body()))
                except (msgspec.DecodeError, RecursionError) as error:
                    raise HTTPException(422, _fault(error)) from error

        async def typed_handle(request: Request) -> Response:
            return await handle(TypedRequest(request.scope, request.receive))

        return typed_handle


def _fault(error: Exception) -> str:
    """The place and the fault as pydantic's messages have them: `body.prompts.0.box: Expected `array`, got `str``."""
    text, _, path = str(error).partition(" - at `$")
    place = path.rstrip("`").replace("[", ".").replace("]", "")
    return f"body{place}: {text}"
