"""Forms and audio as anyone may send them: read as they are, or refused, never with a crash."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.gateway.vendors import RequestRefusedError
from services.gateway.vendors.audio_lengths import audio_length
from services.gateway.vendors.forms import read_form
from tests.support.audio import mp3, wave
from tests.support.forms import BOUNDARY, FORM_TYPE, form

DECIDED = frozenset({"model", "stream"})
names = st.text("abcdefghij_", min_size=1, max_size=8)
lines = st.text(max_size=30).map(lambda text: text.replace("\r", "").replace("\n", ""))


@given(
    texts=st.dictionaries(names, lines, max_size=5),
    files=st.lists(st.tuples(names, st.binary(max_size=200)), max_size=4),
)
@example(texts={}, files=[("file", b"--" + BOUNDARY.encode()), ("file", b"\r\n--")])
def test_a_form_is_read_as_it_was_written(texts: dict[str, str], files: list[tuple[str, bytes]]) -> None:
    clean = {name: text.encode(errors="replace").decode() for name, text in texts.items()}
    found = read_form(form(*clean.items(), *files), FORM_TYPE, DECIDED)
    assert found.texts == clean
    expected: dict[str, list[bytes]] = {}
    for name, data in files:
        expected.setdefault(name, []).append(data)
    assert found.files == expected


pieces = st.sampled_from(
    [
        b"--", b"\r\n", b"\n", BOUNDARY.encode(), b'Content-Disposition: form-data; name="model"',
        b'; filename="a.wav"', b": ", b"\x00", b"\xff", b"gpt-4o", b'name="', b"filename*=UTF-8''x",
    ]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(pieces | st.binary(max_size=4), max_size=20).map(b"".join))
def test_no_form_crashes_the_reader(body: bytes) -> None:
    try:
        found = read_form(body, FORM_TYPE, DECIDED)
    except RequestRefusedError:
        return
    assert all(isinstance(text, str) for text in found.texts.values())


@settings(max_examples=200, deadline=None)
@given(
    head=st.sampled_from([b"", wave(1)[:44], mp3(3), b"OggS", b"fLaC", b"ID3\x04", b"\x1aE\xdf\xa3", b"RIFF"]),
    rest=st.binary(max_size=300),
)
def test_audio_of_any_kind_has_a_bound(head: bytes, rest: bytes) -> None:
    length = audio_length(head + rest)
    assert length.most_ms > 0
    assert length.exact_ms is None or length.exact_ms <= length.most_ms
