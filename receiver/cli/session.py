"""`session`: create, show and end sessions at the operator's QoD API.

A device's identifiers are personal data: no message quotes them, and only --show-device prints them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import orjson
import typer
from pydantic import SecretStr
from rich import box
from rich.table import Table
from rich.text import Text

from receiver.cli.failed import Failed
from receiver.cli.options import (
    ConfigOption,
    DataOption,
    JsonOption,
    KafkaOption,
    OpsTokenOption,
    s,
    settings_of,
)
from receiver.cli.reconcile import learned
from receiver.console import STATUS_STYLES, console, harmless, program
from receiver.core import rfc3339
from receiver.core.errors import ReceiverError
from receiver.edge import auth
from receiver.process.store import store_of
from receiver.qod import model
from receiver.qod.client import QodClient
from receiver.qod.model import ApiSession, Creation, Identifiers, QosProfile
from receiver.secret_file import mint_secret
from receiver.settings import Settings

T = TypeVar("T")

EXAMPLE_ID = "3f2b8c1e-0d5a-4b7e-9c64-1a2b3c4d5e6f"

#: A session's last notifications may be posted again long after its end.
_TOKEN_MARGIN_SECONDS = 3_600
_UNREAD_SHOWN_MAX = 20
_ANY_ADDRESSES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # to listen on, not to post to

_NO_API = """\
no QoD API is configured: api.base_url is not set. Set api.base_url, api.token_url, api.client_id, api.client_secret and
api.sender, in the configuration file or in the environment; `{program} check-config` shows what is in force.
To try it out, run `{program} simulate --port 9090`, and set
  export QOD_RECEIVER_API__BASE_URL=http://127.0.0.1:9090/v1
  export QOD_RECEIVER_API__TOKEN_URL=http://127.0.0.1:9090/token
  export QOD_RECEIVER_API__CLIENT_ID=demo QOD_RECEIVER_API__CLIENT_SECRET=demo
  export QOD_RECEIVER_API__SENDER=simulated"""

# Each is a SecretStr from the start, so that its text is in no repr and no traceback.
PhoneOption = Annotated[
    SecretStr | None,
    typer.Option("--phone", help="The device's phone number.", parser=SecretStr, show_default=False, metavar="+NUMBER"),
]
NaiOption = Annotated[
    SecretStr | None,
    typer.Option(
        "--nai", help="The device's network access identifier.", parser=SecretStr, show_default=False, metavar="NAME"
    ),
]
Ipv4Option = Annotated[
    SecretStr | None,
    typer.Option(
        "--ipv4",
        help="The device's public IPv4 address.",
        parser=SecretStr,
        show_default=False,
        metavar="ADDRESS[:PORT]",
    ),
]
Ipv6Option = Annotated[
    SecretStr | None,
    typer.Option("--ipv6", help="The device's IPv6 address.", parser=SecretStr, show_default=False, metavar="ADDRESS"),
]


def _id(text: str) -> str:
    if not model.is_id(text):
        raise typer.BadParameter(f"a session's id is 1 to 256 printable characters, such as {EXAMPLE_ID}")
    return text


def _url(text: str | None) -> str | None:
    if text is not None and not model.is_url(text):
        raise typer.BadParameter(model.URL_WANTED)
    return text


IdArgument = Annotated[str, typer.Argument(help="The session's id.", show_default=False, metavar="ID", callback=_id)]
ShowDeviceOption = Annotated[bool, typer.Option("--show-device", help="Show the device's identifiers.")]


def create(
    context: typer.Context,
    *,
    phone: PhoneOption = None,
    nai: NaiOption = None,
    ipv4: Ipv4Option = None,
    ipv6: Ipv6Option = None,
    profile: Annotated[
        QosProfile,
        typer.Option(help="QOS_E, QOS_S, QOS_M or QOS_L.", case_sensitive=False, show_default=False, metavar="PROFILE"),
    ],
    duration: Annotated[
        int,
        typer.Option(
            min=1, max=model.DURATION_SECONDS_MAX, help="Session duration.", show_default=False, metavar="SECONDS"
        ),
    ],
    server_ipv4: Annotated[
        str | None,
        typer.Option(help="IPv4 address or range of the application's server.", show_default=False, metavar="ADDRESS"),
    ] = None,
    server_ipv6: Annotated[
        str | None,
        typer.Option(help="IPv6 address or range of the application's server.", show_default=False, metavar="ADDRESS"),
    ] = None,
    notification_url: Annotated[
        str | None,
        typer.Option(
            help="URL for its notifications. \\[default: edge.public_url, else the edge's own]",
            show_default=False,
            metavar="URL",
            callback=_url,
        ),
    ] = None,
    data: DataOption = None,
    kafka: KafkaOption = None,
    ops_token: OpsTokenOption = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Create a session that notifies this receiver, with a token minted for it."""
    if context.args:  # typer's own error would quote it, and it may be a phone number
        raise typer.BadParameter("a device is named by --phone, --nai, --ipv4 or --ipv6 only")
    try:
        request = model.creation(
            Identifiers(phone, nai, ipv4, ipv6),
            qos_profile=profile,
            duration_seconds=duration,
            server_ipv4=server_ipv4,
            server_ipv6=server_ipv6,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    settings = _with_api(settings_of(config, data=data, kafka=kafka))
    url = notification_url or _notification_url(settings)
    asyncio.run(_create(settings, request.notified(url, _token(settings, duration)), ops_token, as_json=as_json))


def list_(*, show_device: ShowDeviceOption = False, as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Print our sessions at the API."""
    found, unread = _ask(_with_api(settings_of(config)), lambda client: client.list())
    for each in unread[:_UNREAD_SHOWN_MAX]:
        of = "" if each.session_id is None else f" {harmless(each.session_id)}"
        typer.echo(f"a session can't be read:{of}: {each.complaint}", err=True)
    if len(unread) > _UNREAD_SHOWN_MAX:
        typer.echo(f"{len(unread) - _UNREAD_SHOWN_MAX} more can't be read", err=True)
    if as_json:
        for session in found:
            _print_json(session, show_device=show_device)
    elif found:
        console().print(_table(found, show_device=show_device))
    elif not unread:
        typer.echo("the API has no sessions of ours")


def get(
    session_id: IdArgument,
    *,
    show_device: ShowDeviceOption = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Print a session as the API has it."""
    found = _ask(_with_api(settings_of(config)), lambda client: client.get(session_id))
    if found is None:
        raise Failed(f"the API has no session {session_id}")
    _print(found, show_device=show_device, as_json=as_json)


def delete(session_id: IdArgument, *, config: ConfigOption = None) -> None:
    """End a session; its end is notified like any other."""
    if not _ask(_with_api(settings_of(config)), lambda client: client.delete(session_id)):
        raise Failed(f"the API has no session {session_id}")
    typer.echo(f"session {session_id} is deleted")


def _with_api(settings: Settings) -> Settings:
    """The settings. Raises Failed if they have no API."""
    if settings.api.base_url is None:
        raise Failed(_NO_API.format(program=program()))
    return settings


def _notification_url(settings: Settings) -> str:
    """The URL of this receiver for notifications, with a warning if it may be valid on this machine only."""
    if settings.edge.public_url is not None:
        return settings.edge.public_url
    serving = store_of(settings).served_at()
    host = _ANY_ADDRESSES.get(settings.edge.host, settings.edge.host)
    if serving is not None and serving.edge_url:
        url = serving.edge_url
    elif settings.edge.port:
        url = f"http://{f'[{host}]' if ':' in host else host}:{settings.edge.port}{settings.edge.path}"
    else:
        raise typer.BadParameter("required where edge.port is 0", param_hint="--notification-url")
    typer.echo(
        f"edge.public_url is not set, so notifications go to {url}, which a sender elsewhere can't reach; "
        "--notification-url names another URL",
        err=True,
    )
    return url


def _token(settings: Settings, duration_seconds: int) -> SecretStr:
    ttl_seconds = duration_seconds + _TOKEN_MARGIN_SECONDS
    return SecretStr(auth.mint(mint_secret(settings), settings.api.sender or "", ttl_seconds, time.time()))


async def _create(settings: Settings, request: Creation, ops_token: str, *, as_json: bool) -> None:
    async with QodClient(settings.api, notice=_notice) as client:
        session = await client.create(request)
    try:
        await learned(settings, session, ops_token)
    except ReceiverError as error:
        typer.echo(f"the session was created, but the receiver does not know of it yet: {error}", err=True)
    finally:
        _print(session, show_device=False, as_json=as_json)


def _ask(settings: Settings, ask: Callable[[QodClient], Awaitable[T]]) -> T:
    async def answer() -> T:
        async with QodClient(settings.api, notice=_notice) as client:
            return await ask(client)

    return asyncio.run(answer())


def _notice(words: str) -> None:
    typer.echo(words, err=True)


def _print(session: ApiSession, *, show_device: bool, as_json: bool) -> None:
    if as_json:
        _print_json(session, show_device=show_device)
        return
    out = console()
    for name, value in _cells(session, show_device=show_device).items():
        if value:
            out.print(Text.assemble((f"{name:<9}", "dim"), value), soft_wrap=True)


def _print_json(session: ApiSession, *, show_device: bool) -> None:
    typer.echo(orjson.dumps(_fields(session, show_device=show_device)).decode())


def _table(sessions: Sequence[ApiSession], *, show_device: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        caption=f"{len(sessions)} session{s(len(sessions))}",
        caption_justify="left",
    )
    rows = [_cells(session, show_device=show_device) for session in sessions]
    for name in rows[0]:
        table.add_column(name, no_wrap=name == "session", overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    return table


def _cells(session: ApiSession, *, show_device: bool) -> dict[str, Text]:
    """A session for people."""
    status = Text(session.qos_status, style=STATUS_STYLES[session.qos_status])
    if session.status_info is not None:
        status.append(f" {harmless(session.status_info)}")
    cells = {
        "session": Text(harmless(session.session_id)),
        "status": status,
        "profile": Text(harmless(session.qos_profile or "")),
        "since": _time(session.started_micros),
        "expires": _time(session.expires_micros),
    }
    if show_device:
        cells["device"] = Text(harmless(", ".join(_leaves(session.device))))
    return cells


def _time(micros: int | None) -> Text:
    return Text("" if micros is None else rfc3339.render(micros - micros % 1_000_000))


def _leaves(tree: object) -> list[str]:
    """The values in a device, without names."""
    if isinstance(tree, Mapping):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [str(tree)]


def _fields(session: ApiSession, *, show_device: bool) -> dict[str, Any]:
    """A session for programs, by the API's names, without unknown members."""
    fields = {
        "sessionId": session.session_id,
        "qosStatus": session.qos_status,
        "statusInfo": session.status_info,
        "qosProfile": session.qos_profile,
        "duration": session.duration_seconds,
        "startedAt": None if session.started_micros is None else rfc3339.render(session.started_micros),
        "expiresAt": None if session.expires_micros is None else rfc3339.render(session.expires_micros),
        "device": dict(session.device) if show_device and session.device else None,
    }
    return {name: value for name, value in fields.items() if value is not None}
