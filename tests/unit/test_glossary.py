"""Words that the glossary replaced do not come back: each has one name today."""

import re
import subprocess

from shared.settings import ROOT

FORMER = re.compile(
    r"allowance|BacklogRun|backlog_run|nightly|begin_night|night_of|\b_?(portion|plant|doorbell|ledger|retrospect|standstill"
    r"|film|desk)s?\b|\b(second[ _]looks?|strangers|pulse(?!=)|strangeness|usual_way|overtaken)\b|/second-looks|rights? of way"
    r"|RefusalRow|RefusalView|SampleRow|SpoolRoom|NotNow|tests.ward|benchmarks.line\b|the answer of GET",
    re.IGNORECASE,
)
# names of classes that did not say what they are
A_CLASS = re.compile(r"^[ \t]*class (\w+)", re.MULTILINE)
CLASSES = re.compile(
    r"_?(Known|Taken|Standing|Said|\w*Wanted|Kept|Shown|Told|Ears|Fate|Tally|Promise|Surprise|Shelf|Lessons|Bench|Plant"
    r"|Doorbell|Chained|Judged|Turned|Acquired|Analysed|Decoded|Failed|Refused|Closing|Incoming|Look|Reader|Gate|Ward)"
)
# files that name a former word, and why
NAMED = {
    "api/legacy.py": "old paths are served until 0.3.0",
    "api/schemas.py": "a field keeps its old name beside the new one until 0.3.0",
    "api/studies/frames.py": "a header keeps its old name beside the new one until 0.3.0",
    "api/studies/routes.py": "the same field",
    "docs/run/upgrade.md": "says which tables were renamed",
    "infra/cli/backtest.py": "the option --allowances works until 0.3.0",
    "infra/cli/feedback.py": "the command works by its old name until 0.3.0",
    "infra/cli/models.py": "the option --strangers works until 0.3.0",
    "shared/domain/manifest.py": "bundles from before 0.2.0 have old keys, and the shipped one its old title",
    "shared/queue/celery_app.py": "a beat of before 0.2.0 sends tasks by their old names",
    "shared/settings.py": "settings are read by their old names until 0.3.0",
    "shared/storage/base.py": "0.1.0 kept frames under this name",
    "tests/acceptance/test_upgrade.py": "begins with the data of 0.1.0",
    "tests/integration/test_feedback_data_set.py": "calls the command by its old name",
    "tests/integration/test_frames.py": "asks by the old path",
    "tests/integration/test_legacy_paths.py": "asks by all old paths",
    "tests/integration/test_reading_locks.py": "asks by an old path",
    "tests/integration/test_storage.py": "removes what 0.1.0 kept",
    "tests/unit/infra/test_backtest.py": "gives the old option",
    "tests/unit/shared/test_bundle.py": "reads a bundle of before 0.2.0",
    "training/datasets/tables.py": "a table's name of before 0.2.0 is read",
    "worker/main.py": "takes the tasks of such a beat",
}
FOLDERS = ("api", "benchmarks/*.py", "infra", "shared", "tests", "training/*.py", "worker")
PAGES = ("docs", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
OWN = (
    "tests/unit/test_glossary.py",
    "tests/integration/test_migrations.py",
    "tests/unit/test_docs.py",
)  # they list them


def tracked(*patterns: str) -> list[str]:
    """Files of the repository with text, without decisions and recorded data, which stay as they are."""
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    texts = (".py", ".md", ".html", ".js", ".css", ".yml", ".json")
    return [
        name
        for name in listed
        if name.endswith(texts)
        and not name.startswith(("docs/adr/", "tests/data/", "tests/fuzz/corpus/"))
        and name not in OWN
        and (ROOT / name).is_file()
    ]


def test_former_words_are_named_where_they_must_be() -> None:
    """No file of the code or the documents has a former word, but for those that say why; decisions stay as written."""
    # a link to a decision has the words of its file's name
    texts = {name: re.sub(r"docs/adr/[\w.-]+", "", (ROOT / name).read_text()) for name in tracked(*FOLDERS, *PAGES)}
    assert {name for name, text in texts.items() if FORMER.search(text)} == set(NAMED)


def test_classes_are_named_by_nouns() -> None:
    """No class has the name of one that was renamed because nobody could tell from it what the class is."""
    found = [
        f"{name}: {one}"
        for name in tracked(*FOLDERS)
        if name.endswith(".py")
        for one in A_CLASS.findall((ROOT / name).read_text())
        if CLASSES.fullmatch(one)
    ]
    assert found == []
