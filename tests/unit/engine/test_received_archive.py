from __future__ import annotations

import io
import os
import stat
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows_engine.errors import EngineUnavailableError, NoSpaceError, WorkspaceError
from flows_engine.received_archive import unpack_received
from tests.factories import leaked_canaries


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=kind, linkname=to)


TOP = member("3", type=tarfile.DIRTYPE, mode=0o755)


def archive(*members: tuple[tarfile.TarInfo, bytes], top: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        for info, content in (*([TOP] if top else []), *members):
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def in_pieces(data: bytes, size: int = 777) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def test_files_folders_and_links_are_as_they_were(folder: Path) -> None:
    sent = archive(
        member("3/a/b", b"x" * 5000, mode=0o4755),
        member("3/closed", type=tarfile.DIRTYPE, mode=0o000),
        member("3/closed/empty", mode=0o000),
        link("3/again", "3/a/b", tarfile.LNKTYPE),
        link("3/away", "/etc/passwd"),
        link("3/up", "../../x"),
    )
    assert unpack_received(in_pieces(sent), folder) == {}
    assert (folder / "a" / "b").read_bytes() == b"x" * 5000
    assert stat.S_IMODE((folder / "a" / "b").stat().st_mode) == 0o755
    assert (folder / "again").stat().st_ino == (folder / "a" / "b").stat().st_ino
    assert (folder / "closed" / "empty").read_bytes() == b""
    assert str((folder / "away").readlink()) == "/etc/passwd"
    assert str((folder / "up").readlink()) == "../../x"


def test_a_name_of_any_bytes_stays_itself(folder: Path) -> None:
    names = [b"line\nend", b"\xff\xfe", "größe".encode(), b"x" * 200]
    unpack_received(in_pieces(archive(*(member("3/" + os.fsdecode(name)) for name in names))), folder)
    assert sorted(map(os.fsencode, names_in(folder))) == sorted(names)


def test_what_is_no_file_is_passed_over_and_counted(folder: Path) -> None:
    sent = archive(
        member("3/sda", type=tarfile.BLKTYPE, devmajor=8),
        member("3/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("3/fifo", type=tarfile.FIFOTYPE),
        member("3/file", b"kept"),
    )
    assert unpack_received(in_pieces(sent), folder) == {"device": 2, "fifo": 1}
    assert names_in(folder) == ["file"]


@pytest.mark.parametrize(
    "members",
    [
        [member("3/../../out", b"x")],
        [member("/3/out", b"x")],
        [member("../out", b"x")],
        [link("3/way", ".."), member("3/way/out", b"x")],
        [link("3/way", ".."), member("3/way", type=tarfile.DIRTYPE, mode=0o777)],
        [link("3/way", ".."), link("3/copy", "3/way/secret", tarfile.LNKTYPE)],
        [link("3/copy", "../secret", tarfile.LNKTYPE)],
        [link("3/copy", "/etc/passwd", tarfile.LNKTYPE)],
        [link("3/way", "../out"), member("3/way", b"x")],
        [member("3/file", b"x"), member("3/file/below", b"x")],
        [member("3/twice", b"x"), member("3/twice", b"y")],
        [member("3/a\0b", pax_headers={"path": "3/a\0b"})],
    ],
)
def test_nothing_is_made_outside(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    (folder.parent / "secret").write_text("secret")
    before = folder.parent.stat().st_mode
    with pytest.raises(WorkspaceError):
        unpack_received(in_pieces(archive(*members)), folder)
    assert names_in(folder.parent) == ["here", "secret"]
    assert folder.parent.stat().st_mode == before
    assert (folder.parent / "secret").stat().st_nlink == 1


@pytest.mark.parametrize(
    "cut",
    [
        lambda whole: b"",
        lambda whole: whole[:700],
        lambda whole: whole[:1024],
        lambda whole: whole[:1800],
        lambda whole: whole[: 512 + 512 + 1024],
        lambda whole: whole[:2048] + b"junk" * 500,
        lambda whole: whole + b"\0" * (3 << 20),
        lambda whole: b"\x1f\x8b" + whole,
    ],
    ids=["nothing", "a header", "no content", "half a content", "between two", "junk", "endless", "compressed"],
)
def test_half_an_archive_is_none(folder: Path, cut: Callable[[bytes], bytes]) -> None:
    whole = archive(member("3/a", b"x" * 1024), member("3/b", b"y"))
    with pytest.raises(WorkspaceError, match="no whole archive"):
        unpack_received(in_pieces(cut(whole)), folder)


def test_a_file_without_folder_is_no_output(folder: Path) -> None:
    with pytest.raises(WorkspaceError):
        unpack_received(in_pieces(archive(member("3", b"x"), top=False)), folder)


def test_a_file_that_has_no_room_is_not_begun(folder: Path) -> None:
    def terabytes() -> Iterator[bytes]:
        yield TOP[0].tobuf()
        info = tarfile.TarInfo("3/huge")
        info.size = 1 << 50
        yield info.tobuf(tarfile.GNU_FORMAT)
        pytest.fail("its content was asked for")

    with pytest.raises(NoSpaceError, match="1125899906842624 bytes"):
        unpack_received(terabytes(), folder)
    assert names_in(folder) == []


def test_errors_name_no_file(folder: Path) -> None:
    hostile = (
        [member("3/CANARYSURNAME/a\0b", pax_headers={"path": "3/CANARYSURNAME/a\0b"})],
        [member("3/CANARYSURNAME", b"x"), member("3/CANARYSURNAME", b"y")],
    )
    for members in hostile:
        with pytest.raises(WorkspaceError) as told:
            unpack_received(in_pieces(archive(*members)), folder)
        assert not leaked_canaries(str(told.value))


def test_folders_that_are_too_deep_are_refused_at_once(folder: Path) -> None:
    with pytest.raises(WorkspaceError, match="more than 250 folders in each other"):
        unpack_received(in_pieces(archive(member("3/" + "d/" * 251 + "a", b"x"))), folder)
    unpack_received(in_pieces(archive(member("3/" + "d/" * 250 + "a", b"x"))), folder)


def test_what_is_to_stay_free_is_no_room_for_a_file(folder: Path) -> None:
    sent = archive(member("3/a", b"abc"))
    with pytest.raises(NoSpaceError, match=rf"a file of 3 bytes, .* DISK_RESERVE_BYTES \({1 << 60}\)"):
        unpack_received(in_pieces(sent), folder, reserve_bytes=1 << 60)
    unpack_received(in_pieces(sent), folder, reserve_bytes=1)
    assert (folder / "a").read_bytes() == b"abc"


def test_a_disk_that_becomes_full_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flows_engine.received_archive.shutil.copyfileobj", full)
    with pytest.raises(NoSpaceError, match="No space left"):
        unpack_received(in_pieces(archive(member("3/a", b"x"))), folder)


def test_a_header_without_end_is_not_read_into_memory(folder: Path) -> None:
    def endless() -> Iterator[bytes]:
        info = tarfile.TarInfo("long")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
        yield TOP[0].tobuf() + info.tobuf(tarfile.GNU_FORMAT)
        pytest.fail("more of the header was asked for")

    with pytest.raises(WorkspaceError):
        unpack_received(endless(), folder)


def test_memory_does_not_grow_with_the_number_of_files(folder: Path) -> None:
    def many() -> Iterator[bytes]:
        yield TOP[0].tobuf()
        for number in range(4_000):
            info = tarfile.TarInfo(f"3/{number}")
            info.type = tarfile.FIFOTYPE
            yield info.tobuf()
        yield bytes(1024)

    tracemalloc.start()
    try:
        assert unpack_received(many(), folder) == {"fifo": 4_000}
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_the_sender_raises_is_raised(folder: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield TOP[0].tobuf()
        raise EngineUnavailableError

    with pytest.raises(EngineUnavailableError):
        unpack_received(broken(), folder)
