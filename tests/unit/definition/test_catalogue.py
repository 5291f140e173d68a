"""The definitions in force, while their folder changes under them."""

from __future__ import annotations

import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flows_engine.definition.catalogue import CatalogueChange, FlowCatalogue, settle
from flows_engine.definition.schema import FlowDefinition

BAD = "models: ["
_WAIT_SECONDS = 30


def text(name: str, *, image: str = "a") -> str:
    return f"name: {name}\ntriggers: []\nmodels: [{{docker_kwargs: {{image: {image}}}}}]\n"


def definition(name: str) -> FlowDefinition:
    return FlowDefinition.model_validate({"name": name, "triggers": [], "models": [{"docker_kwargs": {"image": "a"}}]})


class Site:
    """A folder of definitions, its state, and a catalogue that can be started anew."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "flows"
        self.state = root / "state"
        self.folder.mkdir()
        self.restart()

    def restart(self) -> FlowCatalogue:
        self.catalogue = FlowCatalogue(self.folder, state_folder=self.state)
        return self.catalogue

    def write(self, file: str, content: str) -> CatalogueChange:
        (self.folder / file).write_text(content)
        return self.catalogue.refresh()

    def remove(self, file: str) -> CatalogueChange:
        (self.folder / file).unlink()
        return self.catalogue.refresh()

    @property
    def in_force(self) -> dict[str, str]:
        return {name: flow.models[0].docker_kwargs.image for name, flow in self.catalogue.snapshot().items()}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_files_come_change_and_go(site: Site) -> None:
    assert site.write("a.yaml", text("A")).added == ("A",)
    assert site.write("b.yml", text("B")).added == ("B",)
    assert site.write("a.yaml", text("A", image="b")).changed == ("A",)
    assert site.in_force == {"A": "b", "B": "a"}
    assert site.remove("a.yaml").removed == ("A",)
    assert site.in_force == {"B": "a"}


def test_a_flow_that_is_renamed_goes_and_comes(site: Site) -> None:
    site.write("a.yaml", text("A"))
    change = site.write("a.yaml", text("Z"))

    assert (change.added, change.removed) == (("Z",), ("A",))


def test_nothing_is_told_where_nothing_was_said(site: Site) -> None:
    site.write("a.yaml", text("A"))
    os.utime(site.folder / "a.yaml", (1, 1))

    assert not site.catalogue.refresh()
    assert not site.write("a.yaml", "# a word\n" + text("A"))


def test_hidden_files_folders_links_to_nothing_and_other_files_are_no_definitions(site: Site) -> None:
    (site.folder / "folder.yaml").mkdir()
    (site.folder / "nowhere.yaml").symlink_to("nothing")
    (site.folder / ".a.yaml.swp").write_text(text("A"))
    (site.folder / "notes.txt").write_text(BAD)

    assert not site.write(".a.yaml", text("A"))


def test_a_fifo_does_not_stop_the_catalogue(site: Site) -> None:
    os.mkfifo(site.folder / "pipe.yaml")

    assert site.write("a.yaml", text("A")).added == ("A",)


def test_an_earlier_snapshot_stays_as_it_was(site: Site) -> None:
    site.write("a.yaml", text("A"))
    before = site.catalogue.snapshot()
    site.write("b.yaml", text("B"))

    assert list(before) == ["A"]
    with pytest.raises(TypeError):
        before["B"] = definition("B")  # type: ignore[index]


def test_a_bad_file_stops_nothing_else_and_is_told_once(site: Site) -> None:
    site.write("a.yaml", text("A"))
    change = site.write("bad.yaml", BAD)

    assert [problem.file.name for problem in change.problems] == ["bad.yaml"]
    assert not site.catalogue.refresh()
    assert site.write("c.yaml", text("C")).problems == ()
    assert site.write("bad.yaml", BAD + "\n").problems
    assert site.in_force == {"A": "a", "C": "a"}


def test_a_file_that_goes_bad_leaves_its_last_good_version_in_force(site: Site) -> None:
    site.write("a.yaml", text("A"))
    change = site.write("a.yaml", BAD)

    assert "last good version, 'A', stays in force" in change.problems[-1].reason
    assert site.in_force == {"A": "a"}
    assert site.write("a.yaml", text("A", image="b")).changed == ("A",)


def test_the_last_good_version_outlives_a_restart_and_the_problem_is_told_again(site: Site) -> None:
    site.write("a.yaml", text("A"))
    site.write("a.yaml", BAD)
    change = site.restart().refresh()

    assert change.added == ("A",)
    assert "stays in force" in change.problems[-1].reason
    assert site.in_force == {"A": "a"}


def test_a_definition_that_was_removed_meanwhile_does_not_come_back_with_a_bad_file(site: Site) -> None:
    site.write("other.yaml", text("Other"))
    site.write("a.yaml", text("A"))
    (site.folder / "a.yaml").unlink()
    site.restart().refresh()
    site.write("a.yaml", BAD)

    assert site.in_force == {"Other": "a"}
    site.restart().refresh()
    assert site.in_force == {"Other": "a"}


def test_a_file_that_went_bad_while_nobody_looked_has_its_last_good_version(site: Site) -> None:
    site.write("a.yaml", text("A"))
    (site.folder / "a.yaml").unlink()
    (site.folder / "a.yaml").write_text(BAD)
    site.restart().refresh()

    assert site.in_force == {"A": "a"}


def test_a_folder_that_is_gone_removes_nothing_and_is_told_once(site: Site) -> None:
    site.write("a.yaml", text("A"))
    site.folder.rename(site.folder.parent / "elsewhere")
    change = site.catalogue.refresh()

    assert [problem.file for problem in change.problems] == [site.folder]
    assert "FLOW_DIRECTORY" in change.problems[0].hint
    assert (change.removed, site.in_force) == ((), {"A": "a"})
    assert not site.catalogue.refresh()


def test_a_folder_that_is_gone_at_a_restart_removes_nothing_either(site: Site) -> None:
    site.write("a.yaml", text("A"))
    site.folder.rename(site.folder.parent / "elsewhere")
    site.restart().refresh()

    assert site.in_force == {"A": "a"}
    (site.folder.parent / "elsewhere").rename(site.folder)
    assert not site.catalogue.refresh()


def test_a_folder_that_goes_a_second_time_is_told_a_second_time(site: Site) -> None:
    for _ in range(2):
        site.folder.rename(site.folder.parent / "elsewhere")
        assert site.catalogue.refresh().problems
        (site.folder.parent / "elsewhere").rename(site.folder)
        assert not site.catalogue.refresh()


def test_of_two_files_with_one_name_the_one_in_force_stays_and_both_are_told(site: Site) -> None:
    site.write("b.yaml", text("A", image="first"))
    change = site.write("a.yaml", text("A", image="second"))

    assert sorted(problem.file.name for problem in change.problems) == ["a.yaml", "b.yaml"]
    assert not change.changed
    assert not site.catalogue.refresh()
    assert site.write("b.yaml", text("A", image="third")).changed == ("A",)
    assert site.in_force == {"A": "third"}
    site.restart().refresh()
    assert site.in_force == {"A": "third"}
    assert site.remove("b.yaml").changed == ("A",)
    assert site.in_force == {"A": "second"}


def test_a_file_that_takes_the_name_of_another_keeps_its_own_last_good_version(site: Site) -> None:
    site.write("a.yaml", text("A"))
    site.write("b.yaml", text("B"))
    change = site.write("b.yaml", text("A", image="other"))

    assert site.in_force == {"A": "a", "B": "a"}
    assert change.removed == ()


def test_two_files_may_swap_their_names(site: Site) -> None:
    site.write("a.yaml", text("A", image="one"))
    site.write("b.yaml", text("B", image="two"))
    (site.folder / "a.yaml").write_text(text("B", image="one"))
    change = site.write("b.yaml", text("A", image="two"))

    assert (change.changed, change.problems) == (("A", "B"), ())
    assert site.in_force == {"A": "two", "B": "one"}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"a.yaml": {"name": "A"}}', b"{" * 10_000])
def test_a_damaged_state_is_a_warning_and_is_mended(site: Site, content: bytes) -> None:
    site.write("a.yaml", text("A"))
    [state] = site.state.iterdir()
    state.write_bytes(content)
    change = site.restart().refresh()

    assert change.added == ("A",)
    assert [warning.file for warning in change.warnings] == [state]
    assert not site.catalogue.refresh()
    assert site.restart().refresh().warnings == ()


def test_a_state_that_cannot_be_written_is_one_warning(tmp_path: Path, site: Site) -> None:
    site.state = tmp_path / "file" / "state"
    (tmp_path / "file").write_text("")
    site.restart()
    change = site.write("a.yaml", text("A"))

    assert change.added == ("A",)
    assert change.warnings
    assert not site.catalogue.refresh()


def test_a_file_of_the_longest_name_has_a_last_good_version_too(site: Site) -> None:
    file = "x" * 250 + ".yaml"
    site.write(file, text("A"))
    site.write(file, BAD)
    site.restart().refresh()

    assert site.in_force == {"A": "a"}


def test_a_huge_file_is_refused_without_being_read_whole(site: Site) -> None:
    with (site.folder / "huge.yaml").open("wb") as file:
        file.truncate(1 << 40)

    [problem] = site.catalogue.refresh().problems
    assert "larger than" in problem.reason


def test_warnings_of_a_file_are_told_once(site: Site) -> None:
    mounted = text("A").replace("}}]", "}, static_mounts: ['X:/m:ro']}]")
    change = site.write("a.yaml", mounted)

    assert (change.added, len(change.warnings)) == (("A",), 1)
    assert not site.catalogue.refresh()


def test_settling_is_by_who_has_a_name_then_by_alphabet() -> None:
    one, two = definition("A"), definition("A")

    assert settle({"b": one, "a": two}, in_force={}) == ({"a": two}, {"b": "a"})
    assert settle({"b": one, "a": two}, in_force={"b": one}) == ({"b": one}, {"a": "b"})
    assert settle({"b": None}, in_force={"b": one, "gone": definition("G")}) == ({"b": one}, {})
    assert settle({"b": None}, in_force={}) == ({}, {})


@contextmanager
def watching(site: Site, *, look_anyway_seconds: float = 60) -> Iterator[queue.Queue[CatalogueChange]]:
    changes: queue.Queue[CatalogueChange] = queue.Queue()
    stop = threading.Event()
    thread = threading.Thread(
        target=site.catalogue.watch, args=(stop, changes.put), kwargs={"look_anyway_seconds": look_anyway_seconds}
    )
    thread.start()
    try:
        yield changes
    finally:
        stop.set()
        thread.join(_WAIT_SECONDS)
        assert not thread.is_alive()


def test_a_watch_tells_of_every_change_and_ends_when_told(site: Site) -> None:
    site.write("other.yaml", text("Other"))
    # Often enough that the moment before the watch is in place is covered as well.
    with watching(site, look_anyway_seconds=1) as changes:
        (site.folder / "a.yaml").write_text(text("A"))
        assert changes.get(timeout=_WAIT_SECONDS).added == ("A",)
        (site.folder / "a.yaml").write_text(text("A", image="b"))
        assert changes.get(timeout=_WAIT_SECONDS).changed == ("A",)
        (site.folder / "a.yaml").unlink()
        assert changes.get(timeout=_WAIT_SECONDS).removed == ("A",)
        assert changes.empty()


def test_a_watch_sees_files_that_editors_exchange(site: Site) -> None:
    site.write("a.yaml", text("A", image="v0"))
    with watching(site, look_anyway_seconds=1) as changes:
        for version in ("v1", "v2", "v3"):
            swap = site.folder / ".a.yaml.swp"
            swap.write_text(text("A", image=version))
            swap.replace(site.folder / "a.yaml")
            change = changes.get(timeout=_WAIT_SECONDS)
            assert (change.added, change.changed, change.removed, change.problems) == ((), ("A",), (), ())
            assert site.in_force == {"A": version}


def test_a_watch_never_shows_half_a_file(site: Site) -> None:
    site.write("a.yaml", text("A", image="v0"))
    with watching(site, look_anyway_seconds=0.05) as changes:
        for number in range(1, 40):
            # In place, as some editors write: for a moment the file is empty, or holds its first half.
            with (site.folder / "a.yaml").open("w") as file:
                written = text("A", image=f"v{number}")
                file.write(written[:20])
                file.flush()
                file.write(written[20:])
            assert site.in_force.keys() == {"A"}
        while site.in_force != {"A": "v39"}:
            assert changes.get(timeout=_WAIT_SECONDS).removed == ()


def test_a_file_that_is_saved_in_two_parts_is_read_once_it_is_whole(site: Site) -> None:
    destinations = "destinations: [{host: pacs, port: 104, ae_title: PACS}]\n"
    with watching(site) as changes:
        # Whether the watch is in place shows only by what it sees.
        while True:
            (site.folder / "seen.yaml").write_text(text("Seen"))
            with suppress(queue.Empty):
                assert changes.get(timeout=1).added == ("Seen",)
                break
        with (site.folder / "a.yaml").open("w") as file:
            file.write(text("A"))  # a flow that sends nothing is a valid flow
            file.flush()
            time.sleep(0.2)  # as long as a slow share takes for the rest
            file.write(destinations)
        assert changes.get(timeout=_WAIT_SECONDS).added == ("A",)
        assert len(site.catalogue.snapshot()["A"].destinations) == 1


def test_a_watch_survives_its_folder(site: Site) -> None:
    site.write("a.yaml", text("A"))
    with watching(site, look_anyway_seconds=0.2) as changes:
        shutil.rmtree(site.folder)
        while not (change := changes.get(timeout=_WAIT_SECONDS)).problems or change.problems[0].file != site.folder:
            assert change.removed in {(), ("A",)}
        site.folder.mkdir()
        (site.folder / "z.yaml").write_text(text("Z"))
        while "Z" not in site.catalogue.snapshot():
            changes.get(timeout=_WAIT_SECONDS)


def test_an_error_of_the_listener_ends_the_watch(site: Site) -> None:
    def listener(_change: CatalogueChange) -> None:
        raise OSError("the listener failed")

    (site.folder / "a.yaml").write_text(text("A"))
    with pytest.raises(OSError, match="the listener failed"):
        site.catalogue.watch(threading.Event(), listener, look_anyway_seconds=0.1)


def test_a_folder_that_holds_no_definition_any_more_takes_nothing(site: Site) -> None:
    site.write("a.yaml", text("A"))
    kept = (site.state / "last-good.json").read_bytes()
    (site.folder / "a.yaml").unlink()

    for catalogue in (site.catalogue, site.restart()):
        change = catalogue.refresh()
        assert change.removed == ()
        (problem,) = change.problems
        assert str(site.folder) in str(problem)
        assert f"delete {site.state / 'last-good.json'}" in str(problem)
        assert not catalogue.refresh(), "it is told once"
        assert list(catalogue.snapshot()) == ["A"]
    assert (site.state / "last-good.json").read_bytes() == kept

    assert site.write("b.yaml", text("B")).removed == ("A",)


def test_a_folder_is_emptied_on_purpose_by_deleting_what_is_remembered(site: Site) -> None:
    site.write("a.yaml", text("A"))
    site.remove("a.yaml")

    (site.state / "last-good.json").unlink()

    assert site.catalogue.refresh().removed == ("A",)
    assert site.in_force == {}
    assert not site.restart().refresh()


def test_who_only_looks_leaves_no_trace(site: Site) -> None:
    (site.folder / "a.yaml").write_text(text("A"))

    catalogue = FlowCatalogue(site.folder, state_folder=site.state, remember=False)

    assert catalogue.refresh().added == ("A",)
    assert not site.state.exists()


def test_what_the_site_allows_is_in_force_and_stays_so_when_it_no_longer_does(site: Site) -> None:
    """Its runs then fail with the reason; a flow that is no longer there would leave its studies aside."""
    (site.folder / "a.yaml").write_text(text("A", image="a, init: true"))
    refused = site.catalogue.refresh()
    assert [problem.field for problem in refused.problems] == ["models[0].docker_kwargs.init"]
    assert site.in_force == {}

    site.catalogue = FlowCatalogue(site.folder, state_folder=site.state, docker_kwargs_allowed=("init",))
    assert not site.catalogue.refresh().problems
    assert site.in_force == {"A": "a"}

    told = site.restart().refresh().problems
    assert told[0].field == "models[0].docker_kwargs.init"
    assert told[1].reason == "its last good version, 'A', stays in force"
    assert site.catalogue.snapshot()["A"].models[0].docker_kwargs.init is True
