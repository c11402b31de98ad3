"""A plain handler, as written in an afternoon: FastAPI, pydantic and aiokafka. `python -m
tests.benchmarks.peers.handler`.

It answers once Kafka has acknowledged. KAFKA, TOKEN, PORT and TOPIC_PREFIX come from the environment.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal

import uvicorn
from aiokafka import AIOKafkaProducer
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AwareDatetime, BaseModel, Field

TOKEN, TOPIC_PREFIX = os.environ["TOKEN"], os.environ.get("TOPIC_PREFIX", "peer")


class StatusChange(BaseModel):
    """A change of a session's status."""

    session_id: str = Field(alias="sessionId")
    qos_status: Literal["AVAILABLE", "UNAVAILABLE"] = Field(alias="qosStatus")
    status_info: str | None = Field(None, alias="statusInfo")


class Notification(BaseModel):
    """The CloudEvent of a change."""

    id: str
    source: str
    type: str
    time: AwareDatetime
    data: StatusChange


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Be connected to Kafka for as long as the application runs."""
    async with AIOKafkaProducer(bootstrap_servers=os.environ["KAFKA"], enable_idempotence=True) as producer:
        app.state.producer = producer
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> dict[str, str]:
    """Tell that the process runs."""
    return {"status": "ok"}


@app.post("/notifications", status_code=204)
async def notifications(
    notification: Notification, credentials: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]
) -> None:
    """Write a notification to its topics."""
    if not secrets.compare_digest(credentials.credentials.encode(), TOKEN.encode()):
        raise HTTPException(401, "wrong token")
    key, value = notification.data.session_id.encode(), notification.model_dump_json(by_alias=True).encode()
    await app.state.producer.send_and_wait(f"{TOPIC_PREFIX}.status", value, key)
    if notification.data.qos_status == "UNAVAILABLE":
        await app.state.producer.send_and_wait(f"{TOPIC_PREFIX}.unavailable", value, key)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8080")), log_level="warning", access_log=False)
