"""A real Apache Kafka: one KRaft node on free loopback ports, from the jars that `tools/fetch_kafka.sh` fetches."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tests.support.valkey import free_port

HOME = (Path(__file__).parents[2] / ".tools" / "kafka").resolve()
LIBRARIES = HOME / "libs"
# A broker's classes as Java has them in memory. It starts without them, too: where there are none, and where they are
# not of this Java and these jars.
CLASSES = HOME / "classes.jsa"
CONFIGURATION = Path(__file__).with_name("kafka_broker")
CLUSTER_ID = "ZmFydGhpbmctdGVzdHMtMQ"


class KafkaBroker:
    """A broker whose data is kept in `directory` over stops, kills and starts, on the same ports each time."""

    def __init__(self, directory: Path, port: int | None = None, *, keeps: Path | None = None) -> None:
        """A broker that `keeps` its classes takes none from where they are, and writes its own when it is stopped."""
        self.directory = directory
        self.port = port or free_port()
        self.controller_port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._taking = [*java(), *([f"-XX:SharedArchiveFile={CLASSES}"] if CLASSES.exists() else [])]
        self._java = [*java(), f"-XX:ArchiveClassesAtExit={keeps}"] if keeps else self._taking

    @property
    def bootstrap(self) -> str:
        """Its address, ``host:port``."""
        return f"127.0.0.1:{self.port}"

    def start(self, seconds: float = 60.0) -> None:
        """Starts the broker and waits until it takes requests; an `AssertionError` shows the end of its log."""
        self.directory.mkdir(parents=True, exist_ok=True)
        properties = self.directory / "server.properties"
        text = (CONFIGURATION / properties.name).read_text()
        text = text.replace("@PORT@", str(self.port)).replace("@CONTROLLER_PORT@", str(self.controller_port))
        properties.write_text(text.replace("@DATA@", str(self.directory / "data")))
        with (self.directory / "broker.log").open("ab") as log:
            if not (self.directory / "data").exists():
                formatting = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(properties)]
                done = subprocess.run(
                    [*self._taking, *formatting], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False
                )
                assert done.returncode == 0, f"Kafka's storage could not be formatted:\n{self.log_tail()}"
            self.process = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(properties)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + seconds
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"Kafka did not start in {seconds} s:\n{self.log_tail()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Ends the broker with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> bool:
        """Ends the broker in good order, and with SIGKILL when that takes too long; answers whether it was in order."""
        if self.process is None:
            return True
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            return False
        self.process = None
        return status >= 0

    def pause(self) -> None:
        """Stops the broker in its tracks, its connections open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # until every thread of it has stopped

    def resume(self) -> None:
        """Lets a paused broker go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kills the broker and starts it again on the same data."""
        self.kill()
        self.start()

    def log_tail(self, characters: int = 4000) -> str:
        """The end of the broker's log."""
        return (self.directory / "broker.log").read_text(errors="replace")[-characters:]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        # In a thread of its own, so that callers may be inside an event loop or not.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, _has_broker(self.bootstrap)).result()


async def _has_broker(bootstrap: str) -> bool:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    try:
        await admin.start()
        return bool((await admin.describe_cluster())["brokers"])
    except KafkaError:
        return False
    finally:
        await admin.close()


def keep_classes() -> None:
    """Starts a broker once and keeps the classes it loads, which halves what every later start takes.

    An `AssertionError` says why none could be kept. See "Dynamic AppCDS" in the Java documentation, JEP 350.
    """
    made = CLASSES.with_suffix(f".{os.getpid()}")
    try:
        with tempfile.TemporaryDirectory() as name:
            broker = KafkaBroker(Path(name), keeps=made)
            broker.start()
            assert broker.stop(), "the broker did not live to keep all of its classes"
            assert made.exists(), f"Java keeps no classes:\n{broker.log_tail()}"
        made.replace(CLASSES)
    finally:
        made.unlink(missing_ok=True)


def java() -> list[str]:
    """The command that runs a class of Kafka's."""
    assert LIBRARIES.is_dir(), "Kafka's jars are missing; `make test` fetches them (tools/fetch_kafka.sh)"
    program = shutil.which("java")
    assert program is not None, "the tests' Kafka needs Java 17 or later; `make test` installs it where it can"
    memory = ["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    logging = f"-Dlog4j2.configurationFile={CONFIGURATION / 'log4j2.xml'}"
    return [program, *memory, "-Djava.net.preferIPv4Stack=true", logging, "-cp", f"{LIBRARIES}/*"]


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that all tests share; one that is to be killed is a test's own `KafkaBroker`."""
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.bootstrap


if __name__ == "__main__":
    keep_classes()
