"""The connection to Valkey: pipelined by itself, bounded in time, and back when the server is."""

import asyncio
import datetime
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.adapters.valkey import ValkeyDirectory
from services.adapters.valkey_connection import MAX_WAITING, Address, RefusedError, ValkeyConnection
from services.core.ports import UnavailableError
from tests.support.valkey import ValkeyServer, free_port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A Valkey of the test's own, to be stopped, paused and killed."""
    server = ValkeyServer(tmp_path / "valkey", appendonly="always")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def connection(valkey_url: str) -> AsyncIterator[ValkeyConnection]:
    connection = ValkeyConnection(valkey_url)
    yield connection
    await connection.close()


async def test_answers_are_what_the_server_says(connection: ValkeyConnection) -> None:
    assert await connection.execute("SET", "a", b"\x00\xff\r\n") == b"OK"
    assert await connection.execute("GET", "a") == b"\x00\xff\r\n"
    assert await connection.execute("GET", "nothing") is None
    assert await connection.execute("INCRBY", "n", -5) == -5
    assert await connection.execute("LRANGE", "nothing", 0, -1) == []
    assert await connection.execute_all([]) == []


async def test_a_refusal_names_its_code_and_breaks_nothing(connection: ValkeyConnection) -> None:
    await connection.execute("SET", "a", "text")
    with pytest.raises(RefusedError, match="WRONGTYPE") as caught:
        await connection.execute("LPUSH", "a", 1)
    assert caught.value.code == "WRONGTYPE"
    with pytest.raises(RefusedError):
        await connection.execute_all([("SET", "b", 1), ("NO-SUCH-COMMAND",), ("SET", "c", 1)])
    assert await connection.execute_all([("GET", "b"), ("GET", "c")]) == [b"1", b"1"]


async def test_commands_of_one_turn_are_written_together(connection: ValkeyConnection) -> None:
    async def reads() -> int:
        stats: bytes = await connection.execute("INFO", "stats")
        return int(stats.split(b"total_reads_processed:")[1].split(b"\r")[0])

    before = await reads()
    answers = await asyncio.gather(*(connection.execute("ECHO", number) for number in range(500)))
    assert answers == [str(number).encode() for number in range(500)]
    assert await reads() - before < 10


async def test_a_caller_that_goes_away_leaves_the_others_their_own_answers(connection: ValkeyConnection) -> None:
    await connection.execute("PING")
    calls = [asyncio.create_task(connection.execute("ECHO", number)) for number in range(10)]
    await asyncio.sleep(0)
    calls[3].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers.pop(3), asyncio.CancelledError)
    assert answers == [b"%d" % number for number in range(10) if number != 3]


