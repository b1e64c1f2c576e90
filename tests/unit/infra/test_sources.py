"""What counts as a change of a part's code, and when it is told."""

from pathlib import Path

from infra.embedded.sources import Sources


def test_a_change_is_told_once_and_to_the_parts_that_load_the_file(tmp_path: Path) -> None:
    """A changed, a new and a removed file are each told once, to every part that has them below its folders."""
    api, shared = tmp_path / "api", tmp_path / "shared"
    for folder in (api / "pages", shared):
        folder.mkdir(parents=True)
    page, module = api / "pages" / "page.html", shared / "module.py"
    page.write_text("old")
    module.write_text("old")
    sources = Sources({"api": (api, shared), "worker": (shared,)})

    assert sources.changed() == {}
    page.write_text("new page")
    assert [sources.changed(), sources.changed(), sources.changed()] == [{}, {"api": page}, {}]
    new = shared / "new.py"
    new.write_text("")
    assert [sources.changed(), sources.changed(), sources.changed()] == [{}, {"api": new, "worker": new}, {}]
    new.unlink()
    assert [sources.changed(), sources.changed(), sources.changed()] == [{}, {"api": new, "worker": new}, {}]


def test_files_still_being_written_are_waited_for(tmp_path: Path) -> None:
    """While files go on changing nothing is told, and then all of it at once."""
    sources = Sources({"api": (tmp_path,)})
    for number in range(3):
        (tmp_path / f"{number}.py").write_text("")
        assert sources.changed() == {}
    assert sources.changed() == {"api": tmp_path / "0.py"}
    assert sources.changed() == {}


def test_what_python_and_editors_write_is_no_change(tmp_path: Path) -> None:
    """Compiled modules and swap files restart nothing."""
    sources = Sources({"api": (tmp_path,)})
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "module.cpython-311.pyc").write_bytes(b"")
    (tmp_path / ".module.py.swp").write_bytes(b"")
    assert [sources.changed(), sources.changed()] == [{}, {}]