async def test_all_who_ask_first_share_one_attempt_to_connect(server: ValkeyServer) -> None:
    connection = ValkeyConnection(server.url)
    first = asyncio.create_task(connection.execute("PING"))
    others = [asyncio.create_task(connection.execute("PING")) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    assert set(await asyncio.gather(*others)) == {b"PONG"}
    clients: bytes = await connection.execute("CLIENT", "LIST")
    assert clients.count(b"id=") == 1
    await connection.close()


async def test_a_server_that_is_not_there_is_told_at_once_and_found_when_it_comes(server: ValkeyServer) -> None:
    connection = ValkeyConnection(server.url)
    server.kill()
    started_s = time.monotonic()
    with pytest.raises(UnavailableError, match="can't be reached"):
        await connection.execute("PING")
    assert time.monotonic() - started_s < 1
    server.start()
    assert await connection.execute("PING") == b"PONG"
    await connection.close()


async def test_a_server_that_is_killed_fails_those_who_wait_and_is_found_again(server: ValkeyServer) -> None:
    connection = ValkeyConnection(server.url)
    await connection.execute("SET", "kept", "yes")
    waiting = asyncio.gather(
        *(connection.execute("BLPOP", f"never{n}", 0) for n in range(5)),
        connection.execute_all([("BLPOP", "never", 0), ("PING",)]),
        return_exceptions=True,
    )
    await asyncio.sleep(0.05)
    server.kill()
    assert [type(answer) for answer in await waiting] == [UnavailableError] * 6
    server.start()
    assert await connection.execute("GET", "kept") == b"yes"
    await connection.close()


async def test_a_server_that_hangs_is_given_up_in_time_and_found_again(server: ValkeyServer) -> None:
    connection = ValkeyConnection(server.url, timeout_s=0.3)
    await connection.execute("PING")
    server.pause()
    started_s = time.monotonic()
    answers = await asyncio.gather(*(connection.execute("PING") for _ in range(3)), return_exceptions=True)
    assert 0.25 < time.monotonic() - started_s < 1
    assert all(isinstance(answer, UnavailableError) and "within 0.3 s" in str(answer) for answer in answers)
    server.resume()
    assert await connection.execute("PING") == b"PONG"
    await connection.close()


async def test_a_loop_that_was_busy_is_not_taken_for_a_silent_server(valkey_url: str) -> None:
    connection = ValkeyConnection(valkey_url, timeout_s=0.2)
    await connection.execute("PING")
    answer = asyncio.ensure_future(connection.execute("PING"))
    await asyncio.sleep(0)
    time.sleep(0.4)  # noqa: ASYNC251  # the very thing: nothing else may run meanwhile
    assert await answer == b"PONG"
    await connection.close()


async def test_no_more_may_wait_than_there_is_room_for(connection: ValkeyConnection) -> None:
    await connection.execute("PING")
    calls = [asyncio.create_task(connection.execute("PING")) for _ in range(MAX_WAITING + 1)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[:-1] == [b"PONG"] * MAX_WAITING
    assert isinstance(answers[-1], UnavailableError)


async def test_a_closed_connection_leaves_none_behind(server: ValkeyServer) -> None:
    connection = ValkeyConnection(server.url)
    waiting = asyncio.create_task(connection.execute("BLPOP", "never", 0))
    await asyncio.sleep(0.05)
    await connection.close()
    with pytest.raises(UnavailableError, match="closed here"):
        await waiting
    await connection.close()


async def test_it_logs_in_and_picks_its_database(server: ValkeyServer) -> None:
    open_connection = ValkeyConnection(server.url)
    await open_connection.execute("ACL", "SETUSER", "gate", "on", ">p@ss/word", "~*", "+@all")
    await open_connection.execute("CONFIG", "SET", "requirepass", "s3cret")
    await open_connection.close()
    at = f"127.0.0.1:{server.port}"
    for url in (f"redis://:s3cret@{at}/3", f"redis://gate:p%40ss%2Fword@{at}/3"):
        connection = ValkeyConnection(url)
        await connection.execute("SET", "a", url)
        info: bytes = await connection.execute("CLIENT", "INFO")
        assert b"db=3" in info
        await connection.close()
    for url in (f"redis://:wrong@{at}/0", f"redis://{at}/0", f"redis://gate:p%40ss%2Fword@{at}/99"):
        connection = ValkeyConnection(url)
        with pytest.raises(RefusedError) as caught:
            await connection.execute("GET", "a")
        assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
        await connection.close()
    open_connection = ValkeyConnection(f"redis://:s3cret@{at}")
    await open_connection.execute("CONFIG", "SET", "requirepass", "")
    await open_connection.close()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://localhost", Address("localhost", 6379, 0, None, None, False)),
        ("redis://127.0.0.1:6380/4", Address("127.0.0.1", 6380, 4, None, None, False)),
        ("rediss://u:p%40w@[::1]:7000/0", Address("::1", 7000, 0, "u", "p@w", True)),
        ("redis://:pw@h:1/", Address("h", 1, 0, None, "pw", False)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert Address.parse(url) == address


@pytest.mark.parametrize(
    "url", ["", "localhost:6379", "http://h", "redis://", "redis://h:x", "redis://h/db", "redis://h:99999"]
)
def test_other_texts_are_no_addresses(url: str) -> None:
    with pytest.raises(ValueError):
        ValkeyConnection(url)


async def test_something_else_at_the_address_is_found_out() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    connection = ValkeyConnection(f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    with pytest.raises(UnavailableError, match="does not speak the Redis protocol"):
        await connection.execute("PING")
    listener.close()


async def test_tls_is_spoken_and_the_certificate_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"PING\r\n")
        writer.write(b"+PONG\r\n")
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    url = f"rediss://localhost:{listener.sockets[0].getsockname()[1]}"
    stranger = ValkeyConnection(url)
    with pytest.raises(UnavailableError, match="certificate"):
        await stranger.execute("PING")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    connection = ValkeyConnection(url)
    assert await connection.execute("PING") == b"PONG"
    await connection.close()
    listener.close()
    await listener.wait_closed()


def write_certificate(folder: Path) -> Path:
    """A certificate of ``localhost`` that vouches for itself, with its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


async def test_a_service_sees_a_lost_hot_state_as_unavailable() -> None:
    directory = ValkeyDirectory(ValkeyConnection(f"redis://127.0.0.1:{free_port()}"))
    with pytest.raises(UnavailableError):
        await directory.pulse()
    with pytest.raises(UnavailableError):
        await directory.find_key("hash")
